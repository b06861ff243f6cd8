#include "sparsemax_attention.h"

#include "launchers.h"

namespace hspan
{

namespace
{

constexpr int32_t kPLAIN_CONFIG{1};

constexpr char const* kCONFIG_NAMES[] = {"automatic", "plain-32x128"};
constexpr int32_t kCONFIG_COUNT{sizeof kCONFIG_NAMES / sizeof kCONFIG_NAMES[0]};

bool isKnown(ElementType type)
{
    return type == ElementType::kFLOAT || type == ElementType::kHALF || type == ElementType::kBFLOAT16;
}

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
    int64_t const perBatch = (channels + kCHANNEL_MARGIN) * shape.positions; // below 2^62
    return perBatch == 0 || shape.batch <= INT64_MAX / 16 / perBatch;
}

} // namespace

int64_t channelPitch(ElementType type, int64_t channels) noexcept
{
    return type == ElementType::kFLOAT ? channels : (channels + 7) / 8 * 8;
}

int32_t attentionConfigCount() noexcept
{
    return kCONFIG_COUNT;
}

char const* attentionConfigName(int32_t config) noexcept
{
    return config >= 0 && config < kCONFIG_COUNT ? kCONFIG_NAMES[config] : nullptr;
}

bool isAttentionConfigSupported(
    int32_t config, ElementType type, int64_t scoreChannels, int64_t valueChannels, int32_t computeCapability) noexcept
{
    return isKnown(type) && scoreChannels >= 0 && valueChannels >= 0 && computeCapability >= 75
        && (config == kAUTOMATIC_CONFIG || config == kPLAIN_CONFIG);
}

int32_t currentComputeCapability() noexcept
{
    return deviceComputeCapability();
}

size_t attentionWorkspaceBytes(AttentionProblem const& problem, int32_t config) noexcept
{
    if (!isInRange(problem.shape) || attentionConfigName(config) == nullptr)
    {
        return 0;
    }
    return static_cast<size_t>(kTHRESHOLD_BYTES) * static_cast<size_t>(problem.shape.batch)
        * static_cast<size_t>(problem.shape.positions);
}

cudaError_t launchSparsemaxAttention(AttentionProblem const& problem, int32_t config, void const* query,
    void const* key, void const* value, void* output, void* workspace, cudaStream_t stream) noexcept
{
    AttentionShape const& shape = problem.shape;
    if (!isInRange(shape) || !isKnown(problem.type) || (config != kAUTOMATIC_CONFIG && config != kPLAIN_CONFIG))
    {
        return cudaErrorInvalidValue;
    }
    if (problem.layout != TensorLayout::kLINEAR && problem.layout != TensorLayout::kCHANNELS_LAST)
    {
        return cudaErrorInvalidValue;
    }
    if (shape.batch == 0 || shape.valueChannels == 0 || shape.positions == 0)
    {
        return cudaSuccess;
    }
    AttentionPointers const pointers{query, key, value, output, workspace};
    switch (problem.type)
    {
    case ElementType::kFLOAT: return launchPlainFloat(problem, pointers, stream);
    case ElementType::kHALF: return launchPlainHalf(problem, pointers, stream);
    case ElementType::kBFLOAT16: return launchPlainBFloat16(problem, pointers, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace hspan
