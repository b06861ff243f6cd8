//! \file loaded_tensorrt.h
//! The TensorRT of the running process, whichever it is. The plugin library links against none, so that one binary
//! serves TensorRT 10, TensorRT 11 and TensorRT-RTX; it asks the libraries that are already loaded and loads none.
//!
//! What a plugin implements (IPluginV3 and its capabilities, IPluginCreatorV3One) and the structures it is given have
//! one layout from TensorRT 10.3 to 11.1. What it may call back has not: TensorRT 11 removed virtual functions from
//! IPluginRegistry and put some in front of those of ILogger and ILoggerFinder. Those calls are made here, by the
//! number of the virtual function in the generation at hand, and nowhere else.
#pragma once

#include <cstddef>

#include <NvInferRuntime.h>

namespace hspan
{

//! Numbers of virtual functions, by the public headers of a TensorRT generation and the Itanium C++ ABI.
struct VirtualNumbers
{
    size_t registerCreator;   //!< IPluginRegistry::registerCreator(IPluginCreatorInterface&, char const*)
    size_t deregisterCreator; //!< IPluginRegistry::deregisterCreator(IPluginCreatorInterface const&)
    size_t log;               //!< ILogger::log(Severity, char const*)
    size_t findLogger;        //!< ILoggerFinder::findLogger()
};

constexpr VirtualNumbers kNUMBERS_OF_10{12, 15, 0, 0}; //!< TensorRT 10
constexpr VirtualNumbers kNUMBERS_OF_11{8, 11, 4, 4};  //!< TensorRT 11; TensorRT-RTX 1.7 (measured)

//! A TensorRT of this process whose generation has no table here: "libnvinfer.so.12 (TensorRT 12.0)".
//! \return false when there is none, with `text` untouched.
bool unknownTensorRt(char* text, size_t length) noexcept;

//! Registers the creator with the plugin registry of this process's TensorRT.
//! \return whether it did: false without TensorRT, with one of an unknown generation, and when a creator of that name
//!     is registered already.
bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, char const* space) noexcept;

//! Takes back what registerCreator() did.
void deregisterCreator(nvinfer1::IPluginCreatorInterface const& creator) noexcept;

//! Remembers the finder that TensorRT hands over when it loads the library.
void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! Gives a message to the logger that the finder names, else to TensorRT's global logger, else to nobody.
void log(nvinfer1::ILogger::Severity severity, char const* message) noexcept;

} // namespace hspan
