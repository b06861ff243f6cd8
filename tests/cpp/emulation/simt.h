//! \file simt.h
//! The hardware layer of the kernels, emulated on the CPU. The counterpart of plugins/device/cuda/simt.h: the same
//! names with the same meaning, so that the kernel source compiles unchanged with a host compiler.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <type_traits>

#include <cuda_runtime_api.h>

#include "block.h"

#define HSPAN_DEVICE inline __attribute__((always_inline))
#define HSPAN_KERNEL(threadsPerBlock) void
#define HSPAN_SHARED(Type, name)                                                                                       \
    Type& name = *static_cast<Type*>(simt::emulation::Block::current().sharedMemory(sizeof(Type)))
#define HSPAN_UNROLL _Pragma("GCC unroll 16")

namespace simt
{

//! Storage of an IEEE 754 binary16 number.
struct Half
{
    uint16_t bits;
};

//! Storage of a bfloat16 number: the upper half of a float.
struct BFloat16
{
    uint16_t bits;
};

struct alignas(16) Float4
{
    float x;
    float y;
    float z;
    float w;
};

constexpr int32_t kWARP_SIZE{emulation::kLANES};
constexpr int64_t kMAX_GRID_X{2147483647};
constexpr int64_t kMAX_GRID_Y{3}; // small, so that tests reach the strided loop over batches
constexpr int64_t kMAX_GRID_Z{65535};

inline int32_t threadIndex()
{
    return emulation::Block::current().thread();
}

inline int32_t laneIndex()
{
    return threadIndex() % kWARP_SIZE;
}

inline int32_t warpIndex()
{
    return threadIndex() / kWARP_SIZE;
}

inline int64_t blockX()
{
    return emulation::Block::current().x();
}

inline int64_t blockY()
{
    return emulation::Block::current().y();
}

inline int64_t blockZ()
{
    return emulation::Block::current().z();
}

inline int64_t gridY()
{
    return emulation::Block::current().gridY();
}

inline void syncBlock(int32_t line = __builtin_LINE())
{
    emulation::Block::current().anyInBlock(false, line);
}

inline bool anyInBlock(bool predicate, int32_t line = __builtin_LINE())
{
    return emulation::Block::current().anyInBlock(predicate, line);
}

inline void syncWarp(int32_t line = __builtin_LINE())
{
    emulation::Block::current().exchange(0, 0, line);
}

inline uint32_t ballot(bool predicate, int32_t line = __builtin_LINE())
{
    return emulation::Block::current().ballot(predicate, line);
}

template <typename T>
inline T shuffle(T value, int32_t lane, int32_t line = __builtin_LINE())
{
    static_assert(sizeof(T) == sizeof(uint32_t) && std::is_trivially_copyable_v<T>, "one register");
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    word = emulation::Block::current().exchange(word, lane, line);
    std::memcpy(&value, &word, sizeof word);
    return value;
}

template <typename T>
inline T shuffleXor(T value, int32_t laneMask, int32_t line = __builtin_LINE())
{
    return shuffle(value, laneIndex() ^ laneMask, line);
}

inline int32_t lowestBit(uint32_t word)
{
    return __builtin_ctz(word);
}

inline int32_t bitCount(uint32_t word)
{
    return __builtin_popcount(word);
}

inline float multiplyAdd(float a, float b, float c)
{
    return __builtin_fmaf(a, b, c);
}

inline float add(float a, float b)
{
    return a + b;
}

inline float subtract(float a, float b)
{
    return a - b;
}

inline float divide(float a, float b)
{
    return a / b;
}

inline float floatFromBits(uint32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bitsFromFloat(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float toFloat(float value)
{
    return value;
}

inline float toFloat(BFloat16 value)
{
    return floatFromBits(static_cast<uint32_t>(value.bits) << 16U);
}

//! Exact. The exponent is moved by a multiplication, which handles subnormal numbers too.
inline float toFloat(Half value)
{
    uint32_t const sign = (value.bits & 0x8000U) << 16U;
    uint32_t const magnitude = value.bits & 0x7fffU;
    if (magnitude >= 0x7c00U) // infinity or NaN
    {
        return floatFromBits(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13U);
    }
    float const scaled = floatFromBits(magnitude << 13U) * 0x1p112F;
    return floatFromBits(sign | bitsFromFloat(scaled));
}

template <typename T>
T fromFloat(float value);

template <>
inline float fromFloat<float>(float value)
{
    return value;
}

template <>
inline BFloat16 fromFloat<BFloat16>(float value)
{
    uint32_t const bits = bitsFromFloat(value);
    if (value != value)
    {
        return {0x7fffU};
    }
    return {static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U)};
}

//! Rounds to nearest, ties to even, in integers: drops 13 bits of the significand, more for subnormal results.
template <>
inline Half fromFloat<Half>(float value)
{
    uint32_t const bits = bitsFromFloat(value);
    auto const sign = static_cast<uint16_t>(bits >> 16U & 0x8000U);
    uint32_t const magnitude = bits & 0x7fffffffU;
    if (magnitude > 0x7f800000U)
    {
        return {static_cast<uint16_t>(sign | 0x7fffU)};
    }
    if (magnitude >= 0x477ff000U) // 65520 and above round to infinity
    {
        return {static_cast<uint16_t>(sign | 0x7c00U)};
    }
    if (magnitude < 0x33000000U) // below 2^-25
    {
        return {sign};
    }
    uint32_t const exponent = magnitude >> 23U;
    uint32_t const significand = (magnitude & 0x7fffffU) | 0x800000U;
    // Normal results keep 11 bits; a subnormal result has its last place at 2^-24.
    uint32_t const drop = exponent >= 113U ? 13U : 126U - exponent;
    uint32_t const kept = significand >> drop;
    uint32_t const rest = significand & ((1U << drop) - 1U);
    uint32_t const half = 1U << (drop - 1U);
    uint32_t const rounded = kept + (rest > half || (rest == half && (kept & 1U) != 0U) ? 1U : 0U);
    // The implicit bit of a normal number adds one to the exponent field.
    uint32_t const base = exponent >= 113U ? (exponent - 113U) << 10U : 0U;
    return {static_cast<uint16_t>(sign | (base + rounded))};
}

struct Grid
{
    int64_t x{1};
    int64_t y{1};
    int64_t z{1};
};

//! What the emulated device is; tests may pretend an older one.
inline int32_t computeCapability()
{
    return emulation::options().computeCapability;
}

//! Runs the grid to its end, block after block.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), Grid const& grid, int32_t threadsPerBlock, cudaStream_t /*stream*/,
    Parameters... parameters)
{
    emulation::lastError().clear();
    emulation::barrierCount() = 0;
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > kMAX_GRID_X || grid.y > kMAX_GRID_Y || grid.z > kMAX_GRID_Z)
    {
        return cudaErrorInvalidValue;
    }
    try
    {
        emulation::Block block{threadsPerBlock, [=] { kernel(parameters...); }};
        for (int64_t z = 0; z < grid.z; ++z)
        {
            for (int64_t y = 0; y < grid.y; ++y)
            {
                for (int64_t x = 0; x < grid.x; ++x)
                {
                    block.run(x, y, z, grid.y);
                }
            }
        }
    }
    catch (std::exception const& error)
    {
        emulation::lastError() = error.what();
        return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

} // namespace simt
