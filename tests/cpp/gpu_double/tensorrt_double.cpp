// TensorRT for the C++ runtime: a runtime, engines and contexts that execute the network of
// tests/support/tile_networks.py, operation by operation, on the double of CUDA.
// A plan is a text: "hspan double SCALE ACTIVATION_BYTES_PER_PIXEL"; anything else is refused, as TensorRT refuses a
// plan that it cannot read.

#include "cuda_double.h"
#include "stubs.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace
{

using namespace nvinfer1;

struct Numbers
{
    int major = 10;
    int minor = 3;
    int patch = 0;

    Numbers()
    {
        if (char const* const text = std::getenv("HSPAN_DOUBLE_TENSORRT"))
        {
            std::sscanf(text, "%d.%d.%d", &major, &minor, &patch);
        }
    }
};

Numbers const& version()
{
    static Numbers const kNUMBERS;
    return kNUMBERS;
}

struct Plan
{
    int scale;
    int bytesPerPixel;
};

void runNetwork(float const* input, float* output, std::int64_t const* sizes, int scale)
{
    std::int64_t const height = sizes[2];
    std::int64_t const width = sizes[3];
    std::int64_t const planes = sizes[0] * sizes[1];
    for (std::int64_t p = 0; p < planes; ++p)
    {
        auto const at = [&](std::int64_t y, std::int64_t x)
        { return y >= 0 && x < width ? input[(p * height + y) * width + x] : 0.0F; };
        for (std::int64_t y = 0; y < scale * height; ++y)
        {
            for (std::int64_t x = 0; x < scale * width; ++x)
            {
                std::int64_t const sy = y / scale;
                std::int64_t const sx = x / scale;
                *output++ = (at(sy, sx) + at(sy - 1, sx) * 0.25F + at(sy, sx + 1)) / 3.0F;
            }
        }
    }
}

class ContextDouble : public apiv::ExecutionContextStubs, public IExecutionContext
{
public:
    explicit ContextDouble(Plan plan)
        : mPlan(plan)
    {
        mImpl = this;
    }

    bool setOptimizationProfileAsync(int32_t, cudaStream_t) noexcept override
    {
        return true;
    }
    bool setInputShape(char const* name, Dims const& dims) noexcept override
    {
        mSizes = dims;
        return std::string(name) == "input" && dims.nbDims == 4;
    }
    std::size_t updateDeviceMemorySizeForShapes() noexcept override
    {
        return static_cast<std::size_t>(mSizes.d[0] * mSizes.d[2] * mSizes.d[3] * mPlan.bytesPerPixel);
    }
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override
    {
        mMemory = memory;
        mMemorySize = size;
    }
    bool setTensorAddress(char const* name, void* address) noexcept override
    {
        mAddresses[name] = address;
        return std::string(name) == "input" || std::string(name) == "output";
    }
    bool enqueueV3(cudaStream_t stream) noexcept override
    {
        auto const needed = static_cast<std::int64_t>(updateDeviceMemorySizeForShapes());
        if (needed > 0 && (mMemory == nullptr || mMemorySize < needed))
        {
            return false;
        }
        auto const* input = static_cast<float const*>(mAddresses["input"]);
        auto* output = static_cast<float*>(mAddresses["output"]);
        std::function<void()> const work
            = [=, sizes = mSizes, scale = mPlan.scale] { runNetwork(input, output, sizes.d, scale); };
        hspanDoubleLaunch(stream, &work);
        return true;
    }

private:
    Plan mPlan;
    Dims mSizes{};
    void* mMemory = nullptr;
    std::int64_t mMemorySize = 0;
    std::map<std::string, void*> mAddresses;
};

class EngineDouble : public apiv::CudaEngineStubs, public ICudaEngine
{
public:
    explicit EngineDouble(Plan plan)
        : mPlan(plan)
    {
        mImpl = this;
    }

    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override
    {
        return strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED ? new ContextDouble(mPlan) : nullptr;
    }

private:
    Plan mPlan;
};

class RuntimeDouble : public apiv::RuntimeStubs, public IRuntime
{
public:
    explicit RuntimeDouble(ILogger* logger)
        : mLogger(logger)
    {
        mImpl = this;
    }

    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override
    {
        std::string const text(static_cast<char const*>(blob), size);
        Plan plan{};
        if (std::sscanf(text.c_str(), "hspan double %d %d", &plan.scale, &plan.bytesPerPixel) != 2)
        {
            mLogger->log(ILogger::Severity::kERROR, "IRuntime::deserializeCudaEngine: Error Code 1: magicTag mismatch");
            return nullptr;
        }
        return new EngineDouble(plan);
    }

private:
    ILogger* mLogger;
};

} // namespace

extern "C"
{

    void* createInferRuntime_INTERNAL(void* logger, std::int32_t) noexcept
    {
        return static_cast<IRuntime*>(new RuntimeDouble(static_cast<ILogger*>(logger)));
    }
    std::int32_t getInferLibVersion() noexcept
    {
        return version().major * 10000 + version().minor * 100 + version().patch;
    }
    std::int32_t getInferLibMajorVersion() noexcept
    {
        return version().major;
    }
    std::int32_t getInferLibMinorVersion() noexcept
    {
        return version().minor;
    }
    std::int32_t getInferLibPatchVersion() noexcept
    {
        return version().patch;
    }

} // extern "C"
