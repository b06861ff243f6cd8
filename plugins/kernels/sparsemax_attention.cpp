#include "sparsemax_attention.h"

#include <algorithm>

#include "launchers.h"

namespace hspan
{

namespace
{

constexpr char const* kCONFIG_NAMES[] = {"automatic", "plain-32x128", "tiled-two-looks"};
constexpr int32_t kCONFIG_COUNT{sizeof kCONFIG_NAMES / sizeof kCONFIG_NAMES[0]};
constexpr int32_t kPLAIN_CONFIG{1};
constexpr int32_t kTILED_CONFIG{2};

//! Tensor cores with BF16, and asynchronous copies.
constexpr int32_t kLEAST_TILED_CAPABILITY{80};
constexpr int32_t kLEAST_CAPABILITY{75};

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

bool tilesServe(int64_t scoreChannels, int64_t valueChannels, int32_t computeCapability)
{
    return scoreChannels > 0 && scoreChannels <= kMAX_TILED_SCORE_CHANNELS && valueChannels <= kMAX_TILED_VALUE_CHANNELS
        && computeCapability >= kLEAST_TILED_CAPABILITY;
}

size_t plainWorkspaceBytes(AttentionProblem const& problem)
{
    AttentionShape const& shape = problem.shape;
    return static_cast<size_t>(kTHRESHOLD_BYTES) * static_cast<size_t>(shape.batch)
        * static_cast<size_t>(shape.positions)
        + static_cast<size_t>(keyBoundBytes(problem));
}

//! Splits of `groups` groups of tiles, about as many as are wanted and at most kMOST_SPLITS: the groups of each.
int64_t groupsOfSplit(int64_t groups, int64_t wanted)
{
    return std::max({int64_t{1}, groups / wanted, roundedUp(groups, kMOST_SPLITS) / kMOST_SPLITS});
}

//! The two looks at all rows, chunk by chunk; a chunk's lists take the place of the last one's.
cudaError_t launchTwoLooks(LookCall call, LookLaunchers const& launchers)
{
    int64_t const slots = call.workspace.slotsPerImage * call.problem.shape.batch;
    LookPlan const& plan = call.plan;
    bool const mayOverflowShare = plan.listSplits > 1 && plan.tilesOfListSplit * kKEYS_OF_TILE > plan.capacityOfSplit;
    bool const mayOverflowList = call.problem.shape.positions > call.workspace.capacity;
    cudaError_t status = launchers.prepareTensors(call);
    auto const then = [&status](auto const& step) { status = status == cudaSuccess ? step() : status; };
    for (; status == cudaSuccess && call.firstSlot < slots; call.firstSlot += call.slots)
    {
        call.slots = std::min(slots - call.firstSlot, call.workspace.chunkSlots);
        then([&] { return launchers.findMaxima(call); });
        then([&] { return launchLowerBounds(call); });
        then([&] { return launchers.collectLists(call, false); });
        then([&] { return mayOverflowShare ? launchers.collectLists(call, true) : cudaSuccess; });
        then([&] { return launchers.finishLists(call); });
        then([&] { return mayOverflowList ? launchers.findDenseThresholds(call) : cudaSuccess; });
        then([&] { return mayOverflowList ? launchers.sumDense(call) : cudaSuccess; });
    }
    return status;
}

} // namespace

int64_t channelPitch(ElementType type, int64_t channels) noexcept
{
    return type == ElementType::kFLOAT ? channels : (channels + 7) / 8 * 8;
}

Strides stridesOf(AttentionProblem const& problem, int64_t channels)
{
    int64_t const positions = problem.shape.positions;
    if (problem.layout == TensorLayout::kLINEAR)
    {
        return {channels * positions, positions, 1};
    }
    int64_t const pitch = channelPitch(problem.type, channels);
    return {pitch * positions, 1, pitch};
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
    int64_t const tiles = roundedUp(shape.positions, kKEYS_OF_TILE) / kKEYS_OF_TILE;
    int64_t const rows = workspace.chunkSlots;
    workspace.bounds = workspace.results + roundedUp(rows * kRESULT_BYTES, kALIGNMENT);
    workspace.maxima = workspace.bounds + roundedUp(rows * kROW_BOUND_BYTES, kALIGNMENT);
    workspace.counts = workspace.maxima + roundedUp(rows * std::min(8 * tiles, kMOST_MAXIMA) * 4, kALIGNMENT);
    workspace.lists = workspace.counts + roundedUp(rows * std::min(tiles, kMOST_SPLITS) * 4, kALIGNMENT);
    workspace.coarseRows = workspace.lists + roundedUp(rows * workspace.capacity * kLIST_ENTRY_BYTES, kALIGNMENT);
    int64_t const coarseRows = problem.type == ElementType::kFLOAT ? shape.batch * shape.positions : 0;
    int64_t const coarseBytes = elementBytes(ElementType::kHALF) * coarseRows * preparedPitch(shape.scoreChannels);
    workspace.coarseQuery = workspace.coarseRows + coarseRows * kCOARSE_ROW_BYTES;
    workspace.coarseKey = workspace.coarseQuery + coarseBytes;
    workspace.centers = workspace.coarseKey + coarseBytes;
    workspace.keyBounds
        = workspace.centers + (coarseRows > 0 ? 4 * shape.batch * preparedPitch(shape.scoreChannels) : 0);
    workspace.centeredSquares = workspace.keyBounds + keyBoundBytes(problem);
    workspace.keyLosses = workspace.centeredSquares + keyBoundBytes(problem);
    workspace.bytes = roundedUp(workspace.keyLosses + keyBoundBytes(problem), kALIGNMENT);
    return workspace;
}

// Lanes take maxima of 8 scores up to 72 tiles, of 16 up to 144, and of several tiles from there on: up to 576 in a
// row. Where main tiles are not enough for half of the multiprocessors, blocks of single warps come first, and then
// splits of the keys, as these have a price in the lists. Of the first look's warps, which are light, a multiprocessor
// wants two.
LookPlan lookPlan(TiledWorkspace const& workspace, int64_t positions, int32_t multiprocessors)
{
    constexpr int64_t kWARPS_WANTED{2};
    int64_t const rows = workspace.chunkSlots;
    int64_t const tiles = roundedUp(positions, kKEYS_OF_TILE) / kKEYS_OF_TILE;
    int64_t const maximaOfLane = 8 * tiles <= kMOST_MAXIMA ? 2 : 1;
    int64_t const tilesOfGroup = roundedUp(4 * maximaOfLane * tiles, kMOST_MAXIMA) / kMOST_MAXIMA;
    int64_t const groups = roundedUp(tiles, tilesOfGroup) / tilesOfGroup;
    bool const isSmall = maximaOfLane == 2 && 2 * rows < kMAIN_ROWS * multiprocessors;
    int64_t const rowsOfBlock = isSmall ? kSMALL_ROWS : kMAIN_ROWS;
    auto const tilesOfSplit = [&](int64_t blocks, int64_t wantedBlocks)
    { return groupsOfSplit(groups, roundedUp(wantedBlocks, blocks) / blocks) * tilesOfGroup; };
    int64_t const tilesOfMaximaSplit
        = tilesOfSplit(rows / rowsOfBlock, isSmall ? kWARPS_WANTED * multiprocessors : multiprocessors);
    int64_t const tilesOfListSplit
        = tilesOfSplit(isSmall ? 2 * rows / kSMALL_ROWS : rows / kMAIN_ROWS, multiprocessors);
    LookPlan plan{};
    plan.multiprocessors = multiprocessors;
    plan.tiles = static_cast<int32_t>(tiles);
    plan.tilesOfGroup = static_cast<int32_t>(tilesOfGroup);
    plan.maximaOfLane = static_cast<int32_t>(maximaOfLane);
    plan.maximaOfRow = static_cast<int32_t>(groups * 4 * maximaOfLane);
    plan.rowsOfBlock = static_cast<int32_t>(rowsOfBlock);
    plan.maximaSplits = static_cast<int32_t>(roundedUp(tiles, tilesOfMaximaSplit) / tilesOfMaximaSplit);
    plan.tilesOfMaximaSplit = static_cast<int32_t>(tilesOfMaximaSplit);
    plan.listSplits = static_cast<int32_t>(roundedUp(tiles, tilesOfListSplit) / tilesOfListSplit);
    plan.tilesOfListSplit = static_cast<int32_t>(tilesOfListSplit);
    plan.capacityOfSplit = static_cast<int32_t>(workspace.capacity / plan.listSplits);
    return plan;
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
    if (config < 0 || config >= kCONFIG_COUNT || !isKnown(type) || scoreChannels < 0 || valueChannels < 0
        || computeCapability < kLEAST_CAPABILITY)
    {
        return false;
    }
    return config != kTILED_CONFIG || tilesServe(scoreChannels, valueChannels, computeCapability);
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
    size_t const plain = config == kTILED_CONFIG ? 0 : plainWorkspaceBytes(problem);
    // Beyond the limits of tiles the plain kernels take over; a workspace that shrank there would be too small for a
    // smaller problem of the same engine.
    AttentionProblem tiled = problem;
    tiled.shape.scoreChannels = std::min(shape.scoreChannels, kMAX_TILED_SCORE_CHANNELS);
    tiled.shape.valueChannels = std::min(shape.valueChannels, kMAX_TILED_VALUE_CHANNELS);
    tiled.shape.positions = std::min(shape.positions, kMAX_TILED_POSITIONS);
    return config == kPLAIN_CONFIG ? plain : std::max(plain, static_cast<size_t>(tiledWorkspace(tiled, 0).bytes));
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
    bool const tilesDo = shape.positions <= kMAX_TILED_POSITIONS
        && tilesServe(shape.scoreChannels, shape.valueChannels, deviceComputeCapability());
    if (config == kTILED_CONFIG && !tilesDo)
    {
        return cudaErrorInvalidValue;
    }
    if (config == kPLAIN_CONFIG || !tilesDo)
    {
        switch (problem.type)
        {
        case ElementType::kFLOAT: return launchPlainFloat(problem, pointers, stream);
        case ElementType::kHALF: return launchPlainHalf(problem, pointers, stream);
        case ElementType::kBFLOAT16: return launchPlainBFloat16(problem, pointers, stream);
        }
        return cudaErrorInvalidValue;
    }
    TiledWorkspace const workspace = tiledWorkspace(problem, capacity);
    LookPlan const plan = lookPlan(workspace, shape.positions, deviceMultiprocessors());
    return launchTwoLooks({problem, workspace, plan, pointers, stream, 0, 0},
        problem.type == ElementType::kFLOAT      ? lookLaunchersFloat()
            : problem.type == ElementType::kHALF ? lookLaunchersHalf()
                                                 : lookLaunchersBFloat16());
}

cudaError_t launchSparsemaxAttention(AttentionProblem const& problem, int32_t config, void const* query,
    void const* key, void const* value, void* output, void* workspace, cudaStream_t stream) noexcept
{
    return launchWithCapacity(problem, config, 0, {query, key, value, output, workspace}, stream);
}

} // namespace hspan
