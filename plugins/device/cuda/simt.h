//! \file simt.h
//! Everything the kernels need from the hardware, for CUDA. The kernels include <simt.h> and nothing else of the
//! platform; which file that is, is decided by the include path alone: this one, or the CPU emulation of
//! tests/cpp/emulation, which compiles the very same kernel source with a host compiler.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define HSPAN_DEVICE __device__ __forceinline__
#define HSPAN_KERNEL(threadsPerBlock) __global__ void __launch_bounds__(threadsPerBlock)
#define HSPAN_SHARED(Type, name) __shared__ Type name
#define HSPAN_UNROLL _Pragma("unroll")

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

//! Waits for all lanes of the warp; shared memory written before is visible after.
HSPAN_DEVICE void syncWarp()
{
    __syncwarp(kALL_LANES);
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

//! Launches a kernel and returns what the driver says of the launch itself. Neither allocates nor synchronises.
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
