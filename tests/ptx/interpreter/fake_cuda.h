//! \file fake_cuda.h
//! A CUDA runtime of the ten functions that compiled kernels and their launcher need. Kernels run in the interpreter.
#pragma once

#include <cstdint>

namespace ptx
{

//! What the runtime says of its device, such as 86 for 8.6.
extern int32_t computeCapability;

} // namespace ptx
