//! \file hspan_cpu.h
//! Exact sparsemax attention on main memory, behind a C ABI: what `libhspan_cpu.so` exports.
//!
//! The library depends on neither PyTorch nor ONNX Runtime; it links against the C++ library alone. Mathematics and
//! numeric contract are those of the TensorRT plugin (plugins/README.md); plugins/cpu/README.md describes how it is
//! computed here.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C"
{
#endif

#define HSPAN_CPU_API __attribute__((visibility("default")))

//! Grows whenever anything in this file changes its meaning.
#define HSPAN_CPU_ABI_VERSION 1

    enum HspanCpuType
    {
        HSPAN_CPU_FLOAT = 0,
        HSPAN_CPU_HALF = 1,
        HSPAN_CPU_BFLOAT16 = 2,
    };

    enum HspanCpuStatus
    {
        HSPAN_CPU_OK = 0,
        HSPAN_CPU_INVALID = 1,       //!< a size, type, instruction set or pointer that cannot be
        HSPAN_CPU_OUT_OF_MEMORY = 2, //!< the workspace could not be had; nothing was computed
    };

    //! How weighted sums are formed. The result is the same within the numeric contract.
    enum HspanCpuRoute
    {
        HSPAN_CPU_ROUTE_AUTOMATIC = 0, //!< by the cost of the row at hand
        HSPAN_CPU_ROUTE_GATHER = 1,    //!< only the values of the support are read
        HSPAN_CPU_ROUTE_DENSE = 2,     //!< matrix product over all positions
    };

    //! (N, channels, L) in main memory; strides count elements, so NCHW and channels-last are both fine.
    struct HspanCpuTensor
    {
        void* data;
        int64_t batchStride;
        int64_t channelStride;
        int64_t positionStride;
    };

    struct HspanCpuAttention
    {
        struct HspanCpuTensor query;  //!< (N, C, L)
        struct HspanCpuTensor key;    //!< (N, C, L)
        struct HspanCpuTensor value;  //!< (N, D, L)
        struct HspanCpuTensor output; //!< (N, D, L); overlaps no input
        int64_t batch;                //!< N
        int64_t scoreChannels;        //!< C
        int64_t valueChannels;        //!< D
        int64_t positions;            //!< L, at most 2^31 - 1
        int32_t type;                 //!< HspanCpuType of all four tensors
        int32_t threads;              //!< at most so many work; the calling thread is one of them
        int32_t instructionSet; //!< index below hspanCpuInstructionSetCount(), or -1: the best that this processor has
        int32_t route;          //!< HspanCpuRoute
        int64_t tileRows;       //!< query rows of a tile; 0 chooses
        int64_t gatherLimit;    //!< a row of more candidates goes the dense route; 0 chooses
    };

    //! HSPAN_CPU_ABI_VERSION of the compiled library. Check it before any other call.
    HSPAN_CPU_API int32_t hspanCpuAbiVersion(void);

    //! SHA-256 of the sources, in hexadecimal; empty when the build did not state it. Static storage.
    HSPAN_CPU_API char const* hspanCpuSourceSha256(void);

    //! Instruction sets compiled in, best first.
    HSPAN_CPU_API int32_t hspanCpuInstructionSetCount(void);

    //! "avx512", "avx2", "sse2", "neon" or "scalar"; null when the index is out of range. Static storage.
    HSPAN_CPU_API char const* hspanCpuInstructionSetName(int32_t index);

    //! Whether this processor, and its operating system, can execute it.
    HSPAN_CPU_API int32_t hspanCpuInstructionSetRuns(int32_t index);

    //! Bytes of workspace that the call would allocate, whatever the data; 0 when the arguments are invalid.
    HSPAN_CPU_API uint64_t hspanCpuWorkspaceBytes(struct HspanCpuAttention const* attention);

    //! Computes the attention. Returns HspanCpuStatus. Safe to call from several threads at a time.
    HSPAN_CPU_API int32_t hspanCpuAttention(struct HspanCpuAttention const* attention);

#ifdef __cplusplus
}
#endif
