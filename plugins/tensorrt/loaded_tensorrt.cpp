#include "loaded_tensorrt.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include <dlfcn.h>
#include <link.h>

namespace hspan
{

namespace
{

constexpr size_t kMAX_PATH{1024};
constexpr int32_t kMAX_CANDIDATES{8};

//! Loaded libraries that can be TensorRT's runtime.
struct Candidates
{
    char paths[kMAX_CANDIDATES][kMAX_PATH];
    int32_t count;
};

//! The library to ask, and how.
struct Runtime
{
    void* registry;
    void* logger;
    VirtualNumbers const* numbers;
};

std::atomic<nvinfer1::ILoggerFinder*> gFinder{nullptr};

bool startsWith(char const* text, char const* start) noexcept
{
    return std::strncmp(text, start, std::strlen(start)) == 0;
}

char const* fileName(char const* path) noexcept
{
    char const* const slash = std::strrchr(path, '/');
    return slash == nullptr ? path : slash + 1;
}

bool isRtx(char const* path) noexcept
{
    return startsWith(fileName(path), "libtensorrt_rtx.so");
}

//! libnvinfer.so.10, libnvinfer_lean.so.11, libtensorrt_rtx.so.1 and the like.
bool isRuntime(char const* path) noexcept
{
    char const* const name = fileName(path);
    return isRtx(path) || startsWith(name, "libnvinfer.so") || startsWith(name, "libnvinfer_lean.so")
        || startsWith(name, "libnvinfer_dispatch.so");
}

//! Called by the dynamic linker with its lock held: only takes notes.
int collect(dl_phdr_info* info, size_t /*size*/, void* data) noexcept
{
    auto& candidates = *static_cast<Candidates*>(data);
    char const* const path = info->dlpi_name;
    if (path != nullptr && isRuntime(path) && std::strlen(path) < kMAX_PATH && candidates.count < kMAX_CANDIDATES)
    {
        std::strcpy(candidates.paths[candidates.count], path);
        candidates.count += 1;
    }
    return 0;
}

//! Calls a parameterless C function of a library; 0 when it has none of that name.
template <typename Result>
Result call(void* library, char const* name) noexcept
{
    auto const function = reinterpret_cast<Result (*)() noexcept>(dlsym(library, name));
    return function == nullptr ? Result{} : function();
}

//! Null for an unsupported generation: its virtual functions might be anywhere.
VirtualNumbers const* numbersOf(void* library, bool rtx) noexcept
{
    auto const major = call<int32_t>(library, "getInferLibMajorVersion");
    auto const minor = call<int32_t>(library, "getInferLibMinorVersion");
    if (rtx)
    {
        return major == 1 && minor >= 7 ? &kNUMBERS_OF_11 : nullptr;
    }
    return major == 10 ? &kNUMBERS_OF_10 : major == 11 ? &kNUMBERS_OF_11 : nullptr;
}

//! Loaded libraries that can be TensorRT's runtime.
Candidates candidateRuntimes() noexcept
{
    Candidates candidates = {};
    dl_iterate_phdr(collect, &candidates);
    return candidates;
}

//! The TensorRT of this process. Python loads it privately, so that the global scope alone does not show it. Two
//! generations at once leave open which of them calls; then there is none.
Runtime findRuntime() noexcept
{
    Candidates const candidates = candidateRuntimes();
    Runtime result = {};
    for (int32_t i = 0; i < candidates.count; ++i)
    {
        void* const library = dlopen(candidates.paths[i], RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr)
        {
            continue;
        }
        Runtime const runtime = {call<void*>(library, "getPluginRegistry"), call<void*>(library, "getLogger"),
            numbersOf(library, isRtx(candidates.paths[i]))};
        dlclose(library); // gives back the reference that RTLD_NOLOAD added
        if (runtime.registry == nullptr || runtime.registry == result.registry)
        {
            continue;
        }
        if (runtime.numbers == nullptr || (result.numbers != nullptr && result.numbers != runtime.numbers))
        {
            return {};
        }
        if (result.registry == nullptr)
        {
            result = runtime;
        }
    }
    return result;
}

//! Calls a virtual function by its number. `this` is an ordinary first argument in the Itanium ABI.
template <typename Result, typename... Arguments>
Result callVirtual(void* object, size_t number, Arguments... arguments)
{
    using Function = Result (*)(void*, Arguments...);
    auto const* const table = *static_cast<Function**>(object);
    return table[number](object, arguments...);
}

} // namespace

bool unknownTensorRt(char* text, size_t length) noexcept
{
    Candidates const candidates = candidateRuntimes();
    for (int32_t i = 0; i < candidates.count; ++i)
    {
        char const* const path = candidates.paths[i];
        void* const library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
        bool const isUnknown = library != nullptr && dlsym(library, "getPluginRegistry") != nullptr
            && numbersOf(library, isRtx(path)) == nullptr;
        if (isUnknown)
        {
            std::snprintf(text, length, "%s (%s %d.%d)", fileName(path), isRtx(path) ? "TensorRT-RTX" : "TensorRT",
                call<int32_t>(library, "getInferLibMajorVersion"), call<int32_t>(library, "getInferLibMinorVersion"));
        }
        if (library != nullptr)
        {
            dlclose(library); // gives back the reference that RTLD_NOLOAD added
        }
        if (isUnknown)
        {
            return true;
        }
    }
    return false;
}

bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, char const* space) noexcept
{
    Runtime const runtime = findRuntime();
    return runtime.registry != nullptr
        && callVirtual<bool>(runtime.registry, runtime.numbers->registerCreator, &creator, space);
}

void deregisterCreator(nvinfer1::IPluginCreatorInterface const& creator) noexcept
{
    Runtime const runtime = findRuntime();
    if (runtime.registry != nullptr)
    {
        callVirtual<bool>(runtime.registry, runtime.numbers->deregisterCreator, &creator);
    }
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    gFinder.store(finder);
}

void log(nvinfer1::ILogger::Severity severity, char const* message) noexcept
{
    Runtime const runtime = findRuntime();
    if (runtime.registry == nullptr)
    {
        return;
    }
    try
    {
        nvinfer1::ILoggerFinder* const finder = gFinder.load();
        void* logger = finder == nullptr ? nullptr : callVirtual<void*>(finder, runtime.numbers->findLogger);
        logger = logger == nullptr ? runtime.logger : logger;
        if (logger != nullptr)
        {
            callVirtual<void>(logger, runtime.numbers->log, severity, message);
        }
    }
    catch (...) // NOLINT: a logger that throws is no reason to end the process
    {
    }
}

} // namespace hspan
