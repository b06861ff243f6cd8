//! \file kernel_avx512.cpp
//! For processors with AVX-512; compiled with flags of its own.
#include "kernel.h"

HSPAN_DEFINE_KERNEL(kAVX512_KERNEL)
