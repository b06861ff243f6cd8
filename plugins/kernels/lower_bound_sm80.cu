#include "launchers.h"
#include "lower_bound.cuh"

namespace hspan
{

namespace
{

template <bool kIS_COARSE>
cudaError_t launchBounds(LookCall const& call, LowerBoundArguments const& arguments)
{
    constexpr int32_t kMOST_QUADS{kMAX_MAXIMA / kQUADS_AT_ONCE};
    constexpr int32_t kFEWER_QUADS{5};
    auto* const kernel = arguments.maximaOfRow == kMAX_MAXIMA   ? &lowerBoundKernel<kMOST_QUADS, true, kIS_COARSE>
        : arguments.maximaOfRow > kFEWER_QUADS * kQUADS_AT_ONCE ? &lowerBoundKernel<kMOST_QUADS, false, kIS_COARSE>
                                                                : &lowerBoundKernel<kFEWER_QUADS, false, kIS_COARSE>;
    return simt::launch(kernel, {call.slots / kBOUND_ROWS, 1, 1}, kBOUND_BLOCK, call.stream, arguments);
}

} // namespace

cudaError_t launchLowerBounds(LookCall const& call)
{
    auto* const memory = static_cast<unsigned char*>(call.pointers.workspace);
    LowerBoundArguments const arguments{reinterpret_cast<float const*>(memory + call.workspace.maxima),
        reinterpret_cast<RowBound*>(memory + call.workspace.bounds), call.plan.maximaOfRow,
        reinterpret_cast<CoarseRow const*>(memory + call.workspace.coarseRows), call.workspace.slotsPerImage,
        call.firstSlot, static_cast<int32_t>(call.problem.shape.positions)};
    return call.problem.type == ElementType::kFLOAT ? launchBounds<true>(call, arguments)
                                                    : launchBounds<false>(call, arguments);
}

} // namespace hspan
