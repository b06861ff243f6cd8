//! \file compat.h
//! What TensorRT's headers and the plugin class take from CUDA's runtime beyond the emulation's few names. Included
//! before anything else.
#pragma once

#include <cuda_runtime_api.h>

using cudaEvent_t = void*; // NOLINT: the names are CUDA's

inline char const* cudaGetErrorName(cudaError_t status)
{
    return status == cudaErrorInvalidValue ? "cudaErrorInvalidValue" : "cudaError";
}

inline char const* cudaGetErrorString(cudaError_t status)
{
    return status == cudaErrorInvalidValue ? "invalid argument" : "an error";
}
