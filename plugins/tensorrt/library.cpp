//! \file library.cpp
//! The ways into the library. TensorRT's plugin registry and trtexec call getCreators() after loading it; a program
//! that merely opens it (Triton's TensorRT backend) finds the creator registered by the time dlopen() returns. Either
//! way the creator is registered once: getCreators() takes back what opening did.
#include <mutex>

#include "attention_creator.h"
#include "loaded_tensorrt.h"
#include "plugin_abi.h"

#define HSPAN_EXPORT extern "C" __attribute__((visibility("default")))

#define HSPAN_TEXT(text) #text
#define HSPAN_VALUE(text) HSPAN_TEXT(text)

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

__attribute__((constructor)) void registerWhenOpened() noexcept
{
    std::lock_guard<std::mutex> const lock{gMutex};
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
    count = 1;
    return gCreators;
}

static_assert(hspan::kABI_VERSION == HSPAN_PLUGIN_ABI_VERSION, "CMakeLists.txt and plugin_abi.h must agree");

#define HSPAN_INFO_MARKER "hspan-plugin-info:"

//! The marker lets a reader find the text in the file, so that no code of a library need run to learn what it is.
static constexpr char kINFO[] = HSPAN_INFO_MARKER
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

//! What the library is, as a JSON object. Static storage; callable without a GPU and without TensorRT.
HSPAN_EXPORT char const* hspanPluginInfo()
{
    return kINFO + sizeof(HSPAN_INFO_MARKER) - 1;
}
