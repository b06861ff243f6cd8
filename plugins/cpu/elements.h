//! \file elements.h
//! FP16 and BF16 as storage: exact widening to float, narrowing with ties to even.
#pragma once

#include "simd.h"

namespace hspan::cpu
{
namespace
{

struct Half
{
    uint16_t bits;
};

struct BFloat16
{
    uint16_t bits;
};

HSPAN_INLINE float floatFromBits(uint32_t bits)
{
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

HSPAN_INLINE uint32_t bitsFromFloat(float x)
{
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

HSPAN_INLINE float widened(float x)
{
    return x;
}

HSPAN_INLINE float widened(BFloat16 x)
{
    return floatFromBits(static_cast<uint32_t>(x.bits) << 16);
}

//! Multiplying by 2^112 moves the exponent's bias, subnormal numbers included; infinity and NaN keep their exponent.
HSPAN_INLINE float widened(Half x)
{
    uint32_t const magnitude = (x.bits & 0x7FFFU) << 13;
    uint32_t const special = (x.bits & 0x7C00U) == 0x7C00U ? 0x7F800000U : 0U;
    uint32_t const scaled = bitsFromFloat(floatFromBits(magnitude) * 0x1p112F);
    return floatFromBits(scaled | special | (x.bits & 0x8000U) << 16);
}

HSPAN_INLINE void narrow(float x, float& result)
{
    result = x;
}

HSPAN_INLINE void narrow(float x, BFloat16& result)
{
    uint32_t const bits = bitsFromFloat(x);
    bool const isNan = (bits & 0x7FFFFFFFU) > 0x7F800000U;
    result.bits = static_cast<uint16_t>(isNan ? (bits >> 16) | 0x40U : (bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

HSPAN_INLINE void narrow(float x, Half& result)
{
    uint32_t const bits = bitsFromFloat(x);
    uint32_t const sign = bits >> 16 & 0x8000U;
    uint32_t const magnitude = bits & 0x7FFFFFFFU;
    uint32_t half = 0;
    if (magnitude > 0x7F800000U)
    {
        half = 0x7E00U; // NaN
    }
    else if (magnitude >= 0x477FF000U)
    {
        half = 0x7C00U; // 65520 and more round to infinity
    }
    else if (magnitude >= 0x38800000U)
    {
        half = (magnitude - 0x38000000U + 0xFFFU + (magnitude >> 13 & 1U)) >> 13;
    }
    else
    {
        // Adding 0.5 leaves the subnormal's bits, rounded to even, at the end of the significand.
        half = bitsFromFloat(floatFromBits(magnitude) + 0.5F) - 0x3F000000U;
    }
    result.bits = static_cast<uint16_t>(sign | half);
}

//! The element's bits without its sign; they order magnitudes, NaN above infinity.
HSPAN_INLINE uint32_t magnitudeBits(float x)
{
    return bitsFromFloat(x) & 0x7FFFFFFFU;
}

template <typename T>
HSPAN_INLINE uint32_t magnitudeBits(T x)
{
    return x.bits & 0x7FFFU;
}

HSPAN_INLINE float magnitudeFromBits(uint32_t bits, float)
{
    return bits > 0x7F800000U ? __builtin_inff() : floatFromBits(bits);
}

template <typename T>
HSPAN_INLINE float magnitudeFromBits(uint32_t bits, T)
{
    T element;
    element.bits = static_cast<uint16_t>(bits);
    return magnitudeFromBits(bitsFromFloat(widened(element)), 0.0F);
}

} // namespace
} // namespace hspan::cpu
