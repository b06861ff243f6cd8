#include "sparsemax_attention.cuh"

namespace hspan
{

cudaError_t launchFloat(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream)
{
    return launchTyped<float>(shape, query, key, value, output, workspace, stream);
}

} // namespace hspan
