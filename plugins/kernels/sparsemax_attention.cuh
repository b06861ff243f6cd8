//! \file sparsemax_attention.cuh
//! Launches the two kernels for one element type.
#pragma once

#include "launchers.h"
#include "sparsemax_attention.h"
#include "threshold.cuh"
#include "weighted_sum.cuh"

namespace hspan
{

template <typename T, int32_t kCHANNELS>
cudaError_t launchWeightedSum(AttentionShape const& shape, simt::Grid grid, T const* query, T const* key,
    T const* value, TwoFloat const* thresholds, T* output, cudaStream_t stream)
{
    grid.z = (shape.valueChannels + kCHANNELS - 1) / kCHANNELS;
    if (grid.z > simt::kMAX_GRID_Z)
    {
        return cudaErrorInvalidValue;
    }
    return simt::launch(&weightedSumKernel<T, kCHANNELS>, grid, kTHREADS_PER_BLOCK, stream, query, key, value,
        thresholds, output, shape.batch, static_cast<int32_t>(shape.scoreChannels),
        static_cast<int32_t>(shape.valueChannels), static_cast<int32_t>(shape.positions));
}

static_assert(sizeof(TwoFloat) == kTHRESHOLD_BYTES, "the workspace holds one threshold per row");
static_assert(kCHANNELS_PER_STAGE <= kCHANNEL_MARGIN && kMAX_SLICE <= kCHANNEL_MARGIN, "channel numbers overflow");

//! Both kernels, one after the other on the stream. The caller has checked that the sizes fit.
template <typename T>
cudaError_t launchTyped(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream)
{
    auto const* const q = static_cast<T const*>(query);
    auto const* const k = static_cast<T const*>(key);
    auto const* const v = static_cast<T const*>(value);
    auto* const o = static_cast<T*>(output);
    auto* const thresholds = static_cast<TwoFloat*>(workspace);
    TwoFloat const* const finished = thresholds;
    simt::Grid grid;
    grid.x = (shape.positions + kROWS_PER_TILE - 1) / kROWS_PER_TILE;
    grid.y = shape.batch < simt::kMAX_GRID_Y ? shape.batch : simt::kMAX_GRID_Y;
    cudaError_t const status = simt::launch(&thresholdKernel<T>, grid, kTHREADS_PER_BLOCK, stream, q, k, thresholds,
        shape.batch, static_cast<int32_t>(shape.scoreChannels), static_cast<int32_t>(shape.positions));
    if (status != cudaSuccess)
    {
        return status;
    }
    if (shape.valueChannels <= kMIN_SLICE)
    {
        return launchWeightedSum<T, kMIN_SLICE>(shape, grid, q, k, v, finished, o, stream);
    }
    return launchWeightedSum<T, kMAX_SLICE>(shape, grid, q, k, v, finished, o, stream);
}

} // namespace hspan
