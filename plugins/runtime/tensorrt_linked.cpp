#include "tensorrt_library.h"

namespace hspan
{

TensorRtLibrary const& tensorRtLibrary()
{
    static TensorRtLibrary const kLIBRARY{createInferRuntime_INTERNAL, getInferLibVersion, getInferLibMajorVersion,
        getInferLibMinorVersion, getInferLibPatchVersion};
    return kLIBRARY;
}

} // namespace hspan
