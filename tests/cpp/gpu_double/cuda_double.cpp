// CUDA's runtime on main memory: the functions that the C++ runtime calls, with work done only when something waits for
// it, so that a missing wait shows. Device memory is apart from host memory unless the GPU is an integrated one.
//   HSPAN_DOUBLE_GPUS        how many GPUs there are (1)
//   HSPAN_DOUBLE_DRIVER      the newest CUDA that the driver runs (13000); 0: there is no driver
//   HSPAN_DOUBLE_QUERY       the error of asking how many GPUs there are (0)
//   HSPAN_DOUBLE_LAUNCH      the error of waiting for a stream, such as that of a kernel without code for the GPU (0)
//   HSPAN_DOUBLE_CAPABILITY  its compute capability (87)
//   HSPAN_DOUBLE_INTEGRATED  1: the GPU shares the memory
//   HSPAN_DOUBLE_MEMORY      bytes that the GPU has (no limit)
//   HSPAN_DOUBLE_CAPTURE     0: streams cannot be captured
//   HSPAN_DOUBLE_REPORT      a file that gets the counts as JSON when the program ends

#include "cuda_double.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

using Work = std::vector<std::function<void()>>;

struct CUstream_st
{
    Work pending;
    bool capturing = false;
    int device = 0;
};
struct CUevent_st
{
    CUstream_st* stream = nullptr; // whose work it waits for
    bool blocking = false;
};
struct CUgraph_st
{
    Work work;
};
struct CUgraphExec_st
{
    Work work;
};

namespace
{

long long number(char const* name, long long otherwise)
{
    char const* const text = std::getenv(name);
    return text != nullptr ? std::atoll(text) : otherwise;
}

struct State
{
    std::map<void*, std::size_t> allocated; // device memory, and mapped host memory
    std::size_t inUse = 0;
    int allocations = 0;
    int copies = 0;
    int captures = 0;
    int launches = 0;
    int waits = 0;
    int blockingWaits = 0;
    int device = -1; // that work was launched on last
    int open = 0;    // streams, graphs and host memory that somebody still owns

    ~State()
    {
        char const* const path = std::getenv("HSPAN_DOUBLE_REPORT");
        std::FILE* const file = path != nullptr ? std::fopen(path, "w") : nullptr;
        if (file != nullptr)
        {
            std::fprintf(file,
                "{\"allocations\": %d, \"copies\": %d, \"captures\": %d, \"launches\": %d, \"waits\": %d, "
                "\"blocking_waits\": %d, \"device\": %d, \"left\": %d}\n",
                allocations, copies, captures, launches, waits, blockingWaits, device,
                open + static_cast<int>(allocated.size()));
            std::fclose(file);
        }
    }
};
State gState;
thread_local int gDevice = 0; // current in the thread

void runPending(cudaStream_t stream)
{
    for (auto const& work : std::exchange(stream->pending, {}))
    {
        work();
    }
}

cudaError_t allocate(void** pointer, std::size_t size)
{
    ++gState.allocations;
    auto const limit = static_cast<std::size_t>(number("HSPAN_DOUBLE_MEMORY", 1LL << 60));
    if (gState.inUse + size > limit)
    {
        return cudaErrorMemoryAllocation;
    }
    *pointer = std::malloc(size);
    if (*pointer == nullptr)
    {
        return cudaErrorMemoryAllocation;
    }
    gState.allocated[*pointer] = size;
    gState.inUse += size;
    return cudaSuccess;
}

void release(void* pointer)
{
    auto const found = gState.allocated.find(pointer);
    if (found == gState.allocated.end())
    {
        std::fputs("the double of CUDA: freed what was not allocated\n", stderr);
        std::abort();
    }
    gState.inUse -= found->second;
    gState.allocated.erase(found);
    std::free(pointer);
}

bool integrated()
{
    return number("HSPAN_DOUBLE_INTEGRATED", 0) != 0;
}

int capability()
{
    return static_cast<int>(number("HSPAN_DOUBLE_CAPABILITY", 87));
}

} // namespace

