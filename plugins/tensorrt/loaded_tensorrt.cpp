#include "loaded_tensorrt.h"

#include <cstring>

#include <dlfcn.h>
#include <link.h>

namespace hspan
{

namespace
{

constexpr size_t kMAX_PATH{4096};
constexpr int32_t kMAX_CANDIDATES{16};

//! Paths of loaded libraries that can hold TensorRT's runtime.
struct Candidates
{
    char paths[kMAX_CANDIDATES][kMAX_PATH];
    int32_t count;
};

//! Whether a file name is that of a library with a plugin registry: libnvinfer.so.10, libtensorrt_rtx.so.1, ...
bool isRuntimeName(char const* name) noexcept
{
    constexpr char const* kSTEMS[]
        = {"libnvinfer.so", "libnvinfer_lean.so", "libnvinfer_dispatch.so", "libtensorrt_rtx.so"};
    for (char const* const stem : kSTEMS)
    {
        if (std::strncmp(name, stem, std::strlen(stem)) == 0)
        {
            return true;
        }
    }
    return false;
}

//! Called by the dynamic linker with its lock held: only takes notes.
int collect(dl_phdr_info* info, size_t /*size*/, void* data) noexcept
{
    auto& candidates = *static_cast<Candidates*>(data);
    char const* const path = info->dlpi_name;
    if (path == nullptr || candidates.count == kMAX_CANDIDATES || std::strlen(path) >= kMAX_PATH)
    {
        return 0;
    }
    char const* const slash = std::strrchr(path, '/');
    if (isRuntimeName(slash == nullptr ? path : slash + 1))
    {
        std::strcpy(candidates.paths[candidates.count], path);
        candidates.count += 1;
    }
    return 0;
}

//! A function of the loaded TensorRT. Python loads TensorRT privately, so the global scope alone does not show it.
void* findFunction(char const* name) noexcept
{
    if (void* const function = dlsym(RTLD_DEFAULT, name))
    {
        return function;
    }
    static thread_local Candidates gCandidates;
    gCandidates.count = 0;
    dl_iterate_phdr(collect, &gCandidates);
    for (int32_t i = 0; i < gCandidates.count; ++i)
    {
        void* const library = dlopen(gCandidates.paths[i], RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr)
        {
            continue;
        }
        void* const function = dlsym(library, name);
        dlclose(library); // gives back the reference that RTLD_NOLOAD added
        if (function != nullptr)
        {
            return function;
        }
    }
    return nullptr;
}

} // namespace

nvinfer1::IPluginRegistry* loadedRegistry() noexcept
{
    auto const get = reinterpret_cast<nvinfer1::IPluginRegistry* (*) () noexcept>(findFunction("getPluginRegistry"));
    return get == nullptr ? nullptr : get();
}

nvinfer1::ILogger* loadedLogger() noexcept
{
    auto const get = reinterpret_cast<nvinfer1::ILogger* (*) () noexcept>(findFunction("getLogger"));
    return get == nullptr ? nullptr : get();
}

} // namespace hspan
