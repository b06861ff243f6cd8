//! \file hspan_cuda.cpp
//! The C functions: checks, and the call of the launcher. No arithmetic.
#include "hspan_cuda.h"

#include <initializer_list>

#include <cuda_runtime_api.h>

#include "../kernels/sparsemax_attention.h"

#define HSPAN_TEXT(text) #text
#define HSPAN_VALUE(text) HSPAN_TEXT(text)

// A build by hand need not state these; of nvcc's own macros the version is one.
#ifndef HSPAN_CUDA_VERSION
#ifdef __CUDACC_VER_MAJOR__
#define HSPAN_CUDA_VERSION HSPAN_VALUE(__CUDACC_VER_MAJOR__) "." HSPAN_VALUE(__CUDACC_VER_MINOR__)
#else
#define HSPAN_CUDA_VERSION ""
#endif
#endif
#ifndef HSPAN_PTX_VERSION
#define HSPAN_PTX_VERSION ""
#endif
#ifndef HSPAN_CUBIN_ARCHITECTURES
#define HSPAN_CUBIN_ARCHITECTURES ""
#endif
#ifndef HSPAN_PTX_ARCHITECTURES
#define HSPAN_PTX_ARCHITECTURES ""
#endif
#ifndef HSPAN_SOURCE_SHA256
#define HSPAN_SOURCE_SHA256 ""
#endif
#define HSPAN_INFO_MARKER "hspan-cuda-info:"

namespace
{

using hspan::AttentionProblem;

constexpr uint64_t kTENSOR_ALIGNMENT{16};
constexpr uint64_t kWORKSPACE_ALIGNMENT{256};

//! The marker lets a reader find the text in the file, so that no code of a library need run to learn what it is.
constexpr char kINFO[] = HSPAN_INFO_MARKER
    "{\"abi_version\": " HSPAN_VALUE(HSPAN_CUDA_ABI_VERSION) ", \"cubin_architectures\": [" HSPAN_CUBIN_ARCHITECTURES
                                                             "], \"ptx_architectures\": [" HSPAN_PTX_ARCHITECTURES
                                                             "], \"cuda_version\": \"" HSPAN_CUDA_VERSION
                                                             "\", \"ptx_isa_version\": \"" HSPAN_PTX_VERSION
                                                             "\", \"source_sha256\": \"" HSPAN_SOURCE_SHA256 "\"}";

//! Memory from `start`, of `bytes`.
struct Span
{
    void const* start;
    uint64_t bytes;

    uint64_t address() const
    {
        return reinterpret_cast<uint64_t>(start);
    }

    bool overlaps(Span const& other) const
    {
        return bytes > 0 && other.bytes > 0 && address() < other.address() + other.bytes
            && other.address() < address() + bytes;
    }
};

AttentionProblem problemFrom(HspanCudaProblem const& problem)
{
    return {static_cast<hspan::ElementType>(problem.type), static_cast<hspan::TensorLayout>(problem.layout),
        {problem.batch, problem.scoreChannels, problem.valueChannels, problem.positions}};
}

bool isEmpty(HspanCudaProblem const& problem)
{
    return problem.batch == 0 || problem.valueChannels == 0 || problem.positions == 0;
}

bool isKnownType(int32_t type)
{
    return type >= HSPAN_CUDA_FLOAT && type <= HSPAN_CUDA_BFLOAT16;
}

int32_t statusFrom(cudaError_t error)
{
    return error == cudaSuccess ? HSPAN_CUDA_OK : HSPAN_CUDA_ERROR_BASE + static_cast<int32_t>(error);
}

//! Whether the problem can be on some GPU, and its workspace.
int32_t checkProblem(HspanCudaProblem const* problem, uint64_t& workspaceBytes)
{
    if (problem == nullptr)
    {
        return HSPAN_CUDA_NULL_POINTER;
    }
    if (!isKnownType(problem->type))
    {
        return HSPAN_CUDA_UNKNOWN_TYPE;
    }
    if (problem->layout != HSPAN_CUDA_LINEAR && problem->layout != HSPAN_CUDA_CHANNELS_LAST)
    {
        return HSPAN_CUDA_UNKNOWN_LAYOUT;
    }
    if (hspan::attentionConfigName(problem->configuration) == nullptr)
    {
        return HSPAN_CUDA_UNKNOWN_CONFIGURATION;
    }
    if (problem->batch < 0 || problem->scoreChannels < 0 || problem->valueChannels < 0 || problem->positions < 0)
    {
        return HSPAN_CUDA_SIZE_OUT_OF_RANGE;
    }
    // Every problem that is not empty needs some workspace; the launcher says 0 of what is out of its range. An empty
    // one keeps to the same range.
    AttentionProblem own = problemFrom(*problem);
    for (int64_t* const size : {&own.shape.batch, &own.shape.valueChannels, &own.shape.positions})
    {
        *size = *size == 0 ? 1 : *size;
    }
    workspaceBytes = hspan::attentionWorkspaceBytes(own, problem->configuration);
    if (workspaceBytes == 0)
    {
        return HSPAN_CUDA_SIZE_OUT_OF_RANGE;
    }
    workspaceBytes = isEmpty(*problem) ? 0 : workspaceBytes;
    return HSPAN_CUDA_OK;
}

int32_t checkMemory(HspanCudaProblem const& problem, HspanCudaTensors const& tensors, uint64_t workspaceBytes)
{
    auto const spanOf = [&](void const* start, int64_t channels) -> Span
    {
        int64_t const pitch
            = problem.layout == HSPAN_CUDA_LINEAR ? channels : hspanCudaChannelPitch(problem.type, channels);
        uint64_t const elementBytes = problem.type == HSPAN_CUDA_FLOAT ? 4 : 2;
        return {start, static_cast<uint64_t>(problem.batch * problem.positions * pitch) * elementBytes};
    };
    Span const inputs[] = {spanOf(tensors.query, problem.scoreChannels), spanOf(tensors.key, problem.scoreChannels),
        spanOf(tensors.value, problem.valueChannels)};
    Span const output = spanOf(tensors.output, problem.valueChannels);
    Span const workspace{tensors.workspace, workspaceBytes};
    for (Span const& span : {inputs[0], inputs[1], inputs[2], output, workspace})
    {
        if (span.bytes > 0 && span.start == nullptr)
        {
            return HSPAN_CUDA_NULL_POINTER;
        }
    }
    for (Span const& span : {inputs[0], inputs[1], inputs[2], output})
    {
        if (span.bytes > 0 && span.address() % kTENSOR_ALIGNMENT != 0)
        {
            return HSPAN_CUDA_MISALIGNED;
        }
    }
    if (workspace.address() % kWORKSPACE_ALIGNMENT != 0)
    {
        return HSPAN_CUDA_MISALIGNED;
    }
    if (tensors.workspaceBytes < workspaceBytes)
    {
        return HSPAN_CUDA_WORKSPACE_TOO_SMALL;
    }
    for (Span const& input : inputs)
    {
        if (output.overlaps(input) || workspace.overlaps(input))
        {
            return HSPAN_CUDA_OVERLAP;
        }
    }
    return workspace.overlaps(output) ? HSPAN_CUDA_OVERLAP : HSPAN_CUDA_OK;
}

//! Why there is no device to ask: the runtime's own error.
int32_t deviceError()
{
    int device = 0;
    cudaError_t const error = cudaGetDevice(&device);
    return statusFrom(error == cudaSuccess ? cudaErrorNoDevice : error);
}

} // namespace

