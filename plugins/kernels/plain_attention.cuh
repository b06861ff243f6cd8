//! \file plain_attention.cuh
//! Launches the plain kernels for one element type: any sizes, any GPU, FP32 arithmetic outside tensor cores.
#pragma once

#include "launchers.h"
#include "plain_threshold.cuh"
#include "plain_weighted_sum.cuh"
#include "sparsemax_attention.h"

namespace hspan
{

static_assert(sizeof(PlainRow) == kTHRESHOLD_BYTES && kKEYS_PER_BOUND == kBOUND_KEYS, "as the workspace is laid out");
static_assert(kCHANNELS_PER_STAGE <= kCHANNEL_MARGIN && kMAX_SLICE <= kCHANNEL_MARGIN, "channel numbers overflow");

template <typename T, int32_t kCHANNELS>
cudaError_t launchWeightedSum(
    AttentionProblem const& problem, simt::Grid grid, AttentionPointers const& pointers, cudaStream_t stream)
{
    AttentionShape const& shape = problem.shape;
    grid.z = (shape.valueChannels + kCHANNELS - 1) / kCHANNELS;
    if (grid.z > simt::kMAX_GRID_Z)
    {
        return cudaErrorInvalidValue;
    }
    return simt::launch(&weightedSumKernel<T, kCHANNELS>, grid, kTHREADS_PER_BLOCK, stream,
        static_cast<T const*>(pointers.query), static_cast<T const*>(pointers.key),
        static_cast<T const*>(pointers.value), static_cast<PlainRow const*>(pointers.workspace),
        static_cast<T*>(pointers.output), stridesOf(problem, shape.scoreChannels),
        stridesOf(problem, shape.valueChannels), shape.batch, static_cast<int32_t>(shape.scoreChannels),
        static_cast<int32_t>(shape.valueChannels), static_cast<int32_t>(shape.positions));
}

//! The kernels, one after the other on the stream. The caller has checked that the sizes fit.
template <typename T>
cudaError_t launchPlain(AttentionProblem const& problem, AttentionPointers const& pointers, cudaStream_t stream)
{
    AttentionShape const& shape = problem.shape;
    simt::Grid grid;
    grid.x = (shape.positions + kROWS_PER_TILE - 1) / kROWS_PER_TILE;
    grid.y = shape.batch < simt::kMAX_GRID_Y ? shape.batch : simt::kMAX_GRID_Y;
    auto const* const key = static_cast<T const*>(pointers.key);
    auto* const rows = static_cast<PlainRow*>(pointers.workspace);
    auto* const bounds = reinterpret_cast<float*>(rows + shape.batch * shape.positions);
    Strides const strides = stridesOf(problem, shape.scoreChannels);
    auto const channels = static_cast<int32_t>(shape.scoreChannels);
    auto const positions = static_cast<int32_t>(shape.positions);
    cudaError_t status = cudaSuccess;
    if constexpr (kIS_REFINED_TYPE<T>)
    {
        status = launchKeyBounds<T>(
            {key, bounds, strides.batch, strides.channel, strides.position, shape.batch, channels, positions}, stream);
    }
    if (status == cudaSuccess)
    {
        status
            = simt::launch(&thresholdKernel<T>, grid, kTHREADS_PER_BLOCK, stream, static_cast<T const*>(pointers.query),
                key, static_cast<float const*>(bounds), rows, strides, shape.batch, channels, positions);
    }
    if (status != cudaSuccess)
    {
        return status;
    }
    if (shape.valueChannels <= kMIN_SLICE)
    {
        return launchWeightedSum<T, kMIN_SLICE>(problem, grid, pointers, stream);
    }
    return launchWeightedSum<T, kMAX_SLICE>(problem, grid, pointers, stream);
}

} // namespace hspan
