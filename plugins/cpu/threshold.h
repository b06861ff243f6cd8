//! \file threshold.h
//! Sparsemax thresholds of rows of scores: a bound from a subset, and the exact one by Newton's method.
//!
//! F(t) = sum_j max(s_j - t, 0) is convex, falling and piecewise linear; the threshold solves F(t) = 1. Newton's step
//! t + (F(t) - 1) / n(t), n(t) the number of scores above t, never passes the root from below (Michelot 1986; Condat
//! 2016, section 2). Adding scores to a set never lowers its threshold, so that of a subset is a lower bound.
#pragma once

#include "simd.h"

namespace hspan::cpu
{
namespace
{

constexpr double kROUNDING = 0x1p-24; //!< u of a float

//! A threshold as the sum of two floats: one alone would lose the digits of small weights.
struct Split
{
    float high;
    float low;
};

HSPAN_INLINE Split split(double x)
{
    float const high = static_cast<float>(x);
    return {high, static_cast<float>(x - high)};
}

//! A float that is not above x.
HSPAN_INLINE float floatBelow(double x)
{
    float const nearest = static_cast<float>(x);
    return nearest > x ? __builtin_nextafterf(nearest, -__builtin_inff()) : nearest;
}

//! max(score - threshold, 0) with a relative error of at most 2u: subtracting nearby floats is exact (Sterbenz).
HSPAN_INLINE float excess(float score, Split threshold)
{
    float const difference = (score - threshold.high) - threshold.low;
    return difference > 0.0F ? difference : 0.0F;
}

HSPAN_INLINE Vec excess(Vec score, Vec high, Vec low)
{
    return larger((score - high) - low, Vec{});
}

//! A lower bound of the row's threshold: that of the maxima alone, less what rounding may have added.
//! \param maxima [groups][kLANES], different scores of the row, or -inf; the greatest of all is among them and finite.
double thresholdBound(float const* maxima, int64_t groups)
{
    Vec maximum = load(maxima);
    for (int64_t g = 1; g < groups; ++g)
    {
        maximum = larger(load(maxima + g * kLANES), maximum);
    }
    float const largest = largestLane(maximum);
    Vec const shift = broadcast(largest);
    double t = -1; // relative to the greatest score
    constexpr int kPASSES = 16;
    for (int pass = 0; pass < kPASSES; ++pass)
    {
        Vec const bound = broadcast(static_cast<float>(t));
        Vec sum{};
        IntVec count{};
        for (int64_t g = 0; g < groups; ++g)
        {
            Vec const above = (load(maxima + g * kLANES) - shift) - bound;
            sum += larger(above, Vec{});
            count -= above > Vec{};
        }
        double total = 0;
        for (int64_t i = 0; i < kLANES; ++i)
        {
            total += sum[i];
        }
        double const rise = (total - 1) / static_cast<double>(sumOfLanes(count));
        if (!(rise > 1e-4 * -t))
        {
            break; // what a further pass could rise is not worth it
        }
        t += rise;
    }
    // Each pass rounds two differences and a chain of `groups` sums of numbers below 1; Newton divides by their number.
    return largest + t - 2 * static_cast<double>(groups + 4) * kROUNDING;
}

//! F and n at a threshold.
struct Surplus
{
    double sum;
    int64_t count;
};

HSPAN_INLINE Surplus surplusAbove(float const* scores, int64_t vectors, Split threshold)
{
    constexpr int64_t kCHAIN = 8; // sums in float, then in double
    Vec const high = broadcast(threshold.high);
    Vec const low = broadcast(threshold.low);
    DoubleVec total{};
    IntVec count{};
    for (int64_t start = 0; start < vectors; start += kCHAIN)
    {
        int64_t const end = start + kCHAIN < vectors ? start + kCHAIN : vectors;
        Vec sum{};
        for (int64_t v = start; v < end; ++v)
        {
            Vec const above = excess(load(scores + v * kLANES), high, low);
            sum += above;
            count -= above > Vec{};
        }
        total += __builtin_convertvector(sum, DoubleVec);
    }
    return {sumOfLanes(total), sumOfLanes(count)};
}

//! The threshold of a row. Given the scores, the weights sum to 1 within 16u.
//! \param scores [vectors][kLANES]; -inf counts for nothing, NaN is not allowed.
//! \param bound not above the threshold.
Split threshold(float const* scores, int64_t vectors, double bound)
{
    double t = bound;
    Surplus before{__builtin_inf(), -1};
    // Each pass lowers the count or is charged to the budget, so the loop ends.
    for (int budget = 4;;)
    {
        Surplus const surplus = surplusAbove(scores, vectors, split(t));
        if (surplus.count == 0)
        {
            return split(t);
        }
        double const surplusOverOne = surplus.sum - 1;
        t += surplusOverOne / static_cast<double>(surplus.count);
        bool const stoodStill = surplus.count == before.count;
        // A sum that was large one pass before left a rounding error of its own size in t.
        bool const isExact = __builtin_fabs(surplusOverOne) <= 16 * kROUNDING || before.sum <= 2;
        if (stoodStill && isExact)
        {
            return split(t);
        }
        if (before.count >= 0 && surplus.count >= before.count && --budget == 0)
        {
            return split(t);
        }
        before = surplus;
    }
}

//! Replaces scores by weights.
void weigh(float* scores, int64_t vectors, Split threshold)
{
    Vec const high = broadcast(threshold.high);
    Vec const low = broadcast(threshold.low);
    for (int64_t v = 0; v < vectors; ++v)
    {
        store(scores + v * kLANES, excess(load(scores + v * kLANES), high, low));
    }
}

} // namespace
} // namespace hspan::cpu
