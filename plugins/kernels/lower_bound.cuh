//! \file lower_bound.cuh
//! From a row's maxima, a lower bound of its threshold.
//!
//! For any set B of a row's scores (sum of B - 1) / |B| is at most the threshold of B (its greatest value over all
//! subsets is the threshold: Condat 2016, section 2), which is at most that of the row. Newton's step takes such a set,
//! the maxima above the last result, so whatever earlier steps have rounded, a result is a lower bound up to the
//! rounding of its own step. With u = 2^-24 and distances from the row's maximum, of which those that are added lie in
//! [-1, 0]: subtracting the maximum u; a sum of at most 40 additions 40 u a number (36 in a lane, 4 between lanes);
//! subtracting 1, 2 u; reciprocal and product 3 u; the margin itself u: 47 u, of the 64 u that are subtracted. The
//! integer threshold of exact_threshold.cuh lies within 2^-40 of the exact one, which the rest covers.
//!
//! Coarse maxima (coarse_copies.cuh) lie within an error e of the scores whose place they take, and a threshold does
//! not fall where scores rise: theirs less e is a lower bound, and a key whose coarse score is not above theirs less 2
//! e is no candidate.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "look_arguments.cuh"

namespace hspan
{

constexpr int32_t kLANES_OF_BOUND{16}; //!< that share a row
constexpr int32_t kBOUND_BLOCK{256};   //!< threads
constexpr int32_t kBOUND_ROWS{kBOUND_BLOCK / kLANES_OF_BOUND};
constexpr int32_t kQUADS_AT_ONCE{4 * kLANES_OF_BOUND}; //!< maxima that these lanes load at a time

constexpr float kBOUND_MARGIN{1.0F / (1 << 18)};

//! A step that gains less than this is the last: the second look takes few more scores for it. Long rows have more
//! scores beside the bound.
template <int32_t kQUADS>
constexpr float kSMALL_STEP{1.0F / (kQUADS > 5 ? 256 : 64)};
constexpr int32_t kMOST_STEPS{6};

//! Steps on the greatest maxima of the lanes, then of what they load at a time: smaller sets of scores, near enough.
constexpr int32_t kSTEPS_OF_LANES{1};
constexpr int32_t kSTEPS_OF_QUADS{1};

struct LowerBoundArguments
{
    float const* maxima;
    RowBound* bounds;
    int32_t maximaOfRow;
    CoarseRow const* coarseRows; //!< (N, L); the rest is for these alone
    int64_t slotsPerImage;
    int64_t firstSlot;
    int32_t positions;
};

//! What is known of the coarse scores of a row of the chunk; past the last row of an image, of that.
HSPAN_DEVICE CoarseRow coarseRowAt(LowerBoundArguments const& arguments, int64_t row)
{
    int64_t const line = arguments.firstSlot + row;
    int64_t const image = line / arguments.slotsPerImage;
    int64_t const inImage = line - image * arguments.slotsPerImage;
    int64_t const last = arguments.positions - 1;
    return arguments.coarseRows[image * arguments.positions + (inImage < last ? inImage : last)];
}

//! Newton's step for the lanes of a row together, from their sums and counts.
HSPAN_DEVICE float boundStep(float sum, int32_t count)
{
    HSPAN_UNROLL
    for (int32_t mask = kLANES_OF_BOUND / 2; mask > 0; mask /= 2)
    {
        sum = simt::add(sum, simt::shuffleXor(sum, mask));
        count += simt::shuffleXor(count, mask);
    }
    return simt::subtract(sum, 1.0F) * simt::reciprocal(simt::floatFromInteger(count));
}

//! For kQUADS times kQUADS_AT_ONCE maxima a row, or fewer where not kIS_WHOLE. Grid: x rows of the chunk.
template <int32_t kQUADS, bool kIS_WHOLE, bool kIS_COARSE>
HSPAN_KERNEL(kBOUND_BLOCK)
lowerBoundKernel(LowerBoundArguments arguments)
{
    int64_t const row = simt::blockX() * kBOUND_ROWS + simt::threadIndex() / kLANES_OF_BOUND;
    int32_t const own = simt::threadIndex() % kLANES_OF_BOUND;
    auto const* const quads
        = reinterpret_cast<simt::Float4 const*>(arguments.maxima + row * arguments.maximaOfRow) + own;
    int32_t const left = arguments.maximaOfRow / 4 - own; // quads from the lane's first on
    float distance[4 * kQUADS];
    float quadGreatest[kQUADS];
    float greatest = -INFINITY;
    HSPAN_UNROLL
    for (int32_t i = 0; i < kQUADS; ++i)
    {
        simt::Float4 quad{-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        if (kIS_WHOLE || i * kLANES_OF_BOUND < left)
        {
            quad = quads[i * kLANES_OF_BOUND];
        }
        distance[4 * i] = quad.x;
        distance[4 * i + 1] = quad.y;
        distance[4 * i + 2] = quad.z;
        distance[4 * i + 3] = quad.w;
        quadGreatest[i] = simt::maximumOrNan(simt::maximumOrNan(quad.x, quad.y), simt::maximumOrNan(quad.z, quad.w));
        greatest = simt::maximumOrNan(greatest, quadGreatest[i]);
    }
    float maximum = greatest;
    HSPAN_UNROLL
    for (int32_t mask = kLANES_OF_BOUND / 2; mask > 0; mask /= 2)
    {
        maximum = simt::maximumOrNan(maximum, simt::shuffleXor(maximum, mask));
    }
    CoarseRow coarse;
    if constexpr (kIS_COARSE)
    {
        coarse = coarseRowAt(arguments, row);
    }
    auto const below = [&](float score)
    {
        float const distance = simt::subtract(score, maximum);
        if constexpr (kIS_COARSE)
        {
            return distance * coarse.toScore;
        }
        else
        {
            return distance;
        }
    };
    HSPAN_UNROLL
    for (float& each : distance)
    {
        each = below(each);
    }
    float bound = -1.0F; // relative to the maximum; of one score
    HSPAN_UNROLL
    for (int32_t step = 0; step < kSTEPS_OF_LANES; ++step)
    {
        float sum = 0.0F;
        int32_t count = 0;
        simt::addIfGreater(sum, count, below(greatest), bound);
        bound = boundStep(sum, count);
    }
    HSPAN_UNROLL
    for (int32_t step = 0; step < kSTEPS_OF_QUADS; ++step)
    {
        float sum = 0.0F;
        int32_t count = 0;
        HSPAN_UNROLL
        for (float const each : quadGreatest)
        {
            simt::addIfGreater(sum, count, below(each), bound);
        }
        bound = boundStep(sum, count);
    }
    bool moves = true;
    for (int32_t step = 0; step < kMOST_STEPS && simt::ballot(moves) != 0; ++step)
    {
        float sum = 0.0F;
        int32_t count = 0;
        HSPAN_UNROLL
        for (float const each : distance)
        {
            simt::addIfGreater(sum, count, each, bound);
        }
        float const next = boundStep(sum, count);
        moves = simt::subtract(next, bound) > kSMALL_STEP<kQUADS>;
        bound = next;
    }
    if (own == 0)
    {
        bool const isDefined = maximum - maximum == 0.0F;
        float known = simt::subtract(bound, kBOUND_MARGIN);
        if constexpr (kIS_COARSE)
        {
            known = simt::addDown(known * simt::divide(1.0F, coarse.toScore), -2.0F * coarse.error);
        }
        float const least = simt::addDown(maximum, known);
        arguments.bounds[row] = {maximum, isDefined ? least : INFINITY};
    }
}

} // namespace hspan
