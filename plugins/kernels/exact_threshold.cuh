//! \file exact_threshold.cuh
//! Sparsemax thresholds in integers: the same bits whatever the order in which scores are summed.
//!
//! Scores near a row's maximum are read as whole numbers of quanta, Z(s) = round((s - anchor) 2^41), where the anchor
//! is 0 for a maximum within +-2 and else the maximum rounded to an integer. The subtraction is exact: the scores that
//! matter are at most 1 below the maximum, so that s / anchor lies within [1/2, 2] (Sterbenz). Sums of Z are 64-bit
//! integers, hence independent of order, and Michelot's step (Michelot 1986; Condat 2016, section 2)
//!
//!     T <- floor((sum of Z above T - 2^41) / number of Z above T)
//!
//! has one fixed point: were T1 < T2 both fixed, then 2^41 + n1 > sum (Z - T1) over Z > T1
//! >= sum (Z - T2) over Z > T2 + n1 (T2 - T1) >= 2^41 + n1, where the middle step holds because each of the n1 numbers
//! above T1 is at least T1 + 1. From a start at or below it, T rises to that fixed point and stops. So the threshold of
//! a row is a function of the multiset of its scores: list or stream, tiles and schedule cannot show in it.
//!
//! What the quanta cost: a Z is off by half a quantum, T by one more. Over n positions the weights sum to 1 within
//! 1.5 n 2^-41: u / 8 (u = 2^-24) for n = 2^14, 12u for 2^20. |Z| <= 3 * 2^41, so sums fit 64 bits up to n = 2^20.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "refined_score.cuh"

