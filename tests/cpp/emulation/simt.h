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
#include <vector>

#include <cuda_runtime_api.h>

#include "block.h"

#define HSPAN_DEVICE inline __attribute__((always_inline))
#define HSPAN_KERNEL(threadsPerBlock) void
#define HSPAN_KERNEL_FITTING(threadsPerBlock, blocks) void
#define HSPAN_SHARED(Type, name)                                                                                       \
    Type& name = *static_cast<Type*>(simt::emulation::Block::current().sharedMemory(sizeof(Type)))
#ifdef HSPAN_SANITIZED
#define HSPAN_UNROLL // GCC drops the annotation where a sanitizer's calls stand before the loop, and warns of it
#else
#define HSPAN_UNROLL _Pragma("GCC unroll 16")
#endif
#define HSPAN_UNROLL_BY(n)

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

inline uint32_t lanesBefore()
{
    return (1U << static_cast<uint32_t>(laneIndex())) - 1U;
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

inline uint32_t lanesWithSame(int32_t value, int32_t line = __builtin_LINE())
{
    uint32_t lanes = 0;
    for (int32_t bit = 0; bit < 32; ++bit)
    {
        uint32_t const set = ballot((static_cast<uint32_t>(value) >> bit & 1U) != 0, line);
        uint32_t const alike = (static_cast<uint32_t>(value) >> bit & 1U) != 0 ? set : ~set;
        lanes = bit == 0 ? alike : lanes & alike;
    }
    return lanes;
}

inline int32_t sumOfWarp(int32_t value, int32_t line = __builtin_LINE())
{
    auto sum = static_cast<uint32_t>(value);
    for (int32_t mask = kWARP_SIZE / 2; mask > 0; mask /= 2)
    {
        sum += shuffleXor(sum, mask, line);
    }
    return static_cast<int32_t>(sum);
}

template <typename T>
inline T kept(T value)
{
    return value;
}

inline float squareRoot(float a)
{
    return std::sqrt(a);
}

//! A unit in the last place too great: nothing may rest on its rounding.
inline float reciprocal(float a)
{
    return std::nextafter(1.0F / a, INFINITY);
}

inline void countIfGreater(int32_t& count, float value, float bound)
{
    count += value > bound ? 1 : 0;
}

inline void addIfGreater(float& sum, int32_t& count, float value, float bound)
{
    sum = value > bound ? sum + value : sum;
    count += value > bound ? 1 : 0;
}

inline void addIfGreater(int32_t& sum, int32_t number, float value, float bound)
{
    sum += value > bound ? number : 0;
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

//! Rounded towards minus infinity: the sum rounded to nearest, and one step down where the exact rest is negative.
inline float addDown(float a, float b)
{
    float const sum = a + b;
    float const bPart = sum - a;
    float const rest = (a - (sum - bPart)) + (b - bPart);
    return rest < 0.0F ? std::nextafter(sum, -INFINITY) : sum;
}

inline float maximumOrNan(float a, float b)
{
    return a != a || a >= b ? a : b;
}

inline float roundToInteger(float value)
{
    return std::nearbyint(value);
}

inline int64_t integerFromFloat(float value)
{
    return std::llrint(value);
}

inline int32_t smallIntegerFromFloat(float value)
{
    float const rounded = std::nearbyint(value);
    return rounded >= -0x1p31F && rounded < 0x1p31F ? static_cast<int32_t>(rounded) : 0;
}

inline float floatFromInteger(int64_t value)
{
    return static_cast<float>(value);
}

inline float floatFromInteger(int32_t value)
{
    return static_cast<float>(value);
}

inline float floatFromBits(int32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline int32_t bitsFromFloat(float value)
{
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float toFloat(float value)
{
    return value;
}

inline float toFloat(BFloat16 value)
{
    return floatFromBits(static_cast<int32_t>(static_cast<uint32_t>(value.bits) << 16U));
}

//! Exact. The exponent is moved by a multiplication, which handles subnormal numbers too.
inline float toFloat(Half value)
{
    uint32_t const sign = (value.bits & 0x8000U) << 16U;
    uint32_t const magnitude = value.bits & 0x7fffU;
    if (magnitude >= 0x7c00U) // infinity or NaN
    {
        return floatFromBits(static_cast<int32_t>(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13U));
    }
    float const scaled = floatFromBits(static_cast<int32_t>(magnitude << 13U)) * 0x1p112F;
    return floatFromBits(static_cast<int32_t>(sign) | bitsFromFloat(scaled));
}

template <typename T>
struct alignas(2 * sizeof(T)) Pair
{
    T x;
    T y;
};

//! A misaligned address stops the kernel, as it does on a GPU.
template <typename T>
Pair<T> loadPair(T const* address)
{
    if (reinterpret_cast<uintptr_t>(address) % sizeof(Pair<T>) != 0)
    {
        emulation::Block::current().report("a misaligned address");
        return {};
    }
    return *reinterpret_cast<Pair<T> const*>(address);
}

inline uint32_t loadWord(void const* address)
{
    uint32_t word = 0;
    if (reinterpret_cast<uintptr_t>(address) % sizeof word != 0)
    {
        emulation::Block::current().report("a misaligned address");
        return word;
    }
    std::memcpy(&word, address, sizeof word);
    return word;
}

inline void copyPiece(void* target, void const* source)
{
    if (reinterpret_cast<uintptr_t>(target) % 16 != 0 || reinterpret_cast<uintptr_t>(source) % 4 != 0)
    {
        emulation::Block::current().report("a misaligned address");
        return;
    }
    std::memcpy(target, source, 16);
}

template <typename T>
void storePair(T* address, Pair<T> pair)
{
    if (reinterpret_cast<uintptr_t>(address) % sizeof(Pair<T>) != 0)
    {
        emulation::Block::current().report("a misaligned address");
        return;
    }
    std::memcpy(address, &pair, sizeof pair);
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
    auto const bits = static_cast<uint32_t>(bitsFromFloat(value));
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
    auto const bits = static_cast<uint32_t>(bitsFromFloat(value));
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

//! The fragment layouts of the PTX ISA, as plugins/device/cuda/simt.h quotes them. All lanes of the warp meet, and what
//! one receives was given by others.
namespace emulation
{

struct MatrixLoad
{
    uint32_t* result;
    unsigned char const* row;
};

template <bool kTRANSPOSED>
void loadMatricesTogether(Block& block, void* const* lanes)
{
    auto const loadOf = [lanes](int32_t lane) { return static_cast<MatrixLoad const*>(lanes[lane]); };
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        if (!block.isShared(loadOf(lane)->row))
        {
            block.report("ldmatrix: a row is not 16 aligned bytes of shared memory");
            return;
        }
    }
    uint16_t matrix[4][8][8];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        std::memcpy(matrix[lane / 8][lane % 8], loadOf(lane)->row, sizeof matrix[0][0]);
    }
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        int32_t const g = lane / 4;
        int32_t const t = lane % 4;
        for (int32_t m = 0; m < 4; ++m)
        {
            uint32_t const low = kTRANSPOSED ? matrix[m][2 * t][g] : matrix[m][g][2 * t];
            uint32_t const high = kTRANSPOSED ? matrix[m][2 * t + 1][g] : matrix[m][g][2 * t + 1];
            loadOf(lane)->result[m] = low | high << 16U;
        }
    }
}

struct MatrixProduct
{
    float* d;
    uint32_t const* a;
    uint32_t b0;
    uint32_t b1;
};

//! Numbers of type T by their bits.
template <typename T>
float const* numbers();

template <typename T>
void multiplyMatricesTogether(Block& /*block*/, void* const* lanes)
{
    productCount() += 1;
    float const* const number = numbers<T>();
    float a[16][16];
    float b[16][8];
    float d[16][8];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        auto const& part = *static_cast<MatrixProduct const*>(lanes[lane]);
        int32_t const g = lane / 4;
        int32_t const t = lane % 4;
        for (int32_t r = 0; r < 4; ++r)
        {
            int32_t const row = g + 8 * (r % 2);
            int32_t const column = 2 * t + 8 * (r / 2);
            a[row][column] = number[part.a[r] & 0xffffU];
            a[row][column + 1] = number[part.a[r] >> 16U];
            d[g + 8 * (r / 2)][2 * t + r % 2] = part.d[r];
        }
        b[2 * t][g] = number[part.b0 & 0xffffU];
        b[2 * t + 1][g] = number[part.b0 >> 16U];
        b[2 * t + 8][g] = number[part.b1 & 0xffffU];
        b[2 * t + 9][g] = number[part.b1 >> 16U];
    }
    for (int32_t k = 0; k < 16; ++k)
    {
        for (int32_t row = 0; row < 16; ++row)
        {
            for (int32_t column = 0; column < 8; ++column)
            {
                d[row][column] = __builtin_fmaf(a[row][k], b[k][column], d[row][column]);
            }
        }
    }
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        auto const& part = *static_cast<MatrixProduct const*>(lanes[lane]);
        for (int32_t r = 0; r < 4; ++r)
        {
            part.d[r] = d[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2];
        }
    }
}

template <typename T>
float const* numbers()
{
    static std::vector<float> const gNumbers = []
    {
        std::vector<float> all;
        for (uint32_t bits = 0; bits <= 0xffffU; ++bits)
        {
            all.push_back(toFloat(T{static_cast<uint16_t>(bits)}));
        }
        return all;
    }();
    return gNumbers.data();
}

} // namespace emulation

