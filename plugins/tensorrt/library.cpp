//! \file library.cpp
//! The ways into the library. TensorRT's plugin registry and trtexec call getCreators() after loading it; a program
//! that merely opens it (Triton's TensorRT backend) finds the creator registered by the time dlopen() returns. Either
//! way the creator is registered once: getCreators() takes back what opening did. Where the process has opened another
//! build of this plugin before, this one offers nothing: engines would run on whichever of the two comes first.
#include <cstdio>
#include <cstring>
#include <mutex>

#include <dlfcn.h>
#include <link.h>

#include "attention_creator.h"
#include "loaded_tensorrt.h"
#include "plugin_abi.h"
#include "report.h"

#define HSPAN_EXPORT extern "C" __attribute__((visibility("default")))

#define HSPAN_TEXT(text) #text
#define HSPAN_VALUE(text) HSPAN_TEXT(text)

static_assert(hspan::kABI_VERSION == HSPAN_PLUGIN_ABI_VERSION, "CMakeLists.txt and plugin_abi.h must agree");

#define HSPAN_INFO_MARKER "hspan-plugin-info:"

//! The marker lets a reader find the text in the file, so that no code of a library need run to learn what it is.
static constexpr char kMARKED_INFO[] = HSPAN_INFO_MARKER
    "{\"name\": \"HighSimilarityPassAttention\", \"version\": \"1\", \"namespace\": \"\", "
    "\"abi_version\": " HSPAN_VALUE(
        HSPAN_PLUGIN_ABI_VERSION) ", "
                                  "\"cubin_architectures\": [" HSPAN_CUBIN_ARCHITECTURES "], "
                                  "\"ptx_architectures\": [" HSPAN_PTX_ARCHITECTURES "], "
                                  "\"cuda_version\": \"" HSPAN_CUDA_VERSION "\", "
                                  "\"ptx_isa_version\": \"" HSPAN_PTX_VERSION "\", "
                                  "\"tensorrt_header_version\": \"" HSPAN_VALUE(NV_TENSORRT_MAJOR) "." HSPAN_VALUE(
                                      NV_TENSORRT_MINOR) "." HSPAN_VALUE(NV_TENSORRT_PATCH) "\", "
                                                                                            "\"source_sha256\": "
                                                                                            "\"" HSPAN_SOURCE_SHA256
                                                                                            "\"}";

static constexpr char const* kINFO{kMARKED_INFO + sizeof(HSPAN_INFO_MARKER) - 1};

namespace
{

//! Lives as long as the process: the registry keeps a pointer to it, and the library is linked with -z nodelete.
hspan::AttentionPluginCreator& creator() noexcept
{
    static auto& gCreator = *new hspan::AttentionPluginCreator;
    return gCreator;
}

std::mutex gMutex;
bool gRegisteredWhenOpened{false};
bool gIsSecond{false}; //!< another build of the plugin was opened before

//! Of a library that is loaded; null for other libraries than this plugin's.
char const* infoOf(char const* path) noexcept
{
    void* const library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr)
    {
        return nullptr;
    }
    auto const info = reinterpret_cast<char const* (*)()>(dlsym(library, "hspanPluginInfo"));
    dlclose(library); // gives back the reference that RTLD_NOLOAD added
    return info == nullptr ? nullptr : info();
}

//! The path of another build of this plugin that the process has opened; null when there is none. To be called while
//! this library is being opened: the list of libraries does not change meanwhile.
char const* otherBuild() noexcept
{
    for (link_map const* library = _r_debug.r_map; library != nullptr; library = library->l_next)
    {
        char const* const info = library->l_name[0] == '\0' ? nullptr : infoOf(library->l_name);
        if (info != nullptr && std::strcmp(info, kINFO) != 0)
        {
            return library->l_name;
        }
    }
    return nullptr;
}

__attribute__((constructor)) void registerWhenOpened() noexcept
{
    std::lock_guard<std::mutex> const lock{gMutex};
    char text[256];
    if (hspan::unknownTensorRt(text, sizeof text))
    { // its logger is as unknown as the rest of it
        std::fprintf(stderr,
            "%s: %s is of a generation that this library does not know (TensorRT 10 and 11, TensorRT-RTX from 1.7); "
            "take a newer trt-hspan\n",
            hspan::kPLUGIN_NAME, text);
    }
    if (char const* const other = otherBuild())
    {
        gIsSecond = true;
        hspan::reportError("%s: this process has opened another build of the plugin, %s; this one offers nothing",
            hspan::kPLUGIN_NAME, other);
        return;
    }
    gRegisteredWhenOpened = hspan::registerCreator(creator(), hspan::kPLUGIN_NAMESPACE);
}

} // namespace

HSPAN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    hspan::setLoggerFinder(finder);
}

HSPAN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    std::lock_guard<std::mutex> const lock{gMutex};
    if (gRegisteredWhenOpened)
    {
        hspan::deregisterCreator(creator());
        gRegisteredWhenOpened = false;
    }
    static nvinfer1::IPluginCreatorInterface* const gCreators[] = {&creator()};
    count = gIsSecond ? 0 : 1;
    return gCreators;
}

//! What the library is, as a JSON object. Static storage; callable without a GPU and without TensorRT.
HSPAN_EXPORT char const* hspanPluginInfo()
{
    return kINFO;
}
