//! \file dense_threshold.cuh
//! Thresholds of rows on the dense route: Michelot's steps whose sums come from passes over recomputed scores.
//!
//! A pass keeps only sum, count, maximum and the least score above the threshold. A step after which no score leaves
//! the support is the last, so no pass is spent on confirming it.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"
#include "look_arguments.cuh"
#include "tensor_tile.cuh"
#include "tiled_arguments.cuh"

namespace hspan
{

//! A lane's rows, g and g + 8 of its warp; the four lanes of a group hold the same two.
constexpr int32_t kROWS_OF_LANE{2};

//! A row on the dense route.
struct DenseState
{
    bool active;
    float maximum; //!< of the scores seen
    float anchor;  //!< NaN while there is no bound
    float limit;
    int64_t threshold; //!< at or below the row's
};

//! The result of a pass over the scores of a row.
struct DenseSums
{
    int64_t sum;
    int32_t count;
    float least;
    float maximum;
};

//! Adds a tile of scores to the sums of row g + 8 * half.
template <int32_t kGROUPS>
HSPAN_DEVICE void addTile(DenseSums& sums, float const (&scores)[kGROUPS][4], DenseState const& state, int32_t half)
{
    TileSum tile = {0, 0, 0, sums.least};
    HSPAN_UNROLL
    for (int32_t i = 0; i < kGROUPS; ++i)
    {
        HSPAN_UNROLL
        for (int32_t j = 0; j < 2; ++j)
        {
            float const score = scores[i][2 * half + j];
            sums.maximum = simt::maximumOrNan(sums.maximum, score);
            addScore(tile, simt::subtract(score, state.anchor), state.limit);
        }
    }
    sums.sum += quantaOf(tile);
    sums.count += tile.count;
    sums.least = tile.least;
}

//! Sums over the four lanes that hold a row.
HSPAN_DEVICE void reduce(DenseSums& sums)
{
    HSPAN_UNROLL
    for (int32_t mask = 1; mask <= 2; mask *= 2)
    {
        sums.sum += shuffleXor64(sums.sum, mask);
        sums.count += simt::shuffleXor(sums.count, mask);
        float const least = simt::shuffleXor(sums.least, mask);
        sums.least = least < sums.least ? least : sums.least;
        sums.maximum = simt::maximumOrNan(sums.maximum, simt::shuffleXor(sums.maximum, mask));
    }
}

//! Michelot's step after a pass; clears `active` when the threshold has been reached.
HSPAN_DEVICE void takeDenseStep(DenseState& state, DenseSums const& sums)
{
    state.maximum = sums.maximum;
    float const anchor = anchorOf(sums.maximum);
    if (!(sums.maximum - sums.maximum == 0.0F))
    {
        state.anchor = NAN;
        state.active = false;
        return;
    }
    int64_t next = leastThreshold(sums.maximum, anchor);
    if (anchor == state.anchor)
    {
        int64_t const step = nextThreshold(sums.sum, sums.count);
        next = step > next ? step : next;
        // Where no score leaves the support the step was the last: it would find the same sums again.
        state.active = next != state.threshold && !(next == step && sums.least > limitOf(next));
    }
    state.anchor = anchor;
    state.threshold = next;
    state.limit = limitOf(next);
}

//! The start of a refined row, once a pass has found its greatest FP32 score. The greatest refined score is off from 0
//! by less than `slack`, so that the threshold cannot lie below -1 - slack.
HSPAN_DEVICE void startRefined(DenseState& state, Refinement& refinement, float maximum, float slack)
{
    bool const isDefined = maximum - maximum == 0.0F;
    bool const isNear = slack < 1.0F; // else there is no bound
    state.active = isDefined;
    state.maximum = maximum;
    state.anchor = isDefined && isNear ? 0.0F : NAN;
    state.threshold = isNear ? quantaOf(-1.0F - slack) : 0;
    state.limit = limitOf(state.threshold);
    refinement.shift = isDefined ? maximum : 0.0F;
}

//! Keys of a tile, and warps of a block, of the passes.
constexpr int32_t kPASS_KEYS{64};
constexpr int32_t kPASS_WARPS{4};
constexpr int32_t kPASS_ROWS{kPASS_WARPS * kROWS_OF_WARP};

//! The start of a row on the dense route, from the bound that its maxima have given.
HSPAN_DEVICE DenseState denseStart(RowBound const& known)
{
    float const anchor = anchorOf(known.maximum);
    // Below the bound by more than the rounding of the difference.
    int64_t const start = quantaOf(simt::addDown(known.bound, -anchor)) - 1;
    int64_t const least = leastThreshold(known.maximum, anchor);
    int64_t const threshold = start > least ? start : least;
    return {true, known.maximum, anchor, limitOf(threshold), threshold};
}

//! Writes the thresholds of kPASS_ROWS rows, of those on the dense route. Grid: x rows.
template <typename T>
HSPAN_KERNEL_FITTING(kPASS_WARPS* simt::kWARP_SIZE, 3)
denseThresholdKernel(LookArguments<T> arguments)
{
    using Tile = TensorTile<T, kPASS_WARPS, kPASS_KEYS>;
    HSPAN_SHARED(typename Tile::Stage, stage);
    TiledArguments<T> const& tensors = arguments.tensors;
    TilePlace const place = placeOf(tensors, kPASS_ROWS);
    int32_t const lane = simt::laneIndex();
    int32_t const warpRow = simt::warpIndex() * kROWS_OF_WARP;
    DenseState dense[kROWS_OF_LANE] = {};
    bool isDense[kROWS_OF_LANE];
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        int32_t const row = warpRow + lane / 4 + 8 * half;
        isDense[half] = place.row + row < tensors.positions && tensors.results[place.slot + row].count == kDENSE;
        if (isDense[half])
        {
            dense[half] = denseStart(arguments.bounds[place.slot + row]);
        }
    }
    if (!simt::anyInBlock(isDense[0] || isDense[1]))
    {
        return;
    }
    int64_t const image = place.image * tensors.positions * tensors.scorePitch;
    TokenRows<T> const query = Tile::operand(tensors, tensors.query + image);
    TokenRows<T> const key = Tile::operand(tensors, tensors.key + image);
    typename Tile::Query fragments;
    Tile::loadQueries(fragments, stage, query, place.row);
    while (simt::anyInBlock(dense[0].active || dense[1].active))
    {
        bool const isActive = simt::ballot(dense[0].active || dense[1].active) != 0;
        DenseSums sums[kROWS_OF_LANE] = {{0, 0, INFINITY, -INFINITY}, {0, 0, INFINITY, -INFINITY}};
        Tile::stream(stage, fragments, query, key, place.row, isActive,
            [&dense, &sums](float const(&scores)[kPASS_KEYS / 8][4], int64_t /*firstKey*/)
            {
                addTile(sums[0], scores, dense[0], 0);
                addTile(sums[1], scores, dense[1], 1);
                return false;
            });
        HSPAN_UNROLL
        for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
        {
            reduce(sums[half]);
            if (dense[half].active)
            {
                takeDenseStep(dense[half], sums[half]);
            }
        }
    }
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        if (lane % 4 == 0 && isDense[half])
        {
            DenseState const& own = dense[half];
            tensors.results[place.slot + warpRow + lane / 4 + 8 * half]
                = resultOf(true, own.maximum, own.anchor, own.threshold, kDENSE);
        }
    }
}

} // namespace hspan