inline void loadMatrices(uint32_t (&r)[4], void const* row, int32_t line = __builtin_LINE())
{
    emulation::MatrixLoad load{r, static_cast<unsigned char const*>(row)};
    emulation::Block::current().together(&emulation::loadMatricesTogether<false>, &load, line);
}

template <typename T>
void multiplyMatrices(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, int32_t line = __builtin_LINE())
{
    emulation::MatrixProduct product{d, a, b0, b1};
    emulation::Block::current().together(&emulation::multiplyMatricesTogether<T>, &product, line);
}

template <typename T>
uint32_t pairOf(float low, float high)
{
    return static_cast<uint32_t>(fromFloat<T>(low).bits) | static_cast<uint32_t>(fromFloat<T>(high).bits) << 16U;
}

inline void copyAsync(void* shared, void const* global, bool inside)
{
    emulation::Block::current().startCopy(shared, global, inside);
}

using SharedAddress = unsigned char*;
using GlobalAddress = unsigned char*;

inline SharedAddress sharedAddress(void const* object)
{
    return static_cast<unsigned char*>(const_cast<void*>(object));
}

inline GlobalAddress globalAddress(void const* object)
{
    return static_cast<unsigned char*>(const_cast<void*>(object));
}

inline uint64_t loadWordAt(SharedAddress place)
{
    return loadWord(place);
}

