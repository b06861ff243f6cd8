//! \file launchers.h
//! What the host code and the kernels' launchers share: the limits, and one launcher per element type, each defined
//! in a file of its own so that they compile in parallel.
#pragma once

#include <cstdint>

#include "sparsemax_attention.h"

namespace hspan
{

//! The threshold of one row, exactly as the kernels leave it in the workspace.
constexpr int64_t kTHRESHOLD_BYTES{8};

//! Value channels that one block accumulates in registers: narrow for few channels, else wide.
constexpr int32_t kMIN_SLICE{32};
constexpr int32_t kMAX_SLICE{96};

//! Room that 32-bit channel numbers need above the last channel.
constexpr int32_t kCHANNEL_MARGIN{128};

//! The caller has checked that the sizes are in range and not zero.
cudaError_t launchFloat(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream);
cudaError_t launchHalf(AttentionShape const& shape, void const* query, void const* key, void const* value, void* output,
    void* workspace, cudaStream_t stream);
cudaError_t launchBFloat16(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream);

} // namespace hspan
