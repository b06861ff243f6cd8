// An engine on the GPU. Here begins what knows TensorRT and CUDA.
#pragma once

#include "engine.h"
#include "passport.h"

#include <functional>
#include <memory>
#include <string>

namespace hspan
{

struct GpuOptions
{
    int device = 0;
    bool cudaGraphs = true;
    // Told one line when something optional is not possible, such as capturing a CUDA graph.
    std::function<void(std::string const&)> onNotice;
};

// Checks the rest of the passport, the machine's side, and opens the engine; the plan is not needed afterwards.
// Throws Error: as checkMachine; no TensorRT, no driver, no such GPU, TensorRT refuses the plan, out of memory.
std::unique_ptr<Engine> openTensorRtEngine(VouchedPlan const& plan, GpuOptions const& options);

// "tensorrt 10.3.0, CUDA 12.6", as linked or loaded; "(not installed)" for a TensorRT that cannot be loaded.
std::string tensorRtDescription();

} // namespace hspan