extern "C"
{

    void hspanDoubleLaunch(cudaStream_t stream, std::function<void()> const* work)
    {
        if (stream->device != gDevice)
        {
            std::fputs("the double of CUDA: launched on a stream of another device than the current one\n", stderr);
            std::abort();
        }
        gState.device = gDevice;
        stream->pending.push_back(*work);
    }

    cudaError_t cudaGetDeviceCount(int* count)
    {
        *count = static_cast<int>(number("HSPAN_DOUBLE_GPUS", 1));
        if (long long const error = number("HSPAN_DOUBLE_QUERY", 0))
        {
            return static_cast<cudaError_t>(error);
        }
        return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
    }

    cudaError_t cudaDriverGetVersion(int* version)
    {
        *version = static_cast<int>(number("HSPAN_DOUBLE_DRIVER", 13000));
        return cudaSuccess;
    }

    cudaError_t cudaSetDevice(int device)
    {
        gDevice = device;
        return cudaSuccess;
    }

    cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int)
    {
        switch (attribute)
        {
        case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; return cudaSuccess;
        case cudaDevAttrIntegrated: *value = integrated() ? 1 : 0; return cudaSuccess;
        default: return cudaErrorInvalidValue;
        }
    }

    char const* cudaGetErrorString(cudaError_t error)
    {
        return error == cudaErrorMemoryAllocation     ? "out of memory"
            : error == cudaErrorNoDevice              ? "no CUDA-capable device is detected"
            : error == cudaErrorInsufficientDriver    ? "CUDA driver version is insufficient for CUDA runtime version"
            : error == cudaErrorUnsupportedPtxVersion ? "the provided PTX was compiled with an unsupported toolchain."
                                                      : "another error";
    }

    cudaError_t cudaGetLastError()
    {
        return cudaSuccess;
    }

    cudaError_t cudaRuntimeGetVersion(int* version)
    {
        *version = 12060;
        return cudaSuccess;
    }

    cudaError_t cudaMalloc(void** pointer, std::size_t size)
    {
        return allocate(pointer, size);
    }

    cudaError_t cudaFree(void* pointer)
    {
        release(pointer);
        return cudaSuccess;
    }

    cudaError_t cudaHostAlloc(void** pointer, std::size_t size, unsigned int flags)
    {
        if (((flags & cudaHostAllocMapped) != 0) != integrated())
        {
            return cudaErrorInvalidValue;
        }
        if (integrated())
        {
            return allocate(pointer, size);
        }
        *pointer = std::malloc(size);
        if (*pointer == nullptr)
        {
            return cudaErrorMemoryAllocation;
        }
        ++gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaFreeHost(void* pointer)
    {
        if (integrated())
        {
            release(pointer);
            return cudaSuccess;
        }
        std::free(pointer);
        --gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int)
    {
        *device = host;
        return cudaSuccess;
    }

    cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int)
    {
        *stream = new CUstream_st{{}, false, gDevice};
        ++gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaStreamDestroy(cudaStream_t stream)
    {
        delete stream;
        --gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaStreamSynchronize(cudaStream_t stream)
    {
        if (stream->capturing)
        {
            return cudaErrorStreamCaptureUnsupported;
        }
        ++gState.waits;
        if (long long const error = number("HSPAN_DOUBLE_LAUNCH", 0))
        {
            return static_cast<cudaError_t>(error);
        }
        runPending(stream);
        return cudaSuccess;
    }

    cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned int flags)
    {
        *event = new CUevent_st{nullptr, (flags & cudaEventBlockingSync) != 0};
        ++gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaEventDestroy(cudaEvent_t event)
    {
        delete event;
        --gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
    {
        event->stream = stream;
        return stream->capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
    }

    cudaError_t cudaEventSynchronize(cudaEvent_t event)
    {
        ++(event->blocking ? gState.blockingWaits : gState.waits);
        runPending(event->stream);
        return cudaSuccess;
    }

    cudaError_t cudaMemcpyAsync(void* target, void const* source, std::size_t size, cudaMemcpyKind, cudaStream_t stream)
    {
        ++gState.copies;
        stream->pending.push_back([=] { std::memcpy(target, source, size); });
        return cudaSuccess;
    }

    cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
    {
        if (number("HSPAN_DOUBLE_CAPTURE", 1) == 0)
        {
            return cudaErrorStreamCaptureUnsupported;
        }
        if (!stream->pending.empty())
        {
            return cudaErrorIllegalState;
        }
        stream->capturing = true;
        return cudaSuccess;
    }

    cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status)
    {
        *status = stream->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
        return cudaSuccess;
    }

    cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph)
    {
        *graph = new CUgraph_st{std::exchange(stream->pending, {})};
        stream->capturing = false;
        ++gState.captures;
        ++gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long)
    {
        *executable = new CUgraphExec_st{graph->work};
        ++gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaGraphDestroy(cudaGraph_t graph)
    {
        delete graph;
        --gState.open;
        return cudaSuccess;
    }

    cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream)
    {
        ++gState.launches;
        stream->pending.insert(stream->pending.end(), executable->work.begin(), executable->work.end());
        return cudaSuccess;
    }

    cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
    {
        delete executable;
        --gState.open;
        return cudaSuccess;
    }

} // extern "C"
