//! \file simt.h
//! Everything the kernels need from the hardware, for CUDA. The kernels include <simt.h> and nothing else of the
//! platform; which file that is, is decided by the include path alone: this one, or the CPU emulation of
//! tests/cpp/emulation, which compiles the very same kernel source with a host compiler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define HSPAN_DEVICE __device__ __forceinline__
#define HSPAN_KERNEL(threadsPerBlock) __global__ void __launch_bounds__(threadsPerBlock)
//! The same for a kernel of which `blocks` blocks are to fit a multiprocessor: it gets as many registers as that
//! leaves.
#define HSPAN_KERNEL_FITTING(threadsPerBlock, blocks) __global__ void __launch_bounds__(threadsPerBlock, blocks)
#define HSPAN_SHARED(Type, name) __shared__ Type name
#define HSPAN_UNROLL _Pragma("unroll")
#define HSPAN_UNROLL_BY(n) HSPAN_PRAGMA(unroll n)
#define HSPAN_PRAGMA(text) _Pragma(#text)

namespace simt
{

using Half = __half;
using BFloat16 = __nv_bfloat16;
using Float4 = float4;

constexpr int32_t kWARP_SIZE{32};
constexpr uint32_t kALL_LANES{0xffffffffU};
constexpr int64_t kMAX_GRID_X{2147483647};
constexpr int64_t kMAX_GRID_Y{65535};
constexpr int64_t kMAX_GRID_Z{65535};

HSPAN_DEVICE int32_t threadIndex()
{
    return static_cast<int32_t>(threadIdx.x);
}

HSPAN_DEVICE int32_t laneIndex()
{
    return threadIndex() % kWARP_SIZE;
}

HSPAN_DEVICE int32_t warpIndex()
{
    return threadIndex() / kWARP_SIZE;
}

HSPAN_DEVICE int64_t blockX()
{
    return blockIdx.x;
}

HSPAN_DEVICE int64_t blockY()
{
    return blockIdx.y;
}

HSPAN_DEVICE int64_t blockZ()
{
    return blockIdx.z;
}

HSPAN_DEVICE int64_t gridY()
{
    return gridDim.y;
}

//! Waits for all threads of the block; shared memory written before is visible after.
HSPAN_DEVICE void syncBlock()
{
    __syncthreads();
}

//! Barrier of the block that also tells whether the predicate holds in any of its threads.
HSPAN_DEVICE bool anyInBlock(bool predicate)
{
    return __syncthreads_or(predicate ? 1 : 0) != 0;
}

//! Waits for all lanes of the warp; memory written by one before is visible to the others after.
HSPAN_DEVICE void syncWarp()
{
    __syncwarp(kALL_LANES);
}

//! The lanes before this one, one bit each.
HSPAN_DEVICE uint32_t lanesBefore()
{
    uint32_t lanes;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(lanes));
    return lanes;
}

//! One bit per lane of the warp: its predicate.
HSPAN_DEVICE uint32_t ballot(bool predicate)
{
    return __ballot_sync(kALL_LANES, predicate ? 1 : 0);
}

//! The value held by the lane whose index differs in the bits of `laneMask`.
template <typename T>
HSPAN_DEVICE T shuffleXor(T value, int32_t laneMask)
{
    return __shfl_xor_sync(kALL_LANES, value, laneMask);
}

//! The value held by lane `lane`.
template <typename T>
HSPAN_DEVICE T shuffle(T value, int32_t lane)
{
    return __shfl_sync(kALL_LANES, value, lane);
}

//! Index of the lowest set bit of a word that is not zero.
HSPAN_DEVICE int32_t lowestBit(uint32_t word)
{
    return __ffs(static_cast<int32_t>(word)) - 1;
}

HSPAN_DEVICE int32_t bitCount(uint32_t word)
{
    return __popc(word);
}

//! The lanes that hold the same value, one bit each.
HSPAN_DEVICE uint32_t lanesWithSame(int32_t value)
{
    return __match_any_sync(kALL_LANES, value);
}

