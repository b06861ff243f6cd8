//! \file hspan_cuda.h
//! Exact sparsemax attention on device memory, behind a C ABI: what `libhspan_cuda.so` exports.
//!
//! The library depends on the driver alone: neither TensorRT nor PyTorch, and CUDA's runtime is inside. Mathematics and
//! numeric contract are those of the TensorRT plugin, whose kernels these are (plugins/README.md);
//! plugins/cuda/README.md says how to compile and call it.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C"
{
#endif

#define HSPAN_CUDA_API __attribute__((visibility("default")))

//! Grows whenever anything in this file changes its meaning.
#define HSPAN_CUDA_ABI_VERSION 1

    enum HspanCudaType
    {
        HSPAN_CUDA_FLOAT = 0,
        HSPAN_CUDA_HALF = 1,
        HSPAN_CUDA_BFLOAT16 = 2,
    };

    //! How the four tensors lie in memory, all alike and without gaps between images.
    enum HspanCudaLayout
    {
        HSPAN_CUDA_LINEAR = 0,        //!< (N, channels, L)
        HSPAN_CUDA_CHANNELS_LAST = 1, //!< (N, L, pitch), the pitch being hspanCudaChannelPitch()
    };

    //! What a call returns. From HSPAN_CUDA_ERROR_BASE on: that plus the number of a cudaError_t.
    enum HspanCudaStatus
    {
        HSPAN_CUDA_OK = 0,
        HSPAN_CUDA_NULL_POINTER = 1,
        HSPAN_CUDA_UNKNOWN_TYPE = 2,
        HSPAN_CUDA_UNKNOWN_LAYOUT = 3,
        HSPAN_CUDA_SIZE_OUT_OF_RANGE = 4,
        HSPAN_CUDA_UNKNOWN_CONFIGURATION = 5,
        HSPAN_CUDA_UNSUPPORTED_CONFIGURATION = 6, //!< it does not serve this type, these sizes or this GPU
        HSPAN_CUDA_MISALIGNED = 7,
        HSPAN_CUDA_WORKSPACE_TOO_SMALL = 8,
        HSPAN_CUDA_OVERLAP = 9, //!< output or workspace share memory with another tensor
        HSPAN_CUDA_ERROR_BASE = 1000,
    };

    struct HspanCudaProblem
    {
        int64_t batch;         //!< N
        int64_t scoreChannels; //!< C, channels of query and key
        int64_t valueChannels; //!< D, channels of value and output
        int64_t positions;     //!< L = H * W, at most 2^31 - 1
        int32_t type;          //!< HspanCudaType of all four tensors
        int32_t layout;        //!< HspanCudaLayout of all four tensors
        int32_t configuration; //!< below hspanCudaConfigurationCount(); 0 chooses by type, sizes and GPU
    };

    //! Device memory of one call. What has no elements may be null.
    struct HspanCudaTensors
    {
        void const* query; //!< (N, C, L); inputs and output are aligned to 16 bytes
        void const* key;   //!< (N, C, L)
        void const* value; //!< (N, D, L)
        void* output;      //!< (N, D, L)
        void* workspace;   //!< aligned to 256 bytes
        uint64_t workspaceBytes;
    };

    //! HSPAN_CUDA_ABI_VERSION of the compiled library. Check it before any other call.
    HSPAN_CUDA_API int32_t hspanCudaAbiVersion(void);

    //! What the library is, as a JSON object: abi_version, cuda_version, the compute capabilities it contains machine
    //! code (cubin_architectures) and PTX (ptx_architectures, of version ptx_isa_version) for, and source_sha256; empty
    //! where the build did not state it. Static storage; needs no GPU. The text is in the file as well, after the
    //! marker "hspan-cuda-info:".
    HSPAN_CUDA_API char const* hspanCudaInfo(void);

    //! What a status means, one phrase. Static storage.
    HSPAN_CUDA_API char const* hspanCudaStatusText(int32_t status);

    //! Configurations are 0 ... hspanCudaConfigurationCount() - 1: ways to compute the same.
    HSPAN_CUDA_API int32_t hspanCudaConfigurationCount(void);

    //! A short name such as "plain-32x128"; null when the index is out of range. Static storage.
    HSPAN_CUDA_API char const* hspanCudaConfigurationName(int32_t configuration);

    //! Elements from one position to the next in a channels-last tensor; 0 for what cannot be.
    HSPAN_CUDA_API int64_t hspanCudaChannelPitch(int32_t type, int64_t channels);

    //! Bytes of workspace that a problem needs on any GPU; never O(L^2). Returns HspanCudaStatus; needs no GPU.
    HSPAN_CUDA_API int32_t hspanCudaWorkspaceBytes(struct HspanCudaProblem const* problem, uint64_t* bytes);

    //! Starts the attention on the calling thread's current device, on a stream of it; null is the default stream.
    //!
    //! Everything is checked before anything is started. The call neither allocates nor waits, so it can be captured in
    //! a CUDA graph, and the same inputs give the same bits. Safe to call from several threads at a time, with a
    //! workspace each. Padding of channels-last inputs may hold anything; that of the output becomes zero.
    //!
    //! Returns HspanCudaStatus.
    HSPAN_CUDA_API int32_t hspanCudaAttention(
        struct HspanCudaProblem const* problem, struct HspanCudaTensors const* tensors, void* stream);

#ifdef __cplusplus
}
#endif
