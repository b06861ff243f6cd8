#include "report.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

#include "loaded_tensorrt.h"

namespace hspan
{

namespace
{

std::atomic<nvinfer1::ILoggerFinder*> gFinder{nullptr};

nvinfer1::ILogger* findLogger() noexcept
{
    nvinfer1::ILoggerFinder* const finder = gFinder.load();
    if (finder != nullptr)
    {
        try
        {
            nvinfer1::ILogger* const logger = finder->findLogger();
            if (logger != nullptr)
            {
                return logger;
            }
        }
        catch (...) // NOLINT: the interface is not noexcept, and no logger is no reason to end a process
        {
        }
    }
    return loadedLogger();
}

} // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gFinder.store(finder);
}

void reportError(nvinfer1::ErrorCode code, char const* format, ...) noexcept
{
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);

    nvinfer1::IPluginRegistry* const registry = loadedRegistry();
    nvinfer1::IErrorRecorder* const recorder = registry == nullptr ? nullptr : registry->getErrorRecorder();
    if (recorder != nullptr)
    {
        recorder->reportError(code, message);
        return;
    }
    nvinfer1::ILogger* const logger = findLogger();
    if (logger != nullptr)
    {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);
    }
}

} // namespace hspan
