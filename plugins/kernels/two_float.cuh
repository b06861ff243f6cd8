//! \file two_float.cuh
//! Numbers held as an unevaluated sum of two floats (Dekker 1971; Knuth, TAOCP 2, section 4.2.2).
#pragma once

#include <simt.h>

namespace hspan
{

//! The number high + low, with |low| at most half a unit in the last place of high.
struct TwoFloat
{
    float high;
    float low;
};

//! a + b without error, for any two floats whose sum does not overflow (Knuth's TwoSum).
HSPAN_DEVICE TwoFloat exactSum(float a, float b)
{
    float const sum = simt::add(a, b);
    float const bPart = simt::subtract(sum, a);
    float const aPart = simt::subtract(sum, bPart);
    return {sum, simt::add(simt::subtract(a, aPart), simt::subtract(b, bPart))};
}

//! x + term, with a relative error of about 2^-47.
HSPAN_DEVICE TwoFloat plus(TwoFloat x, float term)
{
    TwoFloat const sum = exactSum(x.high, term);
    return exactSum(sum.high, simt::add(sum.low, x.low));
}

//! x + y, with an error of about 2^-46 of the greater of the two.
HSPAN_DEVICE TwoFloat plus(TwoFloat x, TwoFloat y)
{
    TwoFloat const sum = exactSum(x.high, y.high);
    return exactSum(sum.high, simt::add(sum.low, simt::add(x.low, y.low)));
}

//! x / divisor, with a relative error of about 2^-46.
HSPAN_DEVICE TwoFloat quotient(TwoFloat x, float divisor)
{
    float const first = simt::divide(x.high, divisor);
    float const remainder = simt::add(simt::multiplyAdd(-first, divisor, x.high), x.low);
    return exactSum(first, simt::divide(remainder, divisor));
}

//! Whether x > y, for normalized numbers.
HSPAN_DEVICE bool isGreater(TwoFloat x, TwoFloat y)
{
    return x.high > y.high || (x.high == y.high && x.low > y.low);
}

//! score - threshold with a relative error of at most about 2^-23: the first difference is rounded relative to
//! itself, and so is the second.
HSPAN_DEVICE float excess(float score, TwoFloat threshold)
{
    return simt::subtract(simt::subtract(score, threshold.high), threshold.low);
}

//! Adds the result of a chain of operations to a total.
HSPAN_DEVICE void addChain(TwoFloat& total, float chain)
{
    TwoFloat const sum = exactSum(total.high, chain);
    total = {sum.high, simt::add(total.low, sum.low)};
}

//! The total as one float. Infinite and NaN sums have no meaningful low part.
HSPAN_DEVICE float valueOf(TwoFloat total)
{
    return total.high - total.high == 0.0F ? simt::add(total.high, total.low) : total.high;
}

} // namespace hspan
