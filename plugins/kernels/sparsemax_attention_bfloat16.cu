#include "sparsemax_attention.cuh"

namespace hspan
{

cudaError_t launchBFloat16(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream)
{
    return launchTyped<simt::BFloat16>(shape, query, key, value, output, workspace, stream);
}

} // namespace hspan
