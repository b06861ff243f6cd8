#include "plain_attention.cuh"

namespace hspan
{

cudaError_t launchPlainHalf(AttentionProblem const& problem, AttentionPointers const& pointers, cudaStream_t stream)
{
    return launchPlain<simt::Half>(problem, pointers, stream);
}

} // namespace hspan
