//! \file fake_cuda.h
//! A CUDA runtime of the few functions that compiled kernels and their launcher need. Kernels run in the interpreter.
#pragma once

#include <cstdint>

namespace ptx
{

//! What the runtime says of its device, such as 86 for 8.6; 0: there is no device.
extern int32_t computeCapability;

//! The cudaError_t that every launch returns instead of running; 0: it runs.
extern int32_t launchError;

//! How many it has: those of an A100, unless a case asks for others.
extern int32_t multiprocessors;

} // namespace ptx
