#include "coarse_copies.cuh"
#include "two_looks.cuh"

namespace hspan
{

LookLaunchers lookLaunchersFloat()
{
    LookLaunchers launchers = lookLaunchersHalf();
    launchers.prepareTensors = [](LookCall const& call)
    {
        cudaError_t const status = prepareAll<float>(call.problem, call.workspace, call.pointers, call.stream);
        return status == cudaSuccess
            ? makeCoarseCopies(call, tiledArguments<float>(call.problem, call.workspace, call.pointers))
            : status;
    };
    launchers.finishLists = [](LookCall const& call) { return finishLists(call, lookArguments<float>(call)); };
    launchers.findDenseThresholds
        = [](LookCall const& call) { return findDenseThresholds(call, lookArguments<float>(call)); };
    launchers.sumDense = [](LookCall const& call) { return sumDense(call, lookArguments<float>(call)); };
    return launchers;
}

} // namespace hspan
