//! \file sparsemax_attention.cuh
//! Launches the two kernels for one element type.
#pragma once

#include "sparsemax_attention.h"
#include "threshold.cuh"
#include "weighted_sum.cuh"

namespace hspan
{

//! Greatest slice of value channels that one block accumulates in registers.
constexpr int32_t kMAX_SLICE{96};

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
    // The narrowest slice that needs no more slices than the widest does.
    int64_t const slices = (shape.valueChannels + kMAX_SLICE - 1) / kMAX_SLICE;
    int64_t const perSlice = (shape.valueChannels + slices - 1) / slices;
    if (perSlice <= 32)
    {
        return launchWeightedSum<T, 32>(shape, grid, q, k, v, finished, o, stream);
    }
    if (perSlice <= 64)
    {
        return launchWeightedSum<T, 64>(shape, grid, q, k, v, finished, o, stream);
    }
    return launchWeightedSum<T, kMAX_SLICE>(shape, grid, q, k, v, finished, o, stream);
}

//! One definition per element type, each in a file of its own so that they compile in parallel.
cudaError_t launchFloat(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream);
cudaError_t launchHalf(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream);
cudaError_t launchBFloat16(AttentionShape const& shape, void const* query, void const* key, void const* value,
    void* output, void* workspace, cudaStream_t stream);

} // namespace hspan
