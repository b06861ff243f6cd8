#include "report.h"

#include <cstdarg>
#include <cstdio>

#include "loaded_tensorrt.h"

namespace hspan
{

void reportError(char const* format, ...) noexcept
{
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    log(nvinfer1::ILogger::Severity::kERROR, message);
}

} // namespace hspan
