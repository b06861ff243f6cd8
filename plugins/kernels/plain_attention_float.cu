#include "plain_attention.cuh"

namespace hspan
{

cudaError_t launchPlainFloat(AttentionProblem const& problem, AttentionPointers const& pointers, cudaStream_t stream)
{
    return launchPlain<float>(problem, pointers, stream);
}

int32_t deviceComputeCapability()
{
    return simt::computeCapability();
}

int32_t deviceMultiprocessors()
{
    return simt::multiprocessors();
}

} // namespace hspan
