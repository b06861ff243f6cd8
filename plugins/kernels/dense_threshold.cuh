//! \file dense_threshold.cuh
//! Thresholds of rows on the dense route: Michelot's steps whose sums come from passes over recomputed scores.
//!
//! A pass keeps only sum, count, maximum and the least score above the threshold. A step after which no score leaves
//! the support is the last, so no pass is spent on confirming it.
//!
//! In FP32 a row that is refined (refined_score.cuh) has a first pass that finds its greatest FP32 score; the following
//! ones take refined scores, if a row of the block needs them.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"
#include "fma_tile.cuh"
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

//! Keys of a tile, and warps of a block, of the passes.
constexpr int32_t kPASS_KEYS{64};
constexpr int32_t kPASS_WARPS{4};
constexpr int32_t kPASS_ROWS{kPASS_WARPS * kROWS_OF_WARP};

//! The tile that computes the scores of a type.
template <typename T>
struct PassOf
{
    using Tile = TensorTile<T, kPASS_WARPS, kPASS_KEYS>;
};

template <>
struct PassOf<float>
{
    using Tile = FmaTile<kPASS_WARPS, kPASS_KEYS>;
};

//! A row as it enters the passes.
struct DenseStart
{
    DenseState state;
    float least; //!< at or below the threshold; -inf where nothing is known
    Refinement refinement;
};

//! The start of a row of FP16 or BF16, from the bound that its maxima have given.
HSPAN_DEVICE DenseStart denseStart(RowBound const& known)
{
    float const anchor = anchorOf(known.maximum);
    // Below the bound by more than the rounding of the difference.
    int64_t const start = quantaOf(simt::addDown(known.bound, -anchor)) - 1;
    int64_t const least = leastThreshold(known.maximum, anchor);
    int64_t const threshold = start > least ? start : least;
    return {{true, known.maximum, anchor, limitOf(threshold), threshold}, known.bound, {}};
}

//! The same of FP32: coarse scores give a bound, but the maximum, and with it the anchor, is sure only near 0.
HSPAN_DEVICE DenseStart denseStart(RowBound const& known, CoarseRow const& coarse)
{
    bool const isKnown = coarse.error < INFINITY;
    float const least
        = isKnown ? simt::addDown(simt::addDown(known.bound, coarse.error) * coarse.toScore, coarse.shift) : -INFINITY;
    float const maximum = known.maximum * coarse.toScore + coarse.shift;
    float const error = coarse.error * coarse.toScore;
    bool const isNear = isKnown && maximum + error < kNEAR_ZERO && maximum - error > -kNEAR_ZERO;
    int64_t const threshold = isNear ? quantaOf(least) - 1 : 0;
    return {{true, -INFINITY, isNear ? 0.0F : NAN, limitOf(threshold), threshold}, least, {coarse.grid, 0.0F}};
}

//! The start of a refined row, once a pass has found its greatest FP32 score. The greatest refined score is off from 0
//! by less than the slack, so that the threshold cannot lie below -1 less the slack.
HSPAN_DEVICE void startRefined(DenseStart& row, float maximum, float slack)
{
    bool const isDefined = maximum - maximum == 0.0F;
    bool const isNear = slack < 1.0F; // else there is no bound
    float const known = simt::addDown(row.least, -maximum);
    float const start = simt::subtract(known > -1.0F ? known : -1.0F, slack);
    int64_t const threshold = isNear ? quantaOf(start) - 1 : 0;
    row.state = {isDefined, maximum, isDefined && isNear ? 0.0F : NAN, limitOf(threshold), threshold};
    row.refinement.shift = isDefined ? maximum : 0.0F;
}

//! Writes the thresholds of kPASS_ROWS rows, of those on the dense route. Grid: x rows.
template <typename T>
HSPAN_KERNEL_FITTING(kPASS_WARPS* simt::kWARP_SIZE, 3)
denseThresholdKernel(LookArguments<T> arguments)
{
    using Tile = typename PassOf<T>::Tile;
    HSPAN_SHARED(typename Tile::Stage, stage);
    TiledArguments<T> const& tensors = arguments.tensors;
    TilePlace const place = placeOf(tensors, kPASS_ROWS);
    int32_t const lane = simt::laneIndex();
    int32_t const warpRow = simt::warpIndex() * kROWS_OF_WARP;
    int64_t const rowsBefore = place.image * tensors.positions;
    DenseStart rows[kROWS_OF_LANE] = {};
    bool isDense[kROWS_OF_LANE];
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        int32_t const row = warpRow + lane / 4 + 8 * half;
        isDense[half] = place.row + row < tensors.positions && tensors.results[place.slot + row].count == kDENSE;
        if (isDense[half])
        {
            RowBound const known = arguments.bounds[place.slot + row];
            if constexpr (Tile::kHAS_REFINED)
            {
                rows[half] = denseStart(known, arguments.coarseRows[rowsBefore + place.row + row]);
            }
            else
            {
                rows[half] = denseStart(known);
            }
        }
    }
    if (!simt::anyInBlock(isDense[0] || isDense[1]))
    {
        return;
    }
    auto const query = Tile::operand(tensors, tensors.query + rowsBefore * tensors.scorePitch);
    auto const key = Tile::operand(tensors, tensors.key + rowsBefore * tensors.scorePitch);
    typename Tile::Query fragments;
    Tile::loadQueries(fragments, stage, query, place.row);
    bool isFirst = true;
    bool hasRefined = false; // whether this and the following passes take refined scores
    while (simt::anyInBlock(rows[0].state.active || rows[1].state.active))
    {
        bool const isActive = simt::ballot(rows[0].state.active || rows[1].state.active) != 0;
        DenseSums sums[kROWS_OF_LANE] = {{0, 0, INFINITY, -INFINITY}, {0, 0, INFINITY, -INFINITY}};
        auto const consume = [&rows, &sums](auto const& scores, int64_t /*firstKey*/)
        {
            addTile(sums[0], scores, rows[0].state, 0);
            addTile(sums[1], scores, rows[1].state, 1);
        };
        if constexpr (Tile::kHAS_REFINED)
        {
            if (hasRefined)
            {
                using Refined = typename Tile::Refined;
                typename Refined::Query const refined{{rows[0].refinement, rows[1].refinement}};
                Refined::stream(stage, refined, query, key, place.row, isActive, consume);
            }
            else
            {
                Tile::stream(stage, fragments, query, key, place.row, isActive, consume);
            }
        }
        else
        {
            Tile::stream(stage, fragments, query, key, place.row, isActive, consume);
        }
        HSPAN_UNROLL
        for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
        {
            DenseStart& row = rows[half];
            reduce(sums[half]);
            if (Tile::kHAS_REFINED && isFirst && row.state.active && row.refinement.grid > 0.0F)
            {
                startRefined(row, sums[half].maximum, slackOf(row.refinement.grid, tensors.scoreChannels));
            }
            else if (row.state.active)
            {
                takeDenseStep(row.state, sums[half]);
            }
        }
        if constexpr (Tile::kHAS_REFINED)
        {
            hasRefined
                = hasRefined || simt::anyInBlock(isFirst && rows[0].refinement.grid + rows[1].refinement.grid > 0.0F);
            isFirst = false;
        }
    }
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        if (lane % 4 == 0 && isDense[half])
        {
            DenseState const& own = rows[half].state;
            RowResult result
                = resultOf(own.maximum - own.maximum == 0.0F, own.maximum, own.anchor, own.threshold, kDENSE);
            result.refinement = rows[half].refinement;
            tensors.results[place.slot + warpRow + lane / 4 + 8 * half] = result;
        }
    }
}

} // namespace hspan
