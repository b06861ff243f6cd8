#include "sparsemax_attention.h"

#include "launchers.h"

namespace hspan
{

namespace
{

//! Whether every index the kernels form fits its type: positions and channels in 32 bits, elements in 63.
bool isInRange(AttentionShape const& shape)
{
    constexpr int64_t kMAX_32{INT32_MAX};
    if (shape.batch < 0 || shape.scoreChannels < 0 || shape.valueChannels < 0 || shape.positions < 0)
    {
        return false;
    }
    if (shape.scoreChannels > kMAX_32 - kCHANNEL_MARGIN || shape.valueChannels > kMAX_32 - kCHANNEL_MARGIN
        || shape.positions > kMAX_32)
    {
        return false;
    }
    int64_t const channels = shape.scoreChannels > shape.valueChannels ? shape.scoreChannels : shape.valueChannels;
    int64_t const perBatch = channels * shape.positions; // below 2^62
    return perBatch == 0 || shape.batch <= INT64_MAX / 16 / perBatch;
}

} // namespace

size_t sparsemaxAttentionWorkspaceBytes(AttentionShape const& shape) noexcept
{
    return static_cast<size_t>(kTHRESHOLD_BYTES) * static_cast<size_t>(shape.batch)
        * static_cast<size_t>(shape.positions);
}

cudaError_t launchSparsemaxAttention(ElementType type, AttentionShape const& shape, void const* query, void const* key,
    void const* value, void* output, void* workspace, cudaStream_t stream) noexcept
{
    if (!isInRange(shape))
    {
        return cudaErrorInvalidValue;
    }
    if (shape.batch == 0 || shape.valueChannels == 0 || shape.positions == 0)
    {
        return cudaSuccess;
    }
    switch (type)
    {
    case ElementType::kFLOAT: return launchFloat(shape, query, key, value, output, workspace, stream);
    case ElementType::kHALF: return launchHalf(shape, query, key, value, output, workspace, stream);
    case ElementType::kBFLOAT16: return launchBFloat16(shape, query, key, value, output, workspace, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace hspan
