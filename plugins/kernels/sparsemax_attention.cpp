#include "sparsemax_attention.h"

#include <algorithm>

#include "launchers.h"

namespace hspan
{

namespace
{

//! A configuration: the plain kernels, or the tiled ones with a tile shape.
struct Config
{
    char const* name;
    bool isTiled;
    TileShape shape;
};

constexpr Config kCONFIGS[] = {
    {"automatic", false, {}},
    {"plain-32x128", false, {}},
    {"tiled-64x64", true, TileShape::k64x64},
    {"tiled-128x64", true, TileShape::k128x64},
    {"tiled-32x64", true, TileShape::k32x64},
};
constexpr int32_t kCONFIG_COUNT{sizeof kCONFIGS / sizeof kCONFIGS[0]};
constexpr int32_t kPLAIN_CONFIG{1};
constexpr int32_t kFIRST_TILED_CONFIG{2};
constexpr int32_t kSMALL_TILE_CONFIG{4};

//! Tensor cores with BF16, and asynchronous copies.
constexpr int32_t kLEAST_TILED_CAPABILITY{80};
constexpr int32_t kLEAST_CAPABILITY{75};

//! Rows below which small tiles spread over more of the GPU.
constexpr int64_t kFEW_ROWS{4096};

constexpr int64_t roundedUp(int64_t number, int64_t multiple)
{
    return (number + multiple - 1) / multiple * multiple;
}

int64_t elementBytes(ElementType type)
{
    return type == ElementType::kFLOAT ? 4 : 2;
}

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

bool tilesServe(
    TileShape shape, ElementType type, int64_t scoreChannels, int64_t valueChannels, int32_t computeCapability)
{
    return (type != ElementType::kFLOAT || shape != TileShape::k128x64) && scoreChannels > 0
        && scoreChannels <= kMAX_TILED_SCORE_CHANNELS && valueChannels <= kMAX_TILED_VALUE_CHANNELS
        && computeCapability >= kLEAST_TILED_CAPABILITY;
}

//! The configuration that kAUTOMATIC_CONFIG chooses.
int32_t chosenConfig(AttentionProblem const& problem, int32_t computeCapability)
{
    AttentionShape const& shape = problem.shape;
    int32_t const tiled = shape.batch * shape.positions <= kFEW_ROWS ? kSMALL_TILE_CONFIG : kFIRST_TILED_CONFIG;
    bool const served = shape.positions <= kMAX_TILED_POSITIONS
        && tilesServe(kCONFIGS[tiled].shape, problem.type, shape.scoreChannels, shape.valueChannels, computeCapability);
    return served ? tiled : kPLAIN_CONFIG;
}

size_t plainWorkspaceBytes(AttentionProblem const& problem)
{
    AttentionShape const& shape = problem.shape;
    return static_cast<size_t>(kTHRESHOLD_BYTES) * static_cast<size_t>(shape.batch)
        * static_cast<size_t>(shape.positions)
        + static_cast<size_t>(keyBoundBytes(problem));
}

} // namespace

int64_t channelPitch(ElementType type, int64_t channels) noexcept
{
    return type == ElementType::kFLOAT ? channels : (channels + 7) / 8 * 8;
}

int64_t keyBoundBytes(AttentionProblem const& problem)
{
    int64_t const perImage = (problem.shape.positions + kBOUND_KEYS - 1) / kBOUND_KEYS;
    return problem.type == ElementType::kFLOAT ? 4 * problem.shape.batch * perImage : 0;
}

int64_t preparedPitch(int64_t channels)
{
    return roundedUp(channels, 8);
}

TiledWorkspace tiledWorkspace(AttentionProblem const& problem, int32_t capacity)
{
    constexpr int64_t kALIGNMENT{256};
    AttentionShape const& shape = problem.shape;
    int64_t const bytes = elementBytes(problem.type) * shape.batch * shape.positions;
    TiledWorkspace workspace{};
    workspace.slotsPerImage = roundedUp(shape.positions, kROW_ALIGNMENT);
    int64_t const slots = workspace.slotsPerImage * shape.batch;
    workspace.chunkSlots = slots < kCHUNK_ROWS ? slots : kCHUNK_ROWS;
    int64_t const requested = capacity == 0 ? kLIST_CAPACITY : capacity;
    workspace.capacity = shape.positions < requested ? shape.positions : requested;
    workspace.key = workspace.query + roundedUp(bytes * preparedPitch(shape.scoreChannels), kALIGNMENT);
    workspace.value = workspace.key + roundedUp(bytes * preparedPitch(shape.scoreChannels), kALIGNMENT);
    workspace.results = workspace.value + roundedUp(bytes * preparedPitch(shape.valueChannels), kALIGNMENT);
    workspace.listScores = workspace.results + roundedUp(workspace.chunkSlots * kRESULT_BYTES, kALIGNMENT);
    int64_t const lists = roundedUp(workspace.chunkSlots * workspace.capacity * 4, kALIGNMENT);
    workspace.listKeys = workspace.listScores + lists;
    workspace.keyBounds = workspace.listKeys + lists;
    workspace.bytes = workspace.keyBounds + roundedUp(keyBoundBytes(problem), kALIGNMENT);
    return workspace;
}

int32_t attentionConfigCount() noexcept
{
    return kCONFIG_COUNT;
}

char const* attentionConfigName(int32_t config) noexcept
{
    return config >= 0 && config < kCONFIG_COUNT ? kCONFIGS[config].name : nullptr;
}

bool isAttentionConfigSupported(
    int32_t config, ElementType type, int64_t scoreChannels, int64_t valueChannels, int32_t computeCapability) noexcept
{
    if (config < 0 || config >= kCONFIG_COUNT || !isKnown(type) || scoreChannels < 0 || valueChannels < 0
        || computeCapability < kLEAST_CAPABILITY)
    {
        return false;
    }
    return !kCONFIGS[config].isTiled
        || tilesServe(kCONFIGS[config].shape, type, scoreChannels, valueChannels, computeCapability);
}

int32_t currentComputeCapability() noexcept
{
    return deviceComputeCapability();
}

size_t attentionWorkspaceBytes(AttentionProblem const& problem, int32_t config) noexcept
{
    AttentionShape const& shape = problem.shape;
    if (!isInRange(shape) || !isKnown(problem.type) || config < 0 || config >= kCONFIG_COUNT)
    {
        return 0;
    }
    bool const mayBeTiled = config == kAUTOMATIC_CONFIG || kCONFIGS[config].isTiled;
    bool const mayBePlain = !kCONFIGS[config].isTiled;
    size_t const plain = mayBePlain ? plainWorkspaceBytes(problem) : 0;
    // Beyond the limits of tiles the plain kernels take over; a workspace that shrank there would be too small for a
    // smaller problem of the same engine.
    AttentionProblem tiled = problem;
    tiled.shape.scoreChannels = std::min(shape.scoreChannels, kMAX_TILED_SCORE_CHANNELS);
    tiled.shape.valueChannels = std::min(shape.valueChannels, kMAX_TILED_VALUE_CHANNELS);
    tiled.shape.positions = std::min(shape.positions, kMAX_TILED_POSITIONS);
    return mayBeTiled ? std::max(plain, static_cast<size_t>(tiledWorkspace(tiled, 0).bytes)) : plain;
}

cudaError_t launchWithCapacity(AttentionProblem const& problem, int32_t config, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream)
{
    AttentionShape const& shape = problem.shape;
    if (!isInRange(shape) || !isKnown(problem.type) || config < 0 || config >= kCONFIG_COUNT)
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
    int32_t const computeCapability = deviceComputeCapability();
    int32_t const chosen = config == kAUTOMATIC_CONFIG ? chosenConfig(problem, computeCapability) : config;
    if (!kCONFIGS[chosen].isTiled)
    {
        switch (problem.type)
        {
        case ElementType::kFLOAT: return launchPlainFloat(problem, pointers, stream);
        case ElementType::kHALF: return launchPlainHalf(problem, pointers, stream);
        case ElementType::kBFLOAT16: return launchPlainBFloat16(problem, pointers, stream);
        }
        return cudaErrorInvalidValue;
    }
    if (shape.positions > kMAX_TILED_POSITIONS
        || !tilesServe(
            kCONFIGS[chosen].shape, problem.type, shape.scoreChannels, shape.valueChannels, computeCapability))
    {
        return cudaErrorInvalidValue;
    }
    TileShape const tile = kCONFIGS[chosen].shape;
    switch (problem.type)
    {
    case ElementType::kFLOAT: return launchTiledFloat(problem, tile, capacity, pointers, stream);
    case ElementType::kHALF: return launchTiledHalf(problem, tile, capacity, pointers, stream);
    case ElementType::kBFLOAT16: return launchTiledBFloat16(problem, tile, capacity, pointers, stream);
    }
    return cudaErrorInvalidValue;
}

cudaError_t launchSparsemaxAttention(AttentionProblem const& problem, int32_t config, void const* query,
    void const* key, void const* value, void* output, void* workspace, cudaStream_t stream) noexcept
{
    return launchWithCapacity(problem, config, 0, {query, key, value, output, workspace}, stream);
}

} // namespace hspan
