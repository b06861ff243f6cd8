// An engine on the GPU. The only file besides its .cpp that knows TensorRT and CUDA.
#pragma once

#include "engine.h"

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

// Reads manifest, plan and plugin, checks the passport, and opens the engine.
// Throws Error: as passport.h; no TensorRT, no driver, no such GPU, TensorRT refuses the plan, out of memory.
std::unique_ptr<Engine> openTensorRtEngine(
    std::string const& planPath, std::string const& pluginPath, GpuOptions const& options);

// "tensorrt 10.3.0, CUDA 12.6", as linked or loaded; "(not installed)" for a TensorRT that cannot be loaded.
std::string tensorRtDescription();

} // namespace hspan
