//! \file tiled_attention.cuh
//! Launches the tiled kernels of FP32: preparation, then per chunk of rows selection, gathering and the dense route.
#pragma once

#include "dense_float.cuh"
#include "gather.cuh"
#include "launchers.h"
#include "prepared_tensors.cuh"
#include "select.cuh"

namespace hspan
{

static_assert(kSLOT_ALIGNMENT == kROW_ALIGNMENT && sizeof(RowResult) == kRESULT_BYTES && kKEYS_PER_BOUND == kBOUND_KEYS,
    "as the workspace is laid out");

//! The dense route's kernel for `slots` rows.
inline cudaError_t launchDense(TiledArguments<float> const& arguments, int64_t slots, cudaStream_t stream)
{
    simt::Grid const grid{
        slots / kDENSE_FLOAT_ROWS, 1, (arguments.valueChannels + kDENSE_FLOAT_SLICE - 1) / kDENSE_FLOAT_SLICE};
    return simt::launch(&denseFloatKernel<float>, grid, kDENSE_FLOAT_THREADS, stream, arguments);
}

//! Selection, gathering and the dense route for all rows. The caller has checked that the sizes are within the limits.
template <typename Tile>
cudaError_t launchTiles(
    AttentionProblem const& problem, int32_t capacity, AttentionPointers const& pointers, cudaStream_t stream)
{
    AttentionShape const& shape = problem.shape;
    TiledWorkspace const workspace = tiledWorkspace(problem, capacity);
    auto* const memory = static_cast<unsigned char*>(pointers.workspace);
    TiledArguments<float> arguments = tiledArguments<float>(problem, workspace, pointers);
    arguments.listScores = reinterpret_cast<float*>(memory + workspace.lists);
    arguments.listKeys = reinterpret_cast<int32_t*>(arguments.listScores + workspace.chunkSlots * workspace.capacity);
    cudaError_t status = prepareAll<float>(problem, workspace, pointers, stream);
    if (status == cudaSuccess)
    {
        status = launchKeyBounds<float>({arguments.key, reinterpret_cast<float*>(memory + workspace.keyBounds),
                                            shape.positions * arguments.scorePitch, 1, arguments.scorePitch,
                                            shape.batch, arguments.scoreChannels, arguments.positions},
            stream);
    }
    constexpr int32_t kROWS{Tile::kWARPS * kROWS_OF_WARP};
    while (status == cudaSuccess && arguments.firstSlot < arguments.slots)
    {
        int64_t const left = arguments.slots - arguments.firstSlot;
        int64_t const slots = left < workspace.chunkSlots ? left : workspace.chunkSlots;
        status = simt::launch(
            &selectKernel<float, Tile>, {slots / kROWS, 1, 1}, Tile::kWARPS * simt::kWARP_SIZE, stream, arguments);
        if (status == cudaSuccess)
        {
            status = simt::launch(&gatherKernel<float>, {slots / kGATHER_ROWS, 1, 1}, kGATHER_WARPS * simt::kWARP_SIZE,
                stream, arguments);
        }
        if (status == cudaSuccess && arguments.positions > arguments.capacity) // else no list can overflow
        {
            status = launchDense(arguments, slots, stream);
        }
        arguments.firstSlot += slots;
    }
    return status;
}

} // namespace hspan
