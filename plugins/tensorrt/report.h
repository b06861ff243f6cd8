//! \file report.h
//! Failures, reported to TensorRT's logger. Nothing here throws, prints or ends the process.
#pragma once

namespace hspan
{

//! Logs an error. Takes a printf format; messages longer than 511 bytes are cut. TensorRT itself informs the error
//! recorder, when the function that reported fails.
void reportError(char const* format, ...) noexcept __attribute__((format(printf, 1, 2)));

} // namespace hspan
