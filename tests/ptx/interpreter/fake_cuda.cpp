#include "fake_cuda.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include <cuda_runtime_api.h>

#include "machine.h"

namespace ptx
{

int32_t computeCapability{80};
int32_t launchError{};
int32_t multiprocessors{108};

} // namespace ptx

namespace
{

//! Mangled names of the kernels, by the address of the host function that stands for each.
std::unordered_map<void const*, std::string>& kernelNames()
{
    static std::unordered_map<void const*, std::string> names;
    return names;
}

[[noreturn]] void giveUp(char const* what)
{
    fprintf(stderr, "%s\n", what);
    exit(2);
}

template <typename T>
T numberAt(uint8_t const* place)
{
    T number;
    memcpy(&number, place, sizeof number);
    return number;
}

//! The modules of a fat binary: a head of 16 bytes or more with the size of what follows, then for each a head with
//! kind, own size and size of the content. Kind 1 is PTX, in plain text where nvcc was given -no-compress.
void loadModules(uint8_t const* binary)
{
    uint8_t const* place = binary + numberAt<uint16_t>(binary + 6);
    uint8_t const* const end = place + numberAt<uint64_t>(binary + 8);
    while (place < end)
    {
        auto const kind = numberAt<uint16_t>(place);
        auto const headBytes = numberAt<uint32_t>(place + 4);
        auto const bytes = numberAt<uint64_t>(place + 8);
        if (kind == 1)
        {
            std::string const text(reinterpret_cast<char const*>(place + headBytes), bytes);
            if (text.find(".version") == std::string::npos)
            {
                giveUp("the PTX is compressed; compile with -no-compress");
            }
            ptx::loadModule(text);
        }
        place += headBytes + bytes;
    }
}

} // namespace

extern "C"
{
    void** __cudaRegisterFatBinary(void* wrapper)
    {
        static void* handle{};
        try
        {
            // magic number and version, then the address
            loadModules(numberAt<uint8_t const*>(static_cast<uint8_t const*>(wrapper) + 8));
        }
        catch (std::exception const& error)
        {
            giveUp(error.what());
        }
        return &handle;
    }

    void __cudaRegisterFatBinaryEnd(void** /*handle*/)
    {
    }

    void __cudaUnregisterFatBinary(void** /*handle*/)
    {
    }

    void __cudaRegisterFunction(void** /*handle*/, char const* host, char* /*device*/, char const* name, int /*limit*/,
        uint3* /*thread*/, uint3* /*block*/, dim3* /*blockSize*/, dim3* /*gridSize*/, int* /*warpSize*/)
    {
        kernelNames()[host] = name;
    }

    char __cudaInitModule(void** /*handle*/)
    {
        return 1;
    }

    // Host stubs, which kernel<<<...>>> would call; the launcher does not.
    cudaError_t __cudaPopCallConfiguration(dim3* /*grid*/, dim3* /*block*/, size_t* /*shared*/, void* /*stream*/)
    {
        return cudaErrorUnknown;
    }

    cudaError_t __cudaGetKernel(cudaKernel_t* kernel, void const* host)
    {
        *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
        return cudaSuccess;
    }

    //! With the checks of the driver.
    cudaError_t cudaLaunchKernel(
        void const* host, dim3 grid, dim3 block, void** arguments, size_t sharedBytes, cudaStream_t /*stream*/)
    {
        constexpr uint32_t kMAX_SHARED_BYTES{48 * 1024};
        if (ptx::launchError != 0)
        {
            return static_cast<cudaError_t>(ptx::launchError);
        }
        auto const name = kernelNames().find(host);
        ptx::Kernel* const kernel = name == kernelNames().end() ? nullptr : ptx::findKernel(name->second);
        if (kernel == nullptr)
        {
            return cudaErrorInvalidDeviceFunction;
        }
        if (block.x > kernel->maxThreads || block.y != 1 || block.z != 1 || sharedBytes != 0
            || kernel->sharedBytes > kMAX_SHARED_BYTES)
        {
            return cudaErrorInvalidValue;
        }
        if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 2147483647U || grid.y > 65535 || grid.z > 65535)
        {
            return cudaErrorInvalidConfiguration;
        }
        return ptx::run(*kernel, {grid.x, grid.y, grid.z}, block.x, arguments) ? cudaSuccess : cudaErrorLaunchTimeout;
    }

    cudaError_t __cudaLaunchKernel(
        cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t sharedBytes, cudaStream_t stream)
    {
        return cudaLaunchKernel(reinterpret_cast<void const*>(kernel), grid, block, arguments, sharedBytes, stream);
    }

    cudaError_t cudaGetDevice(int* device)
    {
        *device = 0;
        return ptx::computeCapability == 0 ? cudaErrorNoDevice : cudaSuccess;
    }

    char const* cudaGetErrorString(cudaError_t error)
    {
        static char text[40];
        snprintf(text, sizeof text, "CUDA's error %d", static_cast<int>(error));
        return text;
    }

    cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/)
    {
        if (attribute == cudaDevAttrMultiProcessorCount)
        {
            *value = ptx::multiprocessors;
            return cudaSuccess;
        }
        bool const isMajor = attribute == cudaDevAttrComputeCapabilityMajor;
        *value = isMajor ? ptx::computeCapability / 10 : ptx::computeCapability % 10;
        return isMajor || attribute == cudaDevAttrComputeCapabilityMinor ? cudaSuccess : cudaErrorInvalidValue;
    }
}
