//! \file cuda_advice.h
//! What errors of CUDA's runtime mean that a user can do something about, for the plugin and the runtime alike.
#pragma once

namespace hspan
{

struct CudaAdvice
{
    char const* what;     // nullptr: CUDA's own text has to do
    char const* nextStep; // what to do; then empty
};

//! \param code a cudaError_t.
inline CudaAdvice adviceForCuda(int code) noexcept
{
    char const* const newDriver = "install a newer NVIDIA driver: 580 or newer for CUDA 13, 525 or newer for CUDA 12";
    char const* const buildHere = "compile the plugin for this GPU: trt-hspan plugin build";
    switch (code)
    {
    case 35: return {"the NVIDIA driver is older than the CUDA that this was compiled with", newDriver};
    case 100: return {"the driver finds no GPU", "see whether nvidia-smi lists one; a container needs --gpus all"};
    case 209: return {"the library contains no code for this GPU", buildHere};
    case 221: return {"the driver's compiler of PTX is not installed (libnvidia-ptxjitcompiler.so.1)", buildHere};
    case 222:
        return {"the library's PTX is newer than the driver's compiler, and it contains no machine code for this GPU",
            buildHere};
    case 803:
        return {"the driver's library and its kernel module are of different versions",
            "restart the machine, then run nvidia-smi"};
    default: return {nullptr, ""};
    }
}

} // namespace hspan
