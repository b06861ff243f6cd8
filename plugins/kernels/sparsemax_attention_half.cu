#include "sparsemax_attention.cuh"

namespace hspan
{

cudaError_t launchHalf(AttentionShape const& shape, void const* query, void const* key, void const* value, void* output,
    void* workspace, cudaStream_t stream)
{
    return launchTyped<simt::Half>(shape, query, key, value, output, workspace, stream);
}

} // namespace hspan
