// TensorRT for the C++ runtime: a runtime, engines and contexts that execute the network of
// tests/support/tile_networks.py, operation by operation, on the double of CUDA.
// A plan is a text: "hspan double SCALE ACTIVATION_BYTES_PER_PIXEL", and " code" when it contains code; anything else
// is refused, as TensorRT refuses a plan that it cannot read.
//   HSPAN_DOUBLE_CONTEXTS  how many contexts an engine can have (no limit)

#include "cuda_double.h"
#include "stubs.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <unistd.h>

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

// A captured graph belongs to the state that its context had: the documentation forbids what ends the program here.
class ContextDouble : public apiv::ExecutionContextStubs, public IExecutionContext
{
public:
    explicit ContextDouble(Plan plan)
        : mPlan(plan)
    {
        mImpl = this;
    }
    ~ContextDouble() override
    {
        *mChanges = -1;
    }

    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override
    {
        change(mProfile, profile);
        return true;
    }
    bool setInputShape(char const* name, Dims const& dims) noexcept override
    {
        bool const isNew = dims.nbDims != mSizes.nbDims || !std::equal(dims.d, dims.d + dims.nbDims, mSizes.d);
        mShapeIsNew = mShapeIsNew || isNew;
        *mChanges += isNew;
        mSizes = dims;
        return std::string(name) == "input" && dims.nbDims == 4;
    }
    std::size_t updateDeviceMemorySizeForShapes() noexcept override
    {
        return static_cast<std::size_t>(mSizes.d[0] * mSizes.d[2] * mSizes.d[3] * mPlan.bytesPerPixel);
    }
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override
    {
        change(mMemory, memory);
        mMemorySize = size;
    }
    bool setTensorAddress(char const* name, void* address) noexcept override
    {
        change(mAddresses[name], address);
        return std::string(name) == "input" || std::string(name) == "output";
    }
    bool enqueueV3(cudaStream_t stream) noexcept override
    {
        auto const needed = static_cast<std::int64_t>(updateDeviceMemorySizeForShapes());
        if (needed > 0 && (mMemory == nullptr || mMemorySize < needed))
        {
            return false;
        }
        cudaStreamCaptureStatus capture{};
        cudaStreamIsCapturing(stream, &capture);
        bool const captured = capture == cudaStreamCaptureStatusActive;
        if (captured && mShapeIsNew)
        {
            return false; // the deferred part of a change of shape allocates
        }
        mShapeIsNew = false;
        auto const* input = static_cast<float const*>(mAddresses["input"]);
        auto* output = static_cast<float*>(mAddresses["output"]);
        std::function<void()> const work
            = [=, sizes = mSizes, scale = mPlan.scale, changes = mChanges, before = *mChanges]
        {
            if (*changes < 0 || (captured && *changes != before))
            {
                std::fputs("the double of TensorRT: replayed after its context had changed or ended\n", stderr);
                std::abort();
            }
            runNetwork(input, output, sizes.d, scale);
        };
        hspanDoubleLaunch(stream, &work);
        return true;
    }

private:
    template <typename T>
    void change(T& value, T now)
    {
        *mChanges += value != now;
        value = now;
    }

    Plan mPlan;
    std::shared_ptr<long> mChanges = std::make_shared<long>(0); // in the state that graphs belong to
    bool mShapeIsNew = false;
    int32_t mProfile = 0;
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
        char const* const most = std::getenv("HSPAN_DOUBLE_CONTEXTS");
        if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED
            || (most != nullptr && ++mContexts > std::atoi(most)))
        {
            return nullptr;
        }
        return new ContextDouble(mPlan);
    }

private:
    Plan mPlan;
    int mContexts = 0;
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
        bool const hasCode = text.find(" code") != std::string::npos;
        char const* const folder = std::getenv("TMPDIR");
        bool const isWritable = folder == nullptr || ::access(folder, W_OK) == 0;
        if (hasCode && (!mCodeAllowed || (mTempfileFlags != 1 && !isWritable)))
        {
            mLogger->log(ILogger::Severity::kERROR, "Error Code 6: code in the plan is not allowed, or has no place");
            return nullptr;
        }
        if (std::sscanf(text.c_str(), "hspan double %d %d", &plan.scale, &plan.bytesPerPixel) != 2)
        {
            mLogger->log(ILogger::Severity::kERROR, "IRuntime::deserializeCudaEngine: Error Code 1: magicTag mismatch");
            return nullptr;
        }
        return new EngineDouble(plan);
    }

    void setEngineHostCodeAllowed(bool allowed) noexcept override
    {
        mCodeAllowed = allowed;
    }
    void setTempfileControlFlags(TempfileControlFlags flags) noexcept override
    {
        mTempfileFlags = flags;
    }

private:
    ILogger* mLogger;
    bool mCodeAllowed = false;
    TempfileControlFlags mTempfileFlags = 3;
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
