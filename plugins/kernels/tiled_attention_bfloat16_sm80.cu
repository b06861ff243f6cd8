#include "two_looks.cuh"

namespace hspan
{

LookLaunchers lookLaunchersBFloat16()
{
    return lookLaunchers<simt::BFloat16>();
}

} // namespace hspan
