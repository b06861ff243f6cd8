//! \file report.h
//! Failures, told to TensorRT's logger. Nothing here throws, prints or ends the process.
#pragma once

namespace hspan
{

//! Logs an error. Takes a printf format; messages longer than 511 bytes are cut. TensorRT itself tells the error
//! recorder, when the function that reported fails.
void reportError(char const* format, ...) noexcept __attribute__((format(printf, 1, 2)));

} // namespace hspan
