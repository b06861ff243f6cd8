//! \file loaded_tensorrt.h
//! The TensorRT of the running process, whichever it is. The plugin library links against none, so that one binary
//! serves TensorRT 10, TensorRT 11 and TensorRT-RTX; it asks the libraries that are already loaded.
#pragma once

#include <NvInferRuntime.h>

namespace hspan
{

//! The plugin registry of the TensorRT library in this process; null when there is none. Never loads a library.
nvinfer1::IPluginRegistry* loadedRegistry() noexcept;

//! TensorRT's global logger; null when there is none.
nvinfer1::ILogger* loadedLogger() noexcept;

} // namespace hspan
