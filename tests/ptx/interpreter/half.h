//! \file half.h
//! FP16 and BF16 as bits. NaNs are those of GPUs.
#pragma once

#include <cstdint>

#include <immintrin.h>

#include "machine.h"

namespace ptx
{

inline uint32_t halfFromFloat(float number)
{
    return number != number ? 0x7fffU : static_cast<uint32_t>(_cvtss_sh(number, _MM_FROUND_TO_NEAREST_INT));
}

inline float floatFromHalf(uint32_t bits)
{
    return canonical(_cvtsh_ss(static_cast<uint16_t>(bits)));
}

inline uint32_t bfloat16FromFloat(float number)
{
    uint32_t const bits = __builtin_bit_cast(uint32_t, number);
    return number != number ? 0x7fffU : (bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U; // ties to even
}

inline float floatFromBFloat16(uint32_t bits)
{
    return __builtin_bit_cast(float, bits << 16U);
}

} // namespace ptx