//! The sum over the lanes of the warp. From compute capability 8.0 on.
HSPAN_DEVICE int32_t sumOfWarp(int32_t value)
{
    int32_t sum;
    asm volatile("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(value));
    return sum;
}

//! The same number, which the compiler keeps in a register instead of computing it again.
template <typename T>
HSPAN_DEVICE T kept(T value)
{
    if constexpr (std::is_same_v<T, float>)
    {
        asm volatile("" : "+f"(value));
    }
    else if constexpr (sizeof(T) == 8)
    {
        asm volatile("" : "+l"(value));
    }
    else
    {
        asm volatile("" : "+r"(value));
    }
    return value;
}

//! a * b + c, rounded once.
HSPAN_DEVICE float multiplyAdd(float a, float b, float c)
{
    return __fmaf_rn(a, b, c);
}

//! IEEE operations that the compiler neither contracts nor reorders: error-free transformations rest on them.
HSPAN_DEVICE float add(float a, float b)
{
    return __fadd_rn(a, b);
}

HSPAN_DEVICE float subtract(float a, float b)
{
    return __fsub_rn(a, b);
}

HSPAN_DEVICE float divide(float a, float b)
{
    return __fdiv_rn(a, b);
}

//! Rounded to nearest.
HSPAN_DEVICE float squareRoot(float a)
{
    return __fsqrt_rn(a);
}

//! 1 / a, off by at most a unit in the last place.
HSPAN_DEVICE float reciprocal(float a)
{
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
    return result;
}

//! \name One comparison, and what it guards without a branch
//! @{
HSPAN_DEVICE void countIfGreater(int32_t& count, float value, float bound)
{
    asm("{.reg .pred p; setp.gt.f32 p, %1, %2; @p add.s32 %0, %0, 1;}" : "+r"(count) : "f"(value), "f"(bound));
}

HSPAN_DEVICE void addIfGreater(float& sum, int32_t& count, float value, float bound)
{
    asm("{.reg .pred p; setp.gt.f32 p, %2, %3; @p add.f32 %0, %0, %2; @p add.s32 %1, %1, 1;}"
        : "+f"(sum), "+r"(count)
        : "f"(value), "f"(bound));
}

HSPAN_DEVICE void addIfGreater(int32_t& sum, int32_t number, float value, float bound)
{
    asm("{.reg .pred p; setp.gt.f32 p, %2, %3; @p add.s32 %0, %0, %1;}"
        : "+r"(sum)
        : "r"(number), "f"(value), "f"(bound));
}
//! @}

//! a + b, rounded towards minus infinity.
HSPAN_DEVICE float addDown(float a, float b)
{
    return __fadd_rd(a, b);
}

//! The greater of two numbers; NaN if either is NaN.
HSPAN_DEVICE float maximumOrNan(float a, float b)
{
#if __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
#else
    return a != a || a >= b ? a : b;
#endif
}

//! Rounds to an integer, ties to even.
HSPAN_DEVICE float roundToInteger(float value)
{
    return rintf(value);
}

HSPAN_DEVICE int64_t integerFromFloat(float value)
{
    return __float2ll_rn(value);
}

//! For |value| < 2^31; 0 for NaN.
HSPAN_DEVICE int32_t smallIntegerFromFloat(float value)
{
    return __float2int_rn(value);
}

//! Rounds to nearest, ties to even.
HSPAN_DEVICE float floatFromInteger(int64_t value)
{
    return __ll2float_rn(value);
}

HSPAN_DEVICE float floatFromInteger(int32_t value)
{
    return __int2float_rn(value);
}

HSPAN_DEVICE int32_t bitsFromFloat(float value)
{
    return __float_as_int(value);
}

HSPAN_DEVICE float floatFromBits(int32_t bits)
{
    return __int_as_float(bits);
}

HSPAN_DEVICE float toFloat(float value)
{
    return value;
}

HSPAN_DEVICE float toFloat(Half value)
{
    return __half2float(value);
}

HSPAN_DEVICE float toFloat(BFloat16 value)
{
    return __bfloat162float(value);
}

//! Two neighboring elements.
template <typename T>
struct alignas(2 * sizeof(T)) Pair
{
    T x;
    T y;
};

//! Reads two elements at once, from an address that is a multiple of their size.
template <typename T>
HSPAN_DEVICE Pair<T> loadPair(T const* address)
{
    return *reinterpret_cast<Pair<T> const*>(address);
}

//! Reads the four bytes at an address that is a multiple of four, whatever they are.
HSPAN_DEVICE uint32_t loadWord(void const* address)
{
    return *static_cast<uint32_t const*>(address);
}

//! Copies 16 bytes to an address that is a multiple of 16, from one that is a multiple of 4.
HSPAN_DEVICE void copyPiece(void* target, void const* source)
{
    auto const* const words = static_cast<uint32_t const*>(source);
    *static_cast<uint4*>(target) = make_uint4(words[0], words[1], words[2], words[3]);
}

//! The counterpart of loadPair().
template <typename T>
HSPAN_DEVICE void storePair(T* address, Pair<T> pair)
{
    *reinterpret_cast<Pair<T>*>(address) = pair;
}

//! Rounds to nearest, ties to even.
template <typename T>
HSPAN_DEVICE T fromFloat(float value);

template <>
HSPAN_DEVICE float fromFloat<float>(float value)
{
    return value;
}

template <>
HSPAN_DEVICE Half fromFloat<Half>(float value)
{
    return __float2half_rn(value);
}

template <>
HSPAN_DEVICE BFloat16 fromFloat<BFloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

//! \name Tensor cores and asynchronous copies
//! Fragment layouts are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix". With g = lane / 4 and
//! t = lane % 4 a lane holds, two 16-bit elements per register, lower index in the lower half:
//!     A (16 x 16): a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8) and their right neighbors
//!     B (16 x 8):  b0 (2t, g), b1 (2t + 8, g) and their lower neighbors
//!     C, D (16 x 8), floats: d[0] (g, 2t), d[1] (g, 2t + 1), d[2] (g + 8, 2t), d[3] (g + 8, 2t + 1)
//! They exist from compute capability 8.0 on.
//! @{

//! Four 8 x 8 matrices of 16-bit elements from shared memory. Lane i gives the address of row i % 8 of matrix i / 8,
//! a multiple of 16 bytes, and receives in r[m] elements 2 (i % 4) and 2 (i % 4) + 1 of row i / 4 of matrix m.
HSPAN_DEVICE void loadMatrices(uint32_t (&r)[4], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
        : "memory");
}