namespace hspan
{

constexpr int64_t kONE{int64_t{1} << 41};            //!< 1 in quanta
constexpr float kQUANTUM{1.0F / (int64_t{1} << 41)}; //!< one quantum

//! Maxima below this are near enough to 0 to need no other anchor.
constexpr float kNEAR_ZERO{2.0F};

//! Positions whose sums fit 64 bits.
constexpr int64_t kMAX_EXACT_POSITIONS{int64_t{1} << 20};

//! The anchor of a row with this maximum. NaN for a maximum that is NaN or infinite.
HSPAN_DEVICE float anchorOf(float maximum)
{
    float const rounded = maximum < kNEAR_ZERO && maximum > -kNEAR_ZERO ? 0.0F : simt::roundToInteger(maximum);
    return maximum - maximum == 0.0F ? rounded : NAN;
}

//! A score relative to the anchor, in quanta; for |score - anchor| < 2^20.
HSPAN_DEVICE int64_t quantaOf(float relative)
{
    return simt::integerFromFloat(relative * static_cast<float>(kONE));
}

//! The next float towards minus infinity, of a number that is not zero.
HSPAN_DEVICE float nextBelow(float value)
{
    int32_t const bits = simt::bitsFromFloat(value);
    return simt::floatFromBits(value > 0.0F ? bits - 1 : bits + 1);
}

//! The float for which z > limit if and only if round(z 2^41) > threshold, ties to even, for every float z.
HSPAN_DEVICE float limitOf(int64_t threshold)
{
    // The border is threshold + 1/2; in half quanta it is an odd integer of at most 47 bits.
    int64_t const border = 2 * threshold + 1;
    float const nearest = simt::floatFromInteger(border);
    int64_t const rest = border - simt::integerFromFloat(nearest);
    float const limit = nearest * (0.5F * kQUANTUM);
    // A z on the border itself rounds to the even neighbor, which is above an odd threshold.
    bool const includesNearest = rest < 0 || (rest == 0 && (threshold & 1) != 0);
    return includesNearest ? nextBelow(limit) : limit;
}

//! floor(dividend / divisor), divisor > 0.
HSPAN_DEVICE int64_t floorQuotient(int64_t dividend, int64_t divisor)
{
    int64_t const quotient = dividend / divisor;
    return quotient * divisor > dividend ? quotient - 1 : quotient;
}

//! Michelot's step.
HSPAN_DEVICE int64_t nextThreshold(int64_t sum, int64_t count)
{
    return floorQuotient(sum - kONE, count);
}

//! A threshold at or below that of every row with this maximum: maximum - 1.
HSPAN_DEVICE int64_t leastThreshold(float maximum, float anchor)
{
    return quantaOf(maximum - anchor) - kONE;
}

//! What the kernels that add up values need of a row: weight = score - anchor - high - low where score - anchor >
//! limit.
struct alignas(16) RowResult
{
    float anchor; //!< NaN for a row without a sparsemax
    float limit;  //!< the least weight's border
    float high;   //!< the threshold as two floats
    float low;
    float largest; //!< the greatest weight
    int32_t count; //!< entries in the row's list, or kDENSE
    Refinement refinement;
};

constexpr int32_t kDENSE{-1};

//! The weight of a score of the support, relative to the anchor. Relative error 2u (two_float.cuh's excess()).
HSPAN_DEVICE float relativeWeight(RowResult const& row, float relative)
{
    return simt::subtract(simt::subtract(relative, row.high), row.low);
}

//! The weight of a score; 0 outside the support.
HSPAN_DEVICE float weightOf(RowResult const& row, float score)
{
    float const relative = simt::subtract(score, row.anchor);
    return relative > row.limit ? relativeWeight(row, relative) : 0.0F;
}

//! The result of a row with a threshold; of one without, if `defined` is false.
HSPAN_DEVICE RowResult resultOf(bool defined, float maximum, float anchor, int64_t threshold, int32_t count)
{
    RowResult row = {NAN, NAN, NAN, NAN, 1.0F, count, {}};
    if (defined)
    {
        float const high = simt::floatFromInteger(threshold);
        float const low = simt::floatFromInteger(threshold - simt::integerFromFloat(high));
        row.anchor = anchor;
        row.limit = limitOf(threshold);
        row.high = high * kQUANTUM;
        row.low = low * kQUANTUM;
        row.largest = weightOf(row, maximum);
    }
    return row;
}

//! Sums of Z and counts that a lane gathers for one row from a stream of scores.
//!
//! A relative score below 8 is split by adding and subtracting constants whose last places are 2^-19 and 2^-41: the
//! bits of the two sums, read as integers, are then the parts of Z plus the bits of the constants. Both parts of a tile
//! add up in 32 bits: at most 2^21 each, at most 2^8 of them. Unsigned, because sums against an anchor that turns out
//! wrong are dropped but may wrap before.
struct TileSum
{
    uint32_t coarse; //!< units of 2^-19
    uint32_t fine;   //!< units of 2^-41
    int32_t count;
    float least; //!< the least relative score above the limit
};

constexpr float kCOARSE{24.0F};                   //!< 1.5 * 2^23 * 2^-19
constexpr float kFINE{1.5F / (int64_t{1} << 18)}; //!< 1.5 * 2^23 * 2^-41
constexpr uint32_t kCOARSE_BITS{0x41c00000U};
constexpr uint32_t kFINE_BITS{0x36c00000U};
constexpr int32_t kFINE_BITS_OF_COARSE{22};
constexpr int64_t kFINE_PER_COARSE{int64_t{1} << kFINE_BITS_OF_COARSE};

HSPAN_DEVICE void addScore(TileSum& sum, float relative, float limit)
{
    bool const above = relative > limit;
    float const z = above ? relative : 0.0F;
    float const shifted = simt::add(z, kCOARSE);
    float const rest = simt::subtract(z, simt::subtract(shifted, kCOARSE));
    sum.coarse += static_cast<uint32_t>(simt::bitsFromFloat(shifted)) - kCOARSE_BITS;
    sum.fine += static_cast<uint32_t>(simt::bitsFromFloat(simt::add(rest, kFINE))) - kFINE_BITS;
    sum.count += above ? 1 : 0;
    sum.least = above && relative < sum.least ? relative : sum.least;
}

HSPAN_DEVICE int64_t quantaOf(TileSum const& sum)
{
    return static_cast<int32_t>(sum.coarse) * kFINE_PER_COARSE + static_cast<int32_t>(sum.fine);
}

//! The value held by the lane whose index differs in the bits of `laneMask`, for 64 bits.
HSPAN_DEVICE int64_t shuffleXor64(int64_t value, int32_t laneMask)
{
    auto const word = static_cast<uint64_t>(value);
    uint32_t const low = simt::shuffleXor(static_cast<uint32_t>(word), laneMask);
    uint32_t const high = simt::shuffleXor(static_cast<uint32_t>(word >> 32U), laneMask);
    return static_cast<int64_t>(static_cast<uint64_t>(high) << 32U | low);
}

} // namespace hspan
