#include "two_looks.cuh"

namespace hspan
{

LookLaunchers lookLaunchersHalf()
{
    return lookLaunchers<simt::Half>();
}

} // namespace hspan