int32_t hspanCudaAbiVersion()
{
    return HSPAN_CUDA_ABI_VERSION;
}

char const* hspanCudaInfo()
{
    return kINFO + sizeof(HSPAN_INFO_MARKER) - 1;
}

char const* hspanCudaStatusText(int32_t status)
{
    switch (status)
    {
    case HSPAN_CUDA_OK: return "no error";
    case HSPAN_CUDA_NULL_POINTER: return "a pointer is null";
    case HSPAN_CUDA_UNKNOWN_TYPE: return "there is no such element type";
    case HSPAN_CUDA_UNKNOWN_LAYOUT: return "there is no such layout";
    case HSPAN_CUDA_SIZE_OUT_OF_RANGE: return "a size is out of range";
    case HSPAN_CUDA_UNKNOWN_CONFIGURATION: return "there is no such configuration";
    case HSPAN_CUDA_UNSUPPORTED_CONFIGURATION:
        return "the configuration does not serve this type, these sizes or this GPU";
    case HSPAN_CUDA_MISALIGNED: return "a tensor is not aligned to 16 bytes, or the workspace not to 256";
    case HSPAN_CUDA_WORKSPACE_TOO_SMALL: return "the workspace is too small";
    case HSPAN_CUDA_OVERLAP: return "the output or the workspace shares memory with another tensor";
    default: break;
    }
    return status < HSPAN_CUDA_ERROR_BASE
        ? "there is no such status"
        : cudaGetErrorString(static_cast<cudaError_t>(status - HSPAN_CUDA_ERROR_BASE));
}

int32_t hspanCudaConfigurationCount()
{
    return hspan::attentionConfigCount();
}

char const* hspanCudaConfigurationName(int32_t configuration)
{
    return hspan::attentionConfigName(configuration);
}

int64_t hspanCudaChannelPitch(int32_t type, int64_t channels)
{
    bool const isPossible = isKnownType(type) && channels >= 0 && channels <= INT32_MAX;
    return isPossible ? hspan::channelPitch(static_cast<hspan::ElementType>(type), channels) : 0;
}

int32_t hspanCudaWorkspaceBytes(HspanCudaProblem const* problem, uint64_t* bytes)
{
    if (bytes == nullptr)
    {
        return HSPAN_CUDA_NULL_POINTER;
    }
    *bytes = 0;
    return checkProblem(problem, *bytes);
}

int32_t hspanCudaAttention(HspanCudaProblem const* problem, HspanCudaTensors const* tensors, void* stream)
{
    uint64_t workspaceBytes = 0;
    int32_t status = checkProblem(problem, workspaceBytes);
    if (status != HSPAN_CUDA_OK || isEmpty(*problem))
    {
        return status;
    }
    status = tensors == nullptr ? static_cast<int32_t>(HSPAN_CUDA_NULL_POINTER)
                                : checkMemory(*problem, *tensors, workspaceBytes);
    if (status != HSPAN_CUDA_OK)
    {
        return status;
    }
    AttentionProblem const own = problemFrom(*problem);
    int32_t const computeCapability = hspan::currentComputeCapability();
    if (computeCapability == 0)
    {
        return deviceError();
    }
    if (!hspan::isAttentionConfigSupported(
            problem->configuration, own.type, own.shape.scoreChannels, own.shape.valueChannels, computeCapability))
    {
        return HSPAN_CUDA_UNSUPPORTED_CONFIGURATION;
    }
    cudaError_t const error = hspan::launchSparsemaxAttention(own, problem->configuration, tensors->query, tensors->key,
        tensors->value, tensors->output, tensors->workspace, static_cast<cudaStream_t>(stream));
    // All else has been checked: the launcher refuses more positions than the configuration takes.
    return error == cudaErrorInvalidValue ? static_cast<int32_t>(HSPAN_CUDA_UNSUPPORTED_CONFIGURATION)
                                          : statusFrom(error);
}
