//! \file cuda_runtime_api.h
//! The few names of the CUDA runtime that the launchers' signatures mention, for builds without CUDA.
#pragma once

enum cudaError_t // NOLINT: the names are CUDA's
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorLaunchFailure = 719,
};

using cudaStream_t = void*;
