//! \file two_looks.cuh
//! Launches the kernels of the two looks for one element type. sparsemax_attention.cpp calls these in their order.
#pragma once

#include "block_maxima.cuh"
#include "collect.cuh"
#include "dense.cuh"
#include "dense_float.cuh"
#include "dense_threshold.cuh"
#include "finish.cuh"
#include "launchers.h"
#include "prepared_tensors.cuh"

namespace hspan
{

static_assert(kSLOT_ALIGNMENT == kROW_ALIGNMENT && sizeof(RowResult) == kRESULT_BYTES
        && sizeof(RowBound) == kROW_BOUND_BYTES && sizeof(ListEntry) == kLIST_ENTRY_BYTES && kMAX_MAXIMA == kMOST_MAXIMA
        && kMAX_SPLITS == kMOST_SPLITS && kTILE_KEYS == kKEYS_OF_TILE && sizeof(CoarseRow) == kCOARSE_ROW_BYTES
        && kKEYS_PER_BOUND == kBOUND_KEYS,
    "as the workspace is laid out");
static_assert(kMAX_SCORE_CHANNELS == kMAX_TILED_SCORE_CHANNELS && kMAX_VALUE_CHANNELS == kMAX_TILED_VALUE_CHANNELS
        && kMAX_EXACT_POSITIONS == kMAX_TILED_POSITIONS,
    "as the launcher checks");

//! What the kernels of a chunk get. Those of FP16 make both looks at FP32, too: at coarse copies of its operands.
template <typename T>
LookArguments<T> lookArguments(LookCall const& call)
{
    AttentionProblem const& problem = call.problem;
    TiledWorkspace const& workspace = call.workspace;
    auto* const memory = static_cast<unsigned char*>(call.pointers.workspace);
    LookArguments<T> arguments{};
    arguments.tensors = tiledArguments<T>(problem, workspace, call.pointers);
    arguments.tensors.firstSlot = call.firstSlot;
    if (problem.type == ElementType::kFLOAT && sizeof(T) == 2)
    {
        arguments.tensors.query = reinterpret_cast<T const*>(memory + workspace.coarseQuery);
        arguments.tensors.key = reinterpret_cast<T const*>(memory + workspace.coarseKey);
        arguments.tensors.scorePitch = preparedPitch(problem.shape.scoreChannels);
    }
    arguments.tiles = call.plan.tiles;
    arguments.tilesOfGroup = call.plan.tilesOfGroup;
    arguments.maximaOfRow = call.plan.maximaOfRow;
    arguments.capacityOfSplit = call.plan.capacityOfSplit;
    arguments.maximaSplit = {call.plan.maximaSplits, call.plan.tilesOfMaximaSplit};
    arguments.listSplit = {call.plan.listSplits, call.plan.tilesOfListSplit};
    arguments.maxima = reinterpret_cast<float*>(memory + workspace.maxima);
    arguments.bounds = reinterpret_cast<RowBound*>(memory + workspace.bounds);
    arguments.coarseRows = reinterpret_cast<CoarseRow const*>(memory + workspace.coarseRows);
    arguments.counts = reinterpret_cast<int32_t*>(memory + workspace.counts);
    arguments.lists = reinterpret_cast<ListEntry*>(memory + workspace.lists);
    return arguments;
}

//! Calls visit(Constant<steps>) for the least number of padded steps of 16 channels that there are kernels for.
template <typename Visit>
cudaError_t withSteps(int64_t channels, Visit const& visit)
{
    int64_t const steps = (channels + kSTEP - 1) / kSTEP;
    return steps <= 1 ? visit(Constant<1>{})
        : steps <= 2  ? visit(Constant<2>{})
        : steps <= 4  ? visit(Constant<4>{})
        : steps <= 6  ? visit(Constant<6>{})
                      : visit(Constant<8>{});
}

//! The first look at the rows of a chunk.
template <typename T>
cudaError_t findMaxima(LookCall const& call, LookArguments<T> const& arguments)
{
    LookPlan const& plan = call.plan;
    simt::Grid const grid{call.slots / plan.rowsOfBlock, 1, plan.maximaSplits};
    return withSteps(call.problem.shape.scoreChannels,
        [&](auto steps)
        {
            constexpr int32_t kSTEPS{decltype(steps)::kVALUE};
            if (plan.rowsOfBlock == kSMALL_ROWS)
            {
                return simt::launch(
                    &blockMaximaKernel<T, kSTEPS, 2, 1>, grid, simt::kWARP_SIZE, call.stream, arguments);
            }
            constexpr int32_t kWARPS{kMAIN_ROWS / (kMAXIMA_ROW_SETS * kROWS_OF_WARP)};
            auto* const kernel = plan.maximaOfLane == 1 ? &blockMaximaKernel<T, kSTEPS, 1, kWARPS>
                                                        : &blockMaximaKernel<T, kSTEPS, 2, kWARPS>;
            return simt::launch(kernel, grid, kWARPS * simt::kWARP_SIZE, call.stream, arguments);
        });
}

//! The second look at the rows of a chunk; where `isAgain`, at those whose candidates did not fit the splits' shares.
template <typename T>
cudaError_t collectLists(LookCall const& call, LookArguments<T> const& arguments, bool isAgain)
{
    LookPlan const& plan = call.plan;
    int64_t const splits = isAgain ? 1 : plan.listSplits;
    return withSteps(call.problem.shape.scoreChannels,
        [&](auto steps)
        {
            constexpr int32_t kSTEPS{decltype(steps)::kVALUE};
            if (plan.rowsOfBlock == kSMALL_ROWS)
            {
                return simt::launch(&collectKernel<T, kSTEPS, 2, 1>, {call.slots / kROWS_OF_WARP, 1, splits},
                    simt::kWARP_SIZE, call.stream, arguments, isAgain);
            }
            constexpr int32_t kWARPS{kLIST_WARPS<kSTEPS>};
            auto* const kernel
                = plan.maximaOfLane == 1 ? &collectKernel<T, kSTEPS, 1, kWARPS> : &collectKernel<T, kSTEPS, 2, kWARPS>;
            return simt::launch(kernel, {call.slots / (kWARPS * kROWS_OF_WARP), 1, splits}, kWARPS * simt::kWARP_SIZE,
                call.stream, arguments, isAgain);
        });
}

//! Outputs of the rows of a chunk that have lists.
template <typename T>
cudaError_t finishLists(LookCall const& call, LookArguments<T> const& arguments)
{
    auto const launch = [&](auto pieces)
    {
        constexpr int32_t kPIECES{decltype(pieces)::kVALUE};
        constexpr int32_t kWARPS{kFINISH_WARPS<kPIECES>};
        int64_t rowsOfWarp = kMOST_ROWS_OF_WARP;
        while (rowsOfWarp > 1 && call.slots / (kWARPS * rowsOfWarp) < call.plan.multiprocessors)
        {
            rowsOfWarp /= 2;
        }
        return simt::launch(&finishKernel<T, kPIECES>, {call.slots / (kWARPS * rowsOfWarp), 1, 1},
            kWARPS * simt::kWARP_SIZE, call.stream, arguments, static_cast<int32_t>(rowsOfWarp));
    };
    int64_t const channels = call.problem.shape.valueChannels;
    return channels <= 32 ? launch(Constant<2>{})
        : channels <= 64  ? launch(Constant<4>{})
        : channels <= 128 ? launch(Constant<8>{})
        : channels <= 192 ? launch(Constant<12>{})
                          : launch(Constant<16>{});
}

//! Thresholds of the other rows of a chunk.
template <typename T>
cudaError_t findDenseThresholds(LookCall const& call, LookArguments<T> const& arguments)
{
    return simt::launch(&denseThresholdKernel<T>, {call.slots / kPASS_ROWS, 1, 1}, kPASS_WARPS * simt::kWARP_SIZE,
        call.stream, arguments);
}

//! Their outputs.
template <typename T>
cudaError_t sumDense(LookCall const& call, LookArguments<T> const& arguments)
{
    auto const launch = [&](auto* kernel, int64_t rows, int64_t channels, int32_t threads)
    {
        simt::Grid const grid{call.slots / rows, 1, (arguments.tensors.valueChannels + channels - 1) / channels};
        return simt::launch(kernel, grid, threads, call.stream, arguments.tensors);
    };
    if constexpr (kIS_REFINED_TYPE<T>)
    {
        return launch(&denseFloatKernel<T>, kDENSE_FLOAT_ROWS, kDENSE_FLOAT_SLICE, kDENSE_FLOAT_THREADS);
    }
    else
    {
        return launch(&denseKernel<T>, kDENSE_ROWS, kDENSE_SLICE, kDENSE_THREADS);
    }
}

template <typename T>
LookLaunchers lookLaunchers()
{
    return {[](LookCall const& call)
        { return prepareAll<T>(call.problem, call.workspace, call.pointers, call.stream); },
        [](LookCall const& call) { return findMaxima(call, lookArguments<T>(call)); },
        [](LookCall const& call, bool isAgain) { return collectLists(call, lookArguments<T>(call), isAgain); },
        [](LookCall const& call) { return finishLists(call, lookArguments<T>(call)); },
        [](LookCall const& call) { return findDenseThresholds(call, lookArguments<T>(call)); },
        [](LookCall const& call) { return sumDense(call, lookArguments<T>(call)); }};
}

} // namespace hspan
