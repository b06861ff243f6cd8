//! \file watched_launch.cpp
//! What libhspan_cuda.so has here beyond the product: host memory stands in for device memory. The linker sends the C
//! functions' calls of the product's launcher through watchedLaunch() (--wrap), which says to the interpreter which
//! memory the call may touch, and refuses what it notices. The functions fakeCuda...() are for the tests.
#include <cstdio>
#include <string>

#include "../../../plugins/kernels/sparsemax_attention.h"
#include "fake_cuda.h"
#include "machine.h"

#define HSPAN_LAUNCH "_ZN5hspan24launchSparsemaxAttentionERKNS_16AttentionProblemEiPKvS4_S4_PvS5_P11CUstream_st"
#define FAKE_CUDA_API extern "C" __attribute__((visibility("default")))

using hspan::AttentionProblem;

cudaError_t realLaunch(AttentionProblem const& problem, int32_t config, void const* query, void const* key,
    void const* value, void* output, void* workspace, cudaStream_t stream) noexcept __asm__("__real_" HSPAN_LAUNCH);

cudaError_t watchedLaunch(AttentionProblem const& problem, int32_t config, void const* query, void const* key,
    void const* value, void* output, void* workspace, cudaStream_t stream) noexcept __asm__("__wrap_" HSPAN_LAUNCH);

namespace
{

void* lastStream{};
std::string firstFinding;

size_t tensorBytes(AttentionProblem const& problem, int64_t channels)
{
    bool const isLinear = problem.layout == hspan::TensorLayout::kLINEAR;
    int64_t const pitch = isLinear ? channels : hspan::channelPitch(problem.type, channels);
    int64_t const bytes = problem.type == hspan::ElementType::kFLOAT ? 4 : 2;
    return static_cast<size_t>(problem.shape.batch * problem.shape.positions * pitch * bytes);
}

void share(void const* memory, size_t bytes, char const* name, bool isInput)
{
    ptx::useHostMemory(const_cast<void*>(memory), bytes, name, isInput);
    if (isInput)
    {
        ptx::markWritten(memory, bytes);
    }
}

} // namespace

cudaError_t watchedLaunch(AttentionProblem const& problem, int32_t config, void const* query, void const* key,
    void const* value, void* output, void* workspace, cudaStream_t stream) noexcept
{
    ptx::freeAll();
    ptx::machine.findings.clear();
    ptx::machine.reports = 0;
    lastStream = stream;
    size_t const scoreBytes = tensorBytes(problem, problem.shape.scoreChannels);
    size_t const valueBytes = tensorBytes(problem, problem.shape.valueChannels);
    share(query, scoreBytes, "query", true);
    share(key, scoreBytes, "key", true);
    share(value, valueBytes, "value", true);
    share(output, valueBytes, "output", false);
    share(workspace, hspan::attentionWorkspaceBytes(problem, config), "workspace", false);
    cudaError_t const status = realLaunch(problem, config, query, key, value, output, workspace, stream);
    firstFinding.clear();
    if (!ptx::machine.findings.empty())
    {
        auto const& [place, finding] = *ptx::machine.findings.begin();
        firstFinding = place + "; " + finding.first;
    }
    else if (status == cudaSuccess && !ptx::isWritten(output, valueBytes))
    {
        firstFinding = "not all of the output was written";
    }
    ptx::freeAll();
    return firstFinding.empty() ? status : cudaErrorIllegalAddress;
}

//! What the device says of itself, such as 80; 0: there is none.
FAKE_CUDA_API void fakeCudaSetComputeCapability(int32_t capability)
{
    ptx::computeCapability = capability;
}

//! All launches from now on fail with this error; 0: none does.
FAKE_CUDA_API void fakeCudaFailLaunches(int32_t error)
{
    ptx::launchError = error;
}

//! The stream of the last call.
FAKE_CUDA_API void* fakeCudaLastStream()
{
    return lastStream;
}

//! What the interpreter noticed in the last call; empty: nothing.
FAKE_CUDA_API char const* fakeCudaFinding()
{
    return firstFinding.c_str();
}
