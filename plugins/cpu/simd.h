//! \file simd.h
//! Vectors of floats in the instruction set that the including file is compiled for.
//!
//! Built on the vector extension that GCC and Clang share; only what it cannot say is written in intrinsics. All names
//! have internal linkage: the same header is compiled for several instruction sets into one library.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define HSPAN_INLINE static inline __attribute__((always_inline))

namespace hspan::cpu
{
namespace
{

#if defined(__AVX512F__)
constexpr int64_t kLANES = 16;
constexpr char const* kINSTRUCTION_SET = "avx512";
#elif defined(__AVX2__)
constexpr int64_t kLANES = 8;
constexpr char const* kINSTRUCTION_SET = "avx2";
#elif defined(__SSE2__)
constexpr int64_t kLANES = 4;
constexpr char const* kINSTRUCTION_SET = "sse2";
#elif defined(__aarch64__)
constexpr int64_t kLANES = 4;
constexpr char const* kINSTRUCTION_SET = "neon";
#else
constexpr int64_t kLANES = 4;
constexpr char const* kINSTRUCTION_SET = "scalar";
#endif

typedef float Vec __attribute__((vector_size(4 * kLANES), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * kLANES), may_alias));
typedef double DoubleVec __attribute__((vector_size(8 * kLANES), may_alias));
typedef float UnalignedVec __attribute__((vector_size(4 * kLANES), aligned(4), may_alias));
//! As many doubles as a register holds. Sums of a loop must be that: of wider vectors they live in memory.
typedef double Doubles __attribute__((vector_size(4 * kLANES), may_alias));
typedef double UnalignedDoubles __attribute__((vector_size(4 * kLANES), aligned(8), may_alias));
constexpr int64_t kDOUBLES = kLANES / 2;

HSPAN_INLINE Vec load(float const* pointer)
{
    return *reinterpret_cast<UnalignedVec const*>(pointer);
}

HSPAN_INLINE Doubles load(double const* pointer)
{
    return *reinterpret_cast<UnalignedDoubles const*>(pointer);
}

HSPAN_INLINE void store(double* pointer, Doubles x)
{
    *reinterpret_cast<UnalignedDoubles*>(pointer) = x;
}

//! kDOUBLES floats, widened.
HSPAN_INLINE Doubles loadWidened(float const* pointer)
{
#if defined(__AVX512F__)
    return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps(pointer));
#elif defined(__AVX2__)
    return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(pointer));
#elif defined(__aarch64__)
    return (Doubles)vcvt_f64_f32(vld1_f32(pointer));
#else
    return Doubles{pointer[0], pointer[1]};
#endif
}

HSPAN_INLINE void store(float* pointer, Vec x)
{
    *reinterpret_cast<UnalignedVec*>(pointer) = x;
}

//! Four floats, whatever the instruction set.
typedef float Quad __attribute__((vector_size(16), may_alias));
typedef float UnalignedQuad __attribute__((vector_size(16), aligned(4), may_alias));

HSPAN_INLINE Quad loadQuad(float const* pointer)
{
    return *reinterpret_cast<UnalignedQuad const*>(pointer);
}

HSPAN_INLINE void storeQuad(float* pointer, Quad x)
{
    *reinterpret_cast<UnalignedQuad*>(pointer) = x;
}

//! Lanes of a (0 to 3) and b (4 to 7) by number.
#if defined(__clang__)
#define HSPAN_SHUFFLE(A, B, ...) __builtin_shufflevector(A, B, __VA_ARGS__)
#else
typedef int32_t QuadIndex __attribute__((vector_size(16)));
#define HSPAN_SHUFFLE(A, B, ...) __builtin_shuffle(A, B, (QuadIndex){__VA_ARGS__})
#endif

HSPAN_INLINE Vec broadcast(float x)
{
    return x - Vec{};
}

//! a where a > b, else b: b when either is NaN.
HSPAN_INLINE Vec larger(Vec a, Vec b)
{
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
    return a > b ? a : b;
#endif
}

//! Bit i is set where a[i] > b[i].
HSPAN_INLINE uint32_t bitsWhereGreater(Vec a, Vec b)
{
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)));
#elif defined(__SSE2__)
    return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps((__m128)a, (__m128)b)));
#elif defined(__aarch64__)
    uint32x4_t const bits{1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32((float32x4_t)a, (float32x4_t)b), bits));
#else
    uint32_t bits = 0;
    for (int64_t i = 0; i < kLANES; ++i)
    {
        bits |= static_cast<uint32_t>(a[i] > b[i]) << i;
    }
    return bits;
#endif
}

HSPAN_INLINE int64_t lowestBit(uint32_t bits)
{
    return __builtin_ctz(bits);
}

HSPAN_INLINE float largestLane(Vec x)
{
    float result = x[0];
    for (int64_t i = 1; i < kLANES; ++i)
    {
        result = x[i] > result ? x[i] : result;
    }
    return result;
}

HSPAN_INLINE double sumOfLanes(DoubleVec const& x)
{
    double result = 0;
    for (int64_t i = 0; i < kLANES; ++i)
    {
        result += x[i];
    }
    return result;
}

HSPAN_INLINE double sumOfLanes(Doubles x)
{
    double result = 0;
    for (int64_t i = 0; i < kDOUBLES; ++i)
    {
        result += x[i];
    }
    return result;
}

HSPAN_INLINE int64_t sumOfLanes(IntVec x)
{
    int64_t result = 0;
    for (int64_t i = 0; i < kLANES; ++i)
    {
        result += x[i];
    }
    return result;
}

//! A vector of numbers held as unevaluated sums high + low.
struct TwoVec
{
    Vec high;
    Vec low;
};

//! total + x; the rounding errors of the sum are kept (Knuth's TwoSum).
HSPAN_INLINE void addTo(TwoVec& total, Vec x)
{
    Vec const sum = total.high + x;
    Vec const xPart = sum - total.high;
    total.low += (total.high - (sum - xPart)) + (x - xPart);
    total.high = sum;
}

//! high + low; an infinite sum has no finite error to add.
HSPAN_INLINE Vec valueOf(TwoVec const& total)
{
    Vec const sum = total.high + total.low;
    return sum == sum ? sum : total.high;
}

} // namespace
} // namespace hspan::cpu