inline Pair<uint32_t> loadPairAt(SharedAddress place)
{
    return loadPair(reinterpret_cast<uint32_t const*>(place));
}

template <int32_t kOFFSET>
void loadMatricesAt(uint32_t (&r)[4], SharedAddress row, int32_t line = __builtin_LINE())
{
    loadMatrices(r, row + kOFFSET, line);
}

template <int32_t kOFFSET>
void loadMatricesTransposedAt(uint32_t (&r)[4], SharedAddress row, int32_t line = __builtin_LINE())
{
    emulation::MatrixLoad load{r, row + kOFFSET};
    emulation::Block::current().together(&emulation::loadMatricesTogether<true>, &load, line);
}

template <typename T>
void multiplyMatricesFirst(
    float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, int32_t line = __builtin_LINE())
{
    for (float& number : d)
    {
        number = 0.0F;
    }
    multiplyMatrices<T>(d, a, b0, b1, line);
}

template <int32_t kSHARED_OFFSET, int32_t kGLOBAL_OFFSET>
void copyAsyncAt(SharedAddress shared, GlobalAddress global, int32_t bytes)
{
    copyAsync(shared + kSHARED_OFFSET, global + kGLOBAL_OFFSET, bytes != 0);
}

inline void appendIfGreater(GlobalAddress& end, float score, int32_t key, float bound)
{
    if (score > bound)
    {
        std::memcpy(end, &score, sizeof score);
        std::memcpy(end + sizeof score, &key, sizeof key);
        end += sizeof score + sizeof key;
    }
}

inline void waitForCopies()
{
    emulation::Block::current().finishCopies();
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

//! How many of them it has; tests change it, and with it how the work is split.
inline int32_t multiprocessors()
{
    return emulation::options().multiprocessors;
}

//! Runs the grid to its end, block after block.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), Grid const& grid, int32_t threadsPerBlock, cudaStream_t /*stream*/,
    Parameters... parameters)
{
    emulation::lastError().clear();
    emulation::barrierCount() = 0;
    emulation::productCount() = 0;
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
