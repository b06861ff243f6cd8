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

//! The threshold of one row and how its scores are computed, as the plain kernels leave it in the workspace.
constexpr int64_t kTHRESHOLD_BYTES{16};

//! Keys that share a bound of their lengths, a float, in the workspace of FP32 problems.
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

//! Rows by keys that a block of the selection works on at a time.
enum class TileShape : int32_t
{
    k32x64,
    k64x64,
    k128x64,
};

constexpr int64_t kMAX_TILED_SCORE_CHANNELS{128};
constexpr int64_t kMAX_TILED_VALUE_CHANNELS{256};
constexpr int64_t kMAX_TILED_POSITIONS{1 << 20};

//! Entries of a row's candidate list, where the caller does not ask for another number.
constexpr int32_t kLIST_CAPACITY{1024};

//! Rows whose lists exist at a time.
constexpr int64_t kCHUNK_ROWS{16384};

//! Rows of an image are padded to a multiple of this: no tile spans two images.
constexpr int64_t kROW_ALIGNMENT{128};

//! Per row: threshold and length of its list.
constexpr int64_t kRESULT_BYTES{32};

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
    int64_t listScores;
    int64_t listKeys;
    int64_t keyBounds; //!< one per kBOUND_KEYS keys of an image, for FP32
    int64_t bytes;     //!< all of it
};

TiledWorkspace tiledWorkspace(AttentionProblem const& problem, int32_t capacity);

//! Elements from one position to the next in a token-major copy.
int64_t preparedPitch(int64_t channels);

//! Compute capability 8.0 on. The caller has checked the sizes against the limits.
cudaError_t launchTiledFloat(AttentionProblem const& problem, TileShape shape, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream);
cudaError_t launchTiledHalf(AttentionProblem const& problem, TileShape shape, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream);
cudaError_t launchTiledBFloat16(AttentionProblem const& problem, TileShape shape, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream);

//! launchSparsemaxAttention() with lists of another capacity, as the tests want it. 0 is the usual one.
cudaError_t launchWithCapacity(AttentionProblem const& problem, int32_t config, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream);

//! @}

//! Compute capability of the current device, such as 86; 0 if there is none.
int32_t deviceComputeCapability();

} // namespace hspan
