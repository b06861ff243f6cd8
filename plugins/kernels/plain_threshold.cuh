//! \file plain_threshold.cuh
//! The sparsemax threshold of every row, by streaming Newton passes.
//!
//! F(t) = sum_j max(s_j - t, 0) is convex, piecewise linear and falling; tau is the root of F(t) = 1. Newton's step
//! from t is t' = t + (F(t) - 1) / n(t) with n(t) the number of scores above t, which equals
//! (sum of scores above t - 1) / n(t): Michelot 1986; Condat 2016, section 2. A tangent of a convex function lies
//! below it, so t' <= tau from wherever it starts, and from then on t rises. It starts at max - 1 <= tau.
//!
//! Why it ends. While t rises, the scores above t form a shrinking set. If the set does not shrink, t' was exact for it
//! and the row is done; else n fell by at least one, which can happen at most L times. Only rounding can break this
//! pattern: it can put t a little above tau, so that the next step goes down, or leave t so far below tau that the
//! same set needs another step. Such passes are charged to a budget of kMAX_REPAIRS, so a row ends after at most
//! (kMAX_REPAIRS + 1)(L + 1) passes whatever the arithmetic does. Gaussian rows of 4096 scores take 1 to 11 passes, the
//! most where they are dense.
//!
//! Why it is accurate for any L. A weight may be as small as 1 / L while the threshold is of order 1 or 1e4, so a
//! threshold in one float would lose the weights' digits. t is held as two floats, weights s - t carry a relative
//! error of 2u (u = 2^-24), and F is a sum of four at a time accumulated as two floats: its relative error is 5u.
//! A row settles on a set only when F was at most 2 one step earlier, or is within 16u of 1 now; the weights then sum
//! to 1 within 21u, for 2^20 flat positions as for two.
//!
//! A block with rows whose scores FP32 rounds too coarsely takes refined scores after the first pass
//! (refined_score.cuh), and one more pass for their greatest.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "plain_score_tile.cuh"
#include "two_float.cuh"

namespace hspan
{

constexpr int32_t kMAX_REPAIRS{4};

//! 16 u: how far from 1 the sum of weights may be for a row to settle at once.
constexpr float kSETTLED{1.0F / (1 << 20)};

//! What a lane knows of the rows of its warp at the current thresholds.
struct Excesses
{
    TwoFloat sum[kROWS_PER_WARP];  //!< F(t)
    int32_t count[kROWS_PER_WARP]; //!< n(t)
};

//! The state of one row. Row r of a warp lives in lane r; lanes r + 8, r + 16, r + 24 mirror it.
struct RowState
{
    float maximum;
    TwoFloat threshold;
    int32_t count;   //!< n at the previous threshold
    int32_t repairs; //!< passes that rounding made necessary
    bool wentUp;     //!< whether the previous step was upward
    bool wasNear;    //!< whether F was at most 2 at the previous threshold
    bool active;     //!< whether the threshold still moves
};

//! The element of `perRow` that belongs to this lane's row.
template <typename T>
HSPAN_DEVICE T ownRow(T const (&perRow)[kROWS_PER_WARP])
{
    T own = perRow[0];
    HSPAN_UNROLL
    for (int32_t r = 1; r < kROWS_PER_WARP; ++r)
    {
        if (simt::laneIndex() % kROWS_PER_WARP == r)
        {
            own = perRow[r];
        }
    }
    return own;
}

//! Start of the iteration. Rows past the end and rows without a sparsemax are inactive; the latter get NaN.
HSPAN_DEVICE RowState initialState(float maximum, bool inside)
{
    bool const defined = maximum - maximum == 0.0F; // false for NaN, +inf and -inf
    RowState state = {};
    state.maximum = maximum;
    state.threshold = defined ? exactSum(maximum, -1.0F) : TwoFloat{NAN, NAN};
    state.count = INT32_MAX;
    state.repairs = 0;
    state.wentUp = true;
    state.wasNear = false;
    state.active = inside && defined;
    return state;
}

//! One Newton step from F and n at the row's threshold; clears `active` when it was the last.
HSPAN_DEVICE void takeStep(RowState& state, TwoFloat sum, int32_t count)
{
    auto const n = static_cast<float>(count);
    TwoFloat const above = plus(sum, -1.0F);
    TwoFloat next = plus(state.threshold, quotient(above, n));
    // tau <= max - 1 / n for every n that counts at least the support: keeps the greatest score above the threshold.
    TwoFloat const ceiling = plus(quotient({-1.0F, 0.0F}, n), state.maximum);
    if (isGreater(next, ceiling))
    {
        next = ceiling;
    }
    bool const up = isGreater(next, state.threshold);
    bool const down = isGreater(state.threshold, next);
    bool const sameSupport = state.wentUp ? count >= state.count : count <= state.count;
    bool const isNear = above.high <= kSETTLED && above.high >= -kSETTLED;
    bool const settled = sameSupport && (state.wasNear || isNear);
    state.repairs += down || sameSupport ? 1 : 0;
    state.active = (up || down) && !settled && state.repairs <= kMAX_REPAIRS;
    state.threshold = next;
    state.count = count;
    state.wentUp = up;
    state.wasNear = above.high <= 1.0F;
}

//! Adds one tile of scores to the lane's sums. `own` is the threshold of row lane % 8 of the warp; held by the lanes
//! and passed round, the thresholds take no registers while scores are summed.
template <int32_t kGROUPS>
HSPAN_DEVICE void addExcesses(Excesses& excesses, float const (&scores)[kROWS_PER_WARP][kGROUPS], TwoFloat const& own)
{
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        TwoFloat const threshold = {simt::shuffle(own.high, r), simt::shuffle(own.low, r)};
        float tileSum = 0.0F;
        HSPAN_UNROLL
        for (int32_t group = 0; group < kGROUPS; ++group)
        {
            float const weight = excess(scores[r][group], threshold);
            if (weight > 0.0F)
            {
                tileSum = simt::add(tileSum, weight);
                excesses.count[r] += 1;
            }
        }
        excesses.sum[r] = plus(excesses.sum[r], tileSum);
    }
}