//! d += a b for a warp's 16 x 16 and 16 x 8 matrices of T, products and sums in FP32.
template <typename T>
HSPAN_DEVICE void multiplyMatrices(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1);

template <>
HSPAN_DEVICE void multiplyMatrices<Half>(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
HSPAN_DEVICE void multiplyMatrices<BFloat16>(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

//! Two numbers rounded to T in one register, `low` in the lower half.
template <typename T>
HSPAN_DEVICE uint32_t pairOf(float low, float high);

template <>
HSPAN_DEVICE uint32_t pairOf<Half>(float low, float high)
{
    __half2 const pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t const*>(&pair);
}

template <>
HSPAN_DEVICE uint32_t pairOf<BFloat16>(float low, float high)
{
    __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t const*>(&pair);
}

//! Starts copying 16 bytes from global to shared memory, both addresses multiples of 16; zeros, and no reading, where
//! `inside` is false. The thread itself sees them after waitForCopies(), other threads after a barrier that follows.
HSPAN_DEVICE void copyAsync(void* shared, void const* global, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :
        : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(__cvta_generic_to_global(global)),
        "r"(inside ? 16 : 0)
        : "memory");
}

//! Places in memory as the functions below take them; bytes may be added.
using SharedAddress = uint32_t;
using GlobalAddress = uint64_t;

HSPAN_DEVICE SharedAddress sharedAddress(void const* object)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(object));
}

