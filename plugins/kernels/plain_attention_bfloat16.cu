#include "plain_attention.cuh"

namespace hspan
{

cudaError_t launchPlainBFloat16(AttentionProblem const& problem, AttentionPointers const& pointers, cudaStream_t stream)
{
    return launchPlain<simt::BFloat16>(problem, pointers, stream);
}

} // namespace hspan
