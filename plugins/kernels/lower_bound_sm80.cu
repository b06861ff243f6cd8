#include "launchers.h"
#include "lower_bound.cuh"

namespace hspan
{

cudaError_t launchLowerBounds(LookCall const& call)
{
    auto* const memory = static_cast<unsigned char*>(call.pointers.workspace);
    LowerBoundArguments const arguments{reinterpret_cast<float const*>(memory + call.workspace.maxima),
        reinterpret_cast<RowBound*>(memory + call.workspace.bounds), call.plan.maximaOfRow};
    constexpr int32_t kMOST_QUADS{kMAX_MAXIMA / kQUADS_AT_ONCE};
    constexpr int32_t kFEWER_QUADS{5};
    auto* const kernel = arguments.maximaOfRow == kMAX_MAXIMA   ? &lowerBoundKernel<kMOST_QUADS, true>
        : arguments.maximaOfRow > kFEWER_QUADS * kQUADS_AT_ONCE ? &lowerBoundKernel<kMOST_QUADS, false>
                                                                : &lowerBoundKernel<kFEWER_QUADS, false>;
    return simt::launch(kernel, {call.slots / kBOUND_ROWS, 1, 1}, kBOUND_BLOCK, call.stream, arguments);
}

} // namespace hspan