HSPAN_DEVICE GlobalAddress globalAddress(void const* object)
{
    return __cvta_generic_to_global(object);
}

//! The word at a place in shared memory that is a multiple of four.
HSPAN_DEVICE uint64_t loadWordAt(SharedAddress place)
{
    uint64_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=l"(word) : "r"(place) : "memory");
    return word;
}

//! Two words, at a multiple of eight.
HSPAN_DEVICE Pair<uint32_t> loadPairAt(SharedAddress place)
{
    Pair<uint32_t> pair;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(pair.x), "=r"(pair.y) : "r"(place) : "memory");
    return pair;
}

//! loadMatrices() of the row that lies kOFFSET bytes further.
template <int32_t kOFFSET>
HSPAN_DEVICE void loadMatricesAt(uint32_t (&r)[4], SharedAddress row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(row), "n"(kOFFSET)
        : "memory");
}

//! The same, of the transposed matrices: lane i receives elements i / 4 of rows 2 (i % 4) and 2 (i % 4) + 1.
template <int32_t kOFFSET>
HSPAN_DEVICE void loadMatricesTransposedAt(uint32_t (&r)[4], SharedAddress row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4+%5];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(row), "n"(kOFFSET)
        : "memory");
}

//! multiplyMatrices() for a d of zeros, whatever it holds.
template <typename T>
HSPAN_DEVICE void multiplyMatricesFirst(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1);

template <>
HSPAN_DEVICE void multiplyMatricesFirst<Half>(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0F));
}

template <>
HSPAN_DEVICE void multiplyMatricesFirst<BFloat16>(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0F));
}

//! copyAsync() of `bytes` bytes, 0 or 16, the rest zeros, between places that lie so many bytes further.
template <int32_t kSHARED_OFFSET, int32_t kGLOBAL_OFFSET>
HSPAN_DEVICE void copyAsyncAt(SharedAddress shared, GlobalAddress global, int32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0+%3], [%1+%4], 16, %2;"
        :
        : "r"(shared), "l"(global), "r"(bytes), "n"(kSHARED_OFFSET), "n"(kGLOBAL_OFFSET)
        : "memory");
}

//! Appends (score, key), 8 bytes, to a list where the score exceeds a bound.
HSPAN_DEVICE void appendIfGreater(GlobalAddress& end, float score, int32_t key, float bound)
{
    asm volatile("{.reg .pred p; setp.gt.f32 p, %1, %3; @p st.global.v2.b32 [%0], {%1, %2}; @p add.s64 %0, %0, 8;}"
        : "+l"(end)
        : "f"(score), "r"(key), "f"(bound)
        : "memory");
}

//! Waits for all copies that this thread has started.
HSPAN_DEVICE void waitForCopies()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

//! @}

//! Grid of blocks; every dimension is at least 1 and within kMAX_GRID_*.
struct Grid
{
    int64_t x{1};
    int64_t y{1};
    int64_t z{1};
};

//! Compute capability of the current device, such as 86; 0 if there is none. Asks the driver's tables only.
inline int32_t computeCapability()
{
    int device = 0;
    int major = 0;
    int minor = 0;
    bool const known = cudaGetDevice(&device) == cudaSuccess
        && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess
        && cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
    return known ? 10 * major + minor : 0;
}

//! Multiprocessors of the current device; 1 if there is none. Asks the driver's tables only.
inline int32_t multiprocessors()
{
    int device = 0;
    int count = 0;
    bool const known = cudaGetDevice(&device) == cudaSuccess
        && cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
    return known ? count : 1;
}

//! Launches a kernel and returns what the driver says of the launch itself. Neither allocates nor synchronizes.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), Grid const& grid, int32_t threadsPerBlock, cudaStream_t stream,
    Parameters... parameters)
{
    void* pointers[] = {&parameters...};
    dim3 const blocks{static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)};
    return cudaLaunchKernel(reinterpret_cast<void const*>(kernel), blocks, dim3{static_cast<unsigned>(threadsPerBlock)},
        static_cast<void**>(pointers), 0, stream);
}

} // namespace simt
