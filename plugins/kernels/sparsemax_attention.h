//! \file sparsemax_attention.h
//! Exact sparsemax attention on device pointers. Knows nothing of TensorRT.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace hspan
{

//! Element type of query, key, value and output alike.
enum class ElementType : int32_t
{
    kFLOAT = 0,
    kHALF = 1,
    kBFLOAT16 = 2,
};

//! How the four tensors lie in memory, all alike.
enum class TensorLayout : int32_t
{
    kLINEAR = 0,        //!< (N, channels, L): TensorRT's kLINEAR
    kCHANNELS_LAST = 1, //!< (N, L, channelPitch): TensorRT's kHWC8 for FP16 and BF16, kHWC for FP32
};

//! Sizes of one attention problem, H and W flattened.
struct AttentionShape
{
    int64_t batch{};         //!< N
    int64_t scoreChannels{}; //!< C, channels of query and key
    int64_t valueChannels{}; //!< D, channels of value and output
    int64_t positions{};     //!< L = H * W, at most 2^31 - 1
};

//! What is to be computed, apart from the data.
struct AttentionProblem
{
    ElementType type{ElementType::kFLOAT};
    TensorLayout layout{TensorLayout::kLINEAR};
    AttentionShape shape{};
};

//! Elements from one position to the next in a channels-last tensor: channels, rounded up to 8 for FP16 and BF16.
//! What lies between may be read in inputs, whatever it holds, but no result depends on it; in the output it is zero.
int64_t channelPitch(ElementType type, int64_t channels) noexcept;

//! \name Configurations
//! Ways to compute the same result. They are numbered from 0; a number keeps its meaning within a plugin ABI version.
//! @{

//! Chooses by type, sizes and the GPU at hand. Always supported.
constexpr int32_t kAUTOMATIC_CONFIG{0};

//! Configurations are 0 ... attentionConfigCount() - 1.
int32_t attentionConfigCount() noexcept;

//! A short name such as "plain-32x128"; nullptr if there is no such configuration.
char const* attentionConfigName(int32_t config) noexcept;

//! Whether the configuration serves this type and these channel counts on GPUs of this compute capability, such as 86
//! for 8.6. All configurations serve any layout, batch and number of positions.
bool isAttentionConfigSupported(
    int32_t config, ElementType type, int64_t scoreChannels, int64_t valueChannels, int32_t computeCapability) noexcept;

//! Compute capability of the current device; 0 if there is none.
int32_t currentComputeCapability() noexcept;

//! @}

//! Bytes of workspace that launchSparsemaxAttention needs, never O(L^2); for kAUTOMATIC_CONFIG enough on any GPU. It
//! does not shrink when a size of the problem grows, and is the same for both layouts. 0 for sizes out of range.
size_t attentionWorkspaceBytes(AttentionProblem const& problem, int32_t config) noexcept;

//! Computes, for every batch n, row i and channel d,
//!     output[n][d][i] = sum over j with p_ij > 0 of p_ij value[n][d][j],   p_i = sparsemax_j(q_i . k_j),
//! where sparsemax(s)_j = max(s_j - tau, 0) and tau solves sum_j max(s_j - tau, 0) = 1 (Martins and Astudillo 2016).
//!
//! Numeric contract. Scores, threshold, weights and sums are FP32 or better whatever the element type; the output is
//! rounded once. u = 2^-24. Outside tensor cores every score is one chain of fused multiply-adds over ascending
//! channels, off by at most C u sum_c |q_c k_c|; on tensor cores it is summed in FP32 in the order of the hardware. Of
//! FP32 tensors, rows with |q| max |k| of 1 or more (below 2^60) are computed from refined scores instead, distances
//! from the row's greatest score that are off by u and C^2 2^-46 |q| max |k| (refined_score.cuh). In all passes of a
//! configuration a score is the same bit pattern. Given the scores, each output differs from the exact one
//! by at most 96 u max |v_j| over the j of positive weight; for FP16 and BF16 in rows on the dense route by (2^-17 +
//! (130 + L / 512) u) max |v_j| (plugins/README.md derives both). Equal scores get equal weights. With two
//! looks the threshold and the weights are the same bits on every route and GPU. No result depends on scheduling: two
//! runs agree bit by bit.
//!
//! Degenerate rows. A row with a NaN or +inf score, or with no score above -inf, is NaN in all its channels; other
//! rows are untouched. A score of -inf has weight 0. Positions of weight 0 contribute nothing, even where their
//! value is NaN or infinite.
//!
//! \param query, key with C channels; value, output with D channels: device memory, aligned to 16 bytes, the output not
//!     overlapping the inputs.
//! \param config one that is supported on the current device.
//! \param workspace device memory of attentionWorkspaceBytes(problem, config), aligned to 256 bytes.
//! \return cudaErrorInvalidValue for sizes out of range and for a configuration that does not serve the problem, else
//!     what the launches return. Neither allocates nor synchronizes, so the call can be captured in a CUDA graph.
cudaError_t launchSparsemaxAttention(AttentionProblem const& problem, int32_t config, void const* query,
    void const* key, void const* value, void* output, void* workspace, cudaStream_t stream) noexcept;

} // namespace hspan