//! Sums over the lanes of the warp; every lane ends with the same totals.
HSPAN_DEVICE void reduceExcesses(Excesses& excesses)
{
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        HSPAN_UNROLL
        for (int32_t mask = simt::kWARP_SIZE / 2; mask > 0; mask /= 2)
        {
            TwoFloat const other
                = {simt::shuffleXor(excesses.sum[r].high, mask), simt::shuffleXor(excesses.sum[r].low, mask)};
            excesses.sum[r] = plus(excesses.sum[r], other);
            excesses.count[r] += simt::shuffleXor(excesses.count[r], mask);
        }
    }
}

template <int32_t kGROUPS>
HSPAN_DEVICE void raiseMaxima(float (&maxima)[kROWS_PER_WARP], float const (&scores)[kROWS_PER_WARP][kGROUPS])
{
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        HSPAN_UNROLL
        for (int32_t group = 0; group < kGROUPS; ++group)
        {
            maxima[r] = simt::maximumOrNan(maxima[r], scores[r][group]);
        }
    }
}

//! Row maxima of the block's tile: the maximum of the row that belongs to this lane.
template <typename T>
HSPAN_DEVICE float rowMaximum(
    ScoreStage& stage, ScoreOperands<T> const& operands, Refinement const& own, bool isRefined)
{
    float maxima[kROWS_PER_WARP];
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        maxima[r] = -INFINITY;
    }
    streamScores(stage, operands, own, isRefined, true,
        [&maxima](auto const& scores, int64_t /*firstKey*/) { raiseMaxima(maxima, scores); });
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        HSPAN_UNROLL
        for (int32_t mask = simt::kWARP_SIZE / 2; mask > 0; mask /= 2)
        {
            maxima[r] = simt::maximumOrNan(maxima[r], simt::shuffleXor(maxima[r], mask));
        }
    }
    return ownRow(maxima);
}

//! The grid of query row `row`; 0 past the last one. The warp calls it together.
template <typename T>
HSPAN_DEVICE float plainGridOf(ScoreOperands<T> const& operands, float const* keyBounds, int64_t row)
{
    float const keySquares = greatestSquares(keyBounds, operands.positions);
    float squares = 0.0F;
    for (int32_t channel = 0; row < operands.positions && channel < operands.channels; ++channel)
    {
        float const q
            = simt::toFloat(operands.query[channel * operands.strides.channel + row * operands.strides.position]);
        squares = simt::multiplyAdd(q, q, squares);
    }
    return gridOf(squares * keySquares);
}

//! Writes the threshold of every row. `keyBounds` as keyBoundKernel leaves them, for types with refined rows. Grid: x
//! row tiles, y batches (strided).
template <typename T>
HSPAN_KERNEL_FITTING(kTHREADS_PER_BLOCK, 3)
thresholdKernel(T const* query, T const* key, float const* keyBounds, PlainRow* rows, Strides strides, int64_t batch,
    int32_t channels, int32_t positions)
{
    HSPAN_SHARED(ScoreStage, stage);
    int32_t const lane = simt::laneIndex();
    auto const firstRow = static_cast<int32_t>(simt::blockX() * kROWS_PER_TILE);
    int64_t const row = static_cast<int64_t>(firstRow) + simt::warpIndex() * kROWS_PER_WARP + lane % kROWS_PER_WARP;
    for (int64_t n = simt::blockY(); n < batch; n += simt::gridY())
    {
        ScoreOperands<T> const operands
            = {query + n * strides.batch, key + n * strides.batch, strides, channels, positions, firstRow};
        Refinement own = {};
        bool isRefined = false; // whether a row of the block is
        float maximum = rowMaximum(stage, operands, own, isRefined);
        if constexpr (kIS_REFINED_TYPE<T>)
        {
            float const grid = plainGridOf(operands, keyBounds + n * boundsPerImage(positions), row);
            if (grid > 0.0F && maximum - maximum == 0.0F)
            {
                own = {grid, maximum};
            }
            isRefined = simt::anyInBlock(own.grid > 0.0F);
            if (isRefined)
            {
                maximum = rowMaximum(stage, operands, own, isRefined);
            }
        }
        RowState state = initialState(maximum, row < positions);
        while (simt::anyInBlock(state.active))
        {
            bool const isActive = simt::ballot(state.active) != 0;
            Excesses excesses = {};
            streamScores(stage, operands, own, isRefined, isActive,
                [&excesses, &state](auto const& scores, int64_t /*firstKey*/)
                { addExcesses(excesses, scores, state.threshold); });
            reduceExcesses(excesses);
            TwoFloat const sum = ownRow(excesses.sum);
            int32_t const count = ownRow(excesses.count);
            if (state.active)
            {
                takeStep(state, sum, count);
            }
        }
        if (lane < kROWS_PER_WARP && row < positions)
        {
            rows[n * positions + row] = {state.threshold, own};
        }
    }
}

} // namespace hspan
