// TensorRT loaded by its soname when it is first needed: programs built where there is no TensorRT, for machines that
// have it, and that can say in one line when they do not.

#include "error.h"
#include "tensorrt_library.h"

#include <dlfcn.h>

namespace hspan
{
namespace
{

// The soname holds the generation, because the virtual functions of another stand elsewhere.
std::string const kNAME = "libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR);

std::string const kOLDEST = std::to_string(HSPAN_OLDEST_MAJOR) + "." + std::to_string(HSPAN_OLDEST_MINOR);

template <typename Function>
void find(void* library, char const* name, Function& function)
{
    function = reinterpret_cast<Function>(::dlsym(library, name));
    if (function == nullptr)
    {
        throw Error(kNAME, std::string("has no function ") + name, "install TensorRT again");
    }
}

TensorRtLibrary load()
{
    void* const library = ::dlopen(kNAME.c_str(), RTLD_NOW | RTLD_LOCAL); // stays: TensorRT must not be unloaded
    if (library == nullptr)
    {
        char const* const reason = ::dlerror();
        throw Error(kNAME, std::string("cannot be loaded: ") + (reason != nullptr ? reason : "unknown reason"),
            "install TensorRT " + std::to_string(NV_TENSORRT_MAJOR) + " (on a Jetson: apt install libnvinfer"
                + std::to_string(NV_TENSORRT_MAJOR) + ")");
    }
    TensorRtLibrary functions{};
    find(library, "createInferRuntime_INTERNAL", functions.createRuntime);
    find(library, "getInferLibVersion", functions.version);
    find(library, "getInferLibMajorVersion", functions.major);
    find(library, "getInferLibMinorVersion", functions.minor);
    find(library, "getInferLibPatchVersion", functions.patch);
    bool const isOlder = functions.major() == HSPAN_OLDEST_MAJOR && functions.minor() < HSPAN_OLDEST_MINOR;
    if (functions.major() != NV_TENSORRT_MAJOR || isOlder)
    {
        throw Error(kNAME,
            "is TensorRT " + functions.versionText() + ", this program is for " + kOLDEST + " and later "
                + std::to_string(NV_TENSORRT_MAJOR) + ".x",
            "install the TensorRT of your system again, or the package for it");
    }
    return functions;
}

} // namespace

TensorRtLibrary const& tensorRtLibrary()
{
    static TensorRtLibrary const kLIBRARY = load();
    return kLIBRARY;
}

} // namespace hspan
