//! \file report.h
//! Messages to TensorRT's logger and error recorder. Nothing here throws, prints or ends the process.
#pragma once

#include <NvInferRuntime.h>

namespace hspan
{

//! Remembers the finder that TensorRT hands over when it loads the library.
void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;

//! Tells the error recorder of the plugin registry, if it has one, else the logger, about a failure. Takes a printf
//! format; messages longer than 511 bytes are cut.
void reportError(nvinfer1::ErrorCode code, char const* format, ...) noexcept __attribute__((format(printf, 2, 3)));

} // namespace hspan
