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

//! The threshold of one row, exactly as the plain kernels leave it in the workspace.
constexpr int64_t kTHRESHOLD_BYTES{8};

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

//! Compute capability of the current device, such as 86; 0 if there is none.
int32_t deviceComputeCapability();

} // namespace hspan
