//! \file kernel_avx2.cpp
//! For processors with AVX2 and FMA; compiled with flags of its own.
#include "kernel.h"

HSPAN_DEFINE_KERNEL(kAVX2_KERNEL)
