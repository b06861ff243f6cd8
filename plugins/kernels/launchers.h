//! \file launchers.h
//! What the host code and the kernels' launchers share: the limits, and one launcher per kind of kernel and element
//! type, each defined in a file of its own so that they compile in parallel.
#pragma once

#include <cstdint>

#include "sparsemax_attention.h"

namespace hspan
{

//! Device memory of one call.
struct AttentionPointers
{
    void const* query;
    void const* key;
    void const* value;
    void* output;
    void* workspace;
};

//! Distances in elements between neighboring elements of a tensor: what the layouts differ in.
struct Strides
{
    int64_t batch;
    int64_t channel;
    int64_t position;
};

//! Those of a tensor of so many channels.
Strides stridesOf(AttentionProblem const& problem, int64_t channels);

//! The threshold of one row and how its scores are computed, as the plain kernels leave it in the workspace.
constexpr int64_t kTHRESHOLD_BYTES{16};

//! Keys that share bounds, floats, in the workspace of FP32 problems.
constexpr int64_t kBOUND_KEYS{32};

//! Bytes of these bounds, without padding.
int64_t keyBoundBytes(AttentionProblem const& problem);

//! Value channels that one block of the plain kernels accumulates in registers: narrow for few channels, else wide.
constexpr int32_t kMIN_SLICE{32};
constexpr int32_t kMAX_SLICE{96};

//! Room that 32-bit channel numbers need above the last channel.
constexpr int32_t kCHANNEL_MARGIN{128};

//! The plain kernels: any sizes, any GPU. The caller has checked that the sizes are in range and not zero.
cudaError_t launchPlainFloat(AttentionProblem const& problem, AttentionPointers const& pointers, cudaStream_t stream);
cudaError_t launchPlainHalf(AttentionProblem const& problem, AttentionPointers const& pointers, cudaStream_t stream);
cudaError_t launchPlainBFloat16(
    AttentionProblem const& problem, AttentionPointers const& pointers, cudaStream_t stream);

//! \name The tiled kernels
//! @{

constexpr int64_t kMAX_TILED_SCORE_CHANNELS{128};
constexpr int64_t kMAX_TILED_VALUE_CHANNELS{256};
constexpr int64_t kMAX_TILED_POSITIONS{1 << 20};

//! Entries of a row's candidate list, where the caller does not ask for another number. With the maxima it makes 16 KiB
//! a row.
constexpr int32_t kLIST_CAPACITY{1728};

//! Rows whose lists exist at a time.
constexpr int64_t kCHUNK_ROWS{16384};

//! Rows of an image are padded to a multiple of this: no tile spans two images.
constexpr int64_t kROW_ALIGNMENT{128};

//! Query rows of a block of both looks. Where there are few rows a block is one warp: so many in the first look, and
//! half of them in the second.
constexpr int64_t kMAIN_ROWS{128};
constexpr int64_t kSMALL_ROWS{32};

constexpr int64_t kKEYS_OF_TILE{64};

//! Of a row: maxima, and splits of its list.
constexpr int64_t kMOST_MAXIMA{576};
constexpr int64_t kMOST_SPLITS{32};

//! Per row: threshold and length of its list; its maximum and bound; an entry.
constexpr int64_t kRESULT_BYTES{32};
constexpr int64_t kROW_BOUND_BYTES{8};
constexpr int64_t kLIST_ENTRY_BYTES{8};

//! Of an FP32 row: what is known of its coarse scores.
constexpr int64_t kCOARSE_ROW_BYTES{16};

//! Where things lie in the workspace of the tiled kernels, in bytes, and how many.
struct TiledWorkspace
{
    int64_t slotsPerImage; //!< L, rounded up to kROW_ALIGNMENT
    int64_t chunkSlots;    //!< rows that have a list at a time
    int64_t capacity;      //!< entries of a list
    int64_t query;         //!< token-major copies of tensors in another layout
    int64_t key;
    int64_t value;
    int64_t results;
    int64_t bounds;
    int64_t maxima;
    int64_t counts; //!< lengths of a list's shares, one per split
    int64_t lists;
    int64_t coarseRows; //!< this and the rest for FP32, one part
    int64_t coarseQuery;
    int64_t coarseKey;
    int64_t centers;
    int64_t keyBounds;       //!< one per kBOUND_KEYS keys of an image
    int64_t centeredSquares; //!< the same
    int64_t keyLosses;       //!< the same
    int64_t bytes;           //!< all of it
};

TiledWorkspace tiledWorkspace(AttentionProblem const& problem, int32_t capacity);

//! Elements from one position to the next in a token-major copy.
int64_t preparedPitch(int64_t channels);

//! How the two looks divide rows and keys among the blocks of a GPU.
struct LookPlan
{
    int32_t multiprocessors;
    int32_t tiles;        //!< of kKEYS_OF_TILE keys
    int32_t tilesOfGroup; //!< that share maxima
    int32_t maximaOfLane; //!< in a row and group: 1 or 2, four lanes have some
    int32_t maximaOfRow;
    int32_t rowsOfBlock; //!< kMAIN_ROWS, or kSMALL_ROWS in the first look and half of them in the second
    int32_t maximaSplits;
    int32_t tilesOfMaximaSplit;
    int32_t listSplits;
    int32_t tilesOfListSplit;
    int32_t capacityOfSplit; //!< entries in a split's share of a list
};

LookPlan lookPlan(TiledWorkspace const& workspace, int64_t positions, int32_t multiprocessors);

//! A launch of the two looks, and of them a chunk of rows.
struct LookCall
{
    AttentionProblem problem;
    TiledWorkspace workspace;
    LookPlan plan;
    AttentionPointers pointers;
    cudaStream_t stream;
    int64_t firstSlot;
    int64_t slots;
};

//! The steps of the pipeline, for one element type.
struct LookLaunchers
{
    cudaError_t (*prepareTensors)(LookCall const& call);
    cudaError_t (*findMaxima)(LookCall const& call);
    cudaError_t (*collectLists)(LookCall const& call, bool isAgain);
    cudaError_t (*finishLists)(LookCall const& call);
    cudaError_t (*findDenseThresholds)(LookCall const& call);
    cudaError_t (*sumDense)(LookCall const& call);
};

LookLaunchers lookLaunchersFloat();
LookLaunchers lookLaunchersHalf();
LookLaunchers lookLaunchersBFloat16();

//! Bounds from maxima: the same for all types.
cudaError_t launchLowerBounds(LookCall const& call);

//! launchSparsemaxAttention() with lists of another capacity, as the tests want it. 0 is the usual one.
cudaError_t launchWithCapacity(AttentionProblem const& problem, int32_t config, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream);

//! @}

//! Compute capability of the current device, such as 86; 0 if there is none.
int32_t deviceComputeCapability();

//! Multiprocessors of the current device; 1 if there is none.
int32_t deviceMultiprocessors();

} // namespace hspan
