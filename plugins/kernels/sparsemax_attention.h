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

//! Sizes of one attention problem. All tensors are dense, channel-major (NCHW with H and W flattened).
struct AttentionShape
{
    int64_t batch{};         //!< N
    int64_t scoreChannels{}; //!< C, channels of query and key
    int64_t valueChannels{}; //!< D, channels of value and output
    int64_t positions{};     //!< L = H * W, at most 2^31 - 1
};

//! Bytes of workspace that launchSparsemaxAttention needs: 8 N L (one two-float threshold per row), never O(L^2).
size_t sparsemaxAttentionWorkspaceBytes(AttentionShape const& shape) noexcept;

//! Computes, for every batch n, row i and channel d,
//!     output[n][d][i] = sum over j with p_ij > 0 of p_ij value[n][d][j],   p_i = sparsemax_j(q_i . k_j),
//! where sparsemax(s)_j = max(s_j - tau, 0) and tau solves sum_j max(s_j - tau, 0) = 1 (Martins and Astudillo 2016).
//!
//! Numeric contract. Scores, threshold, weights and sums are FP32 whatever the element type; the output is rounded
//! once. With u = 2^-24, every score is one chain of fused multiply-adds over ascending channels, so it carries an
//! error of at most C u sum_c |q_c k_c| and is the same bit pattern in every pass. Given the scores, each output
//! differs from the exact one by at most 96 u max |v_j| over the j of positive weight (plugins/README.md derives it),
//! independent of L.
//! Equal scores get equal weights. No result depends on scheduling: two runs agree bit by bit.
//!
//! Degenerate rows. A row with a NaN or +inf score, or with no score above -inf, is NaN in all its channels; other
//! rows are untouched. A score of -inf has weight 0. Positions of weight 0 contribute nothing, even where their
//! value is NaN or infinite.
//!
//! \param query, key (N, C, L); value (N, D, L); output (N, D, L): device memory, not overlapping the output.
//! \param workspace device memory of sparsemaxAttentionWorkspaceBytes(shape), aligned to 8 bytes.
//! \return cudaErrorInvalidValue for sizes out of range, else what the launches return. Neither allocates nor
//!     synchronises, so the call can be captured in a CUDA graph.
cudaError_t launchSparsemaxAttention(ElementType type, AttentionShape const& shape, void const* query, void const* key,
    void const* value, void* output, void* workspace, cudaStream_t stream) noexcept;

} // namespace hspan
