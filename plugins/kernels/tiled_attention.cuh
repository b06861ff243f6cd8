//! \file tiled_attention.cuh
//! Launches the tiled kernels for one element type: preparation, then per chunk of rows selection, gathering and the
//! dense route.
#pragma once

#include "dense.cuh"
#include "gather.cuh"
#include "launchers.h"
#include "prepare.cuh"
#include "select.cuh"
#include "tensor_tile.cuh"

namespace hspan
{

static_assert(kSLOT_ALIGNMENT == kROW_ALIGNMENT && sizeof(RowResult) == kRESULT_BYTES && kKEYS_PER_BOUND == kBOUND_KEYS,
    "as the workspace is laid out");
static_assert(kMAX_SCORE_CHANNELS == kMAX_TILED_SCORE_CHANNELS && kMAX_VALUE_CHANNELS == kMAX_TILED_VALUE_CHANNELS
        && kMAX_EXACT_POSITIONS == kMAX_TILED_POSITIONS,
    "as the launcher checks");

//! Distances in elements between neighbors of a tensor of the problem.
struct TensorStrides
{
    int64_t batch;
    int64_t channel;
    int64_t position;
};

inline TensorStrides tensorStrides(AttentionProblem const& problem, int64_t channels)
{
    int64_t const positions = problem.shape.positions;
    if (problem.layout == TensorLayout::kLINEAR)
    {
        return {channels * positions, positions, 1};
    }
    int64_t const pitch = channelPitch(problem.type, channels);
    return {pitch * positions, 1, pitch};
}

//! Token-major rows of a tensor: the tensor itself where it is fit for that, else a copy at `target`.
template <typename T>
cudaError_t prepare(AttentionProblem const& problem, int64_t channels, bool fits, void const* source,
    unsigned char* target, T const** rows, int64_t* pitch, cudaStream_t stream)
{
    TensorStrides const strides = tensorStrides(problem, channels);
    if (fits)
    {
        *rows = static_cast<T const*>(source);
        *pitch = strides.position;
        return cudaSuccess;
    }
    AttentionShape const& shape = problem.shape;
    *pitch = preparedPitch(channels);
    *rows = reinterpret_cast<T const*>(target);
    PrepareArguments<T> const arguments{static_cast<T const*>(source), reinterpret_cast<T*>(target), strides.batch,
        strides.channel, strides.position, shape.batch, static_cast<int32_t>(channels), static_cast<int32_t>(*pitch),
        static_cast<int32_t>(shape.positions)};
    simt::Grid const grid{(shape.positions + kPREPARE_POSITIONS - 1) / kPREPARE_POSITIONS,
        shape.batch < simt::kMAX_GRID_Y ? shape.batch : simt::kMAX_GRID_Y,
        (*pitch + kPREPARE_CHANNELS - 1) / kPREPARE_CHANNELS};
    return simt::launch(&prepareKernel<T>, grid, kPREPARE_THREADS, stream, arguments);
}

//! The dense route's kernel for `slots` rows.
template <typename T>
cudaError_t launchDense(TiledArguments<T> const& arguments, int64_t slots, cudaStream_t stream)
{
    simt::Grid const grid{slots / kDENSE_ROWS, 1, (arguments.valueChannels + kDENSE_SLICE - 1) / kDENSE_SLICE};
    return simt::launch(&denseKernel<T>, grid, kDENSE_THREADS, stream, arguments);
}

//! Selection, gathering and the dense route for all rows. The caller has checked that the sizes are within the limits.
template <typename T, typename Tile>
cudaError_t launchTiles(
    AttentionProblem const& problem, int32_t capacity, AttentionPointers const& pointers, cudaStream_t stream)
{
    AttentionShape const& shape = problem.shape;
    TiledWorkspace const workspace = tiledWorkspace(problem, capacity);
    auto* const memory = static_cast<unsigned char*>(pointers.workspace);
    constexpr int64_t kALIGNED{16 / static_cast<int64_t>(sizeof(T))};
    bool const isChannelsLast = problem.layout == TensorLayout::kCHANNELS_LAST;
    // What pads the channels of a score operand would enter the scores; what pads values is read, but ends in no
    // output.
    bool const scoresFit = isChannelsLast && shape.scoreChannels % kALIGNED == 0;
    bool const valuesFit = isChannelsLast && channelPitch(problem.type, shape.valueChannels) % kALIGNED == 0;
    TiledArguments<T> arguments{};
    cudaError_t status = prepare<T>(problem, shape.scoreChannels, scoresFit, pointers.query, memory + workspace.query,
        &arguments.query, &arguments.scorePitch, stream);
    if (status == cudaSuccess)
    {
        status = prepare<T>(problem, shape.scoreChannels, scoresFit, pointers.key, memory + workspace.key,
            &arguments.key, &arguments.scorePitch, stream);
    }
    if (status == cudaSuccess)
    {
        status = prepare<T>(problem, shape.valueChannels, valuesFit, pointers.value, memory + workspace.value,
            &arguments.value, &arguments.valuePitch, stream);
    }
    if constexpr (kIS_REFINED_TYPE<T>)
    {
        auto* const bounds = reinterpret_cast<float*>(memory + workspace.keyBounds);
        arguments.keyBounds = bounds;
        if (status == cudaSuccess)
        {
            status = launchKeyBounds<T>(
                {arguments.key, bounds, shape.positions * arguments.scorePitch, 1, arguments.scorePitch, shape.batch,
                    static_cast<int32_t>(shape.scoreChannels), static_cast<int32_t>(shape.positions)},
                stream);
        }
    }
    TensorStrides const outputStrides = tensorStrides(problem, shape.valueChannels);
    arguments.output = static_cast<T*>(pointers.output);
    arguments.outputBatch = outputStrides.batch;
    arguments.outputChannel = outputStrides.channel;
    arguments.outputPosition = outputStrides.position;
    arguments.scoreChannels = static_cast<int32_t>(shape.scoreChannels);
    arguments.valueChannels = static_cast<int32_t>(shape.valueChannels);
    arguments.positions = static_cast<int32_t>(shape.positions);
    arguments.capacity = static_cast<int32_t>(workspace.capacity);
    arguments.slotsPerImage = workspace.slotsPerImage;
    arguments.slots = workspace.slotsPerImage * shape.batch;
    arguments.results = reinterpret_cast<RowResult*>(memory + workspace.results);
    arguments.listScores = reinterpret_cast<float*>(memory + workspace.listScores);
    arguments.listKeys = reinterpret_cast<int32_t*>(memory + workspace.listKeys);
    constexpr int32_t kROWS{Tile::kWARPS * kROWS_OF_WARP};
    while (status == cudaSuccess && arguments.firstSlot < arguments.slots)
    {
        int64_t const left = arguments.slots - arguments.firstSlot;
        int64_t const slots = left < workspace.chunkSlots ? left : workspace.chunkSlots;
        status = simt::launch(
            &selectKernel<T, Tile>, {slots / kROWS, 1, 1}, Tile::kWARPS * simt::kWARP_SIZE, stream, arguments);
        if (status == cudaSuccess)
        {
            status = simt::launch(
                &gatherKernel<T>, {slots / kGATHER_ROWS, 1, 1}, kGATHER_WARPS * simt::kWARP_SIZE, stream, arguments);
        }
        if (status == cudaSuccess && arguments.positions > arguments.capacity) // else no list can overflow
        {
            status = launchDense<T>(arguments, slots, stream);
        }
        arguments.firstSlot += slots;
    }
    return status;
}

//! With the tile shape that has this number.
template <typename T>
cudaError_t launchTiled(AttentionProblem const& problem, TileShape shape, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream)
{
    switch (shape)
    {
    case TileShape::k32x64: return launchTiles<T, TensorTile<T, 2, 64>>(problem, capacity, pointers, stream);
    case TileShape::k64x64: return launchTiles<T, TensorTile<T, 4, 64>>(problem, capacity, pointers, stream);
    case TileShape::k128x64: return launchTiles<T, TensorTile<T, 8, 64>>(problem, capacity, pointers, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace hspan
