//! \file kernel_baseline.cpp
//! For every processor: SSE2 on x86-64, NEON on aarch64, what the compiler makes of vectors elsewhere.
#include "kernel.h"

HSPAN_DEFINE_KERNEL(kBASELINE_KERNEL)
