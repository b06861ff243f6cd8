#include "tensorrt_engine.h"

#include "cuda_objects.h"
#include "deferred_engine.h"
#include "error.h"
#include "tensorrt_library.h"

#include <NvInferRuntime.h>

#include <mutex>
#include <utility>
#include <vector>

#ifndef HSPAN_TENSORRT_FLAVOR
#error "HSPAN_TENSORRT_FLAVOR must name the TensorRT that is linked: tensorrt or tensorrt-rtx"
#endif

namespace hspan
{
namespace
{

// TensorRT says why it refuses something only here.
class Logger : public nvinfer1::ILogger
{
public:
    void log(Severity severity, char const* message) noexcept override
    {
        if (severity > Severity::kERROR)
        {
            return;
        }
        try
        {
            std::lock_guard<std::mutex> const lock(mMutex);
            if (mFirst.empty())
            {
                mFirst = message;
            }
        }
        catch (...)
        { // out of memory: the failure itself is still reported
        }
    }

    // The first error since the last call: later ones are mostly its consequences.
    std::string takeReason()
    {
        std::lock_guard<std::mutex> const lock(mMutex);
        return mFirst.empty() ? "TensorRT gives no reason" : std::exchange(mFirst, "");
    }

private:
    std::mutex mMutex;
    std::string mFirst;
};

Error refused(Logger& logger, std::string const& where, std::string const& what)
{
    std::string const reason = logger.takeReason();
    bool const memory
        = reason.find("OutOfMemory") != std::string::npos || reason.find("out of memory") != std::string::npos;
    return Error(where, what + ": " + reason,
        memory ? "use smaller tiles: --tile" : "build the engine again on this machine",
        memory ? Code::kOUT_OF_MEMORY : Code::kFAILED);
}

std::size_t bytesOf(Shape const& shape)
{
    std::size_t bytes = sizeof(float);
    for (std::int64_t const size : shape)
    {
        bytes *= static_cast<std::size_t>(size);
    }
    return bytes;
}

class TensorRtEngine : public ManifestEngine
{
public:
    TensorRtEngine(VouchedPlan const& plan, GpuOptions options, bool shared)
        : ManifestEngine(plan.manifest)
        , mWhere(plan.path)
        , mOptions(std::move(options))
        , mInput(shared)
        , mOutput(shared)
    {
        TensorRtLibrary const& library = tensorRtLibrary(); // before the plugin, which asks for it when it loads
        loadPlugin(plan);
        // The library's own version, not the headers': what is called here is the same in all of a generation.
        mRuntime.reset(static_cast<nvinfer1::IRuntime*>(library.createRuntime(&mLogger, library.version())));
        if (!mRuntime)
        {
            throw refused(mLogger, mWhere, "TensorRT cannot start");
        }
        mEngine.reset(mRuntime->deserializeCudaEngine(plan.plan.data(), plan.plan.size()));
        if (!mEngine)
        {
            throw refused(mLogger, mWhere, "TensorRT refuses the engine");
        }
        for (std::size_t i = 0; i < mManifest.profiles.size(); ++i)
        {
            mContexts.emplace_back(
                mEngine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
            if (!mContexts[i] || !mContexts[i]->setOptimizationProfileAsync(static_cast<int>(i), mStream.get()))
            {
                throw refused(mLogger, mWhere, "TensorRT cannot create an execution context");
            }
        }
        mStream.wait("cannot choose the profiles");
    }

    float* input(Shape const& shape) override
    {
        if (shape != mShape)
        {
            setShape(shape);
        }
        return mInput.host();
    }

    float const* run() override
    {
        cudaGraphExec_t graph = mGraphs.find(mShape);
        if (graph == nullptr)
        {
            enqueue(); // the first run of a shape lets TensorRT allocate and choose; it must not be captured
            mStream.wait("the run failed");
            if (mOptions.cudaGraphs)
            {
                capture();
            }
        }
        else
        {
            check(cudaGraphLaunch(graph, mStream.get()), "cannot launch the CUDA graph");
            mStream.wait("the run failed");
        }
        return mOutput.host();
    }

private:
    void setShape(Shape const& shape)
    {
        Shape const output{shape[0], shape[1], shape[2] * scale(), shape[3] * scale()};
        mShape = {};
        std::size_t const profile = profileFor(mManifest.profiles, shape);
        if (profile == mContexts.size())
        {
            throw Error(mWhere, "has no profile for this input", "build the engine for other sizes");
        }
        mContext = mContexts[profile].get();
        bool moved = mInput.reserve(bytesOf(shape));
        moved = mOutput.reserve(bytesOf(output)) || moved;
        nvinfer1::Dims dims{};
        dims.nbDims = 4;
        for (std::size_t i = 0; i < shape.size(); ++i)
        {
            dims.d[i] = shape[i];
        }
        if (!mContext->setInputShape(mManifest.inputName.c_str(), dims))
        {
            throw refused(mLogger, mWhere, "does not take this input");
        }
        std::size_t const activations = mContext->updateDeviceMemorySizeForShapes();
        if (activations > mActivationBytes)
        {
            mActivations.reset();
            mActivationBytes = 0;
            void* pointer = nullptr;
            check(cudaMalloc(&pointer, activations),
                "cannot allocate " + std::to_string(activations) + " bytes for activations");
            mActivations.reset(pointer);
            mActivationBytes = activations;
            moved = true;
        }
        mContext->setDeviceMemoryV2(mActivations.get(), static_cast<std::int64_t>(mActivationBytes));
        if (!mContext->setTensorAddress(mManifest.inputName.c_str(), mInput.device())
            || !mContext->setTensorAddress(mManifest.outputName.c_str(), mOutput.device()))
        {
            throw refused(mLogger, mWhere, "has other tensors than its manifest says");
        }
        if (moved)
        {
            mGraphs.clear(); // they hold the old addresses
        }
        mShape = shape;
        mOutputBytes = bytesOf(output);
    }

    void enqueue()
    {
        mInput.upload(bytesOf(mShape), mStream.get());
        if (!mContext->enqueueV3(mStream.get()))
        {
            throw refused(mLogger, mWhere, "the run failed");
        }
        mOutput.download(mOutputBytes, mStream.get());
    }

    void capture()
    {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t executable = nullptr;
        std::string reason;
        cudaError_t status = cudaStreamBeginCapture(mStream.get(), cudaStreamCaptureModeThreadLocal);
        if (status == cudaSuccess)
        {
            try
            {
                enqueue();
            }
            catch (Error const& error)
            {
                reason = error.what();
            }
            status = cudaStreamEndCapture(mStream.get(), &graph);
        }
        if (status == cudaSuccess && reason.empty())
        {
            status = cudaGraphInstantiate(&executable, graph, 0);
        }
        if (graph != nullptr)
        {
            cudaGraphDestroy(graph);
        }
        if (status == cudaSuccess && reason.empty())
        {
            mGraphs.insert(mShape, executable);
            return;
        }
        cudaGetLastError();
        mOptions.cudaGraphs = false;
        if (mOptions.onNotice)
        {
            mOptions.onNotice("no CUDA graph: " + (reason.empty() ? std::string(cudaGetErrorString(status)) : reason)
                + "; going on without");
        }
    }

    std::string mWhere;
    GpuOptions mOptions;
    // From here on the order is that of creation; destruction runs the other way.
    Logger mLogger;
    std::unique_ptr<nvinfer1::IRuntime> mRuntime;
    std::unique_ptr<nvinfer1::ICudaEngine> mEngine;
    Stream mStream;
    std::unique_ptr<void, DeviceFree> mActivations;
    std::size_t mActivationBytes = 0;
    Buffer mInput;
    Buffer mOutput;
    std::vector<std::unique_ptr<nvinfer1::IExecutionContext>> mContexts; // one for each profile
    nvinfer1::IExecutionContext* mContext = nullptr;                     // that of mShape
    GraphCache mGraphs;
    Shape mShape{};
    std::size_t mOutputBytes = 0;
};

} // namespace

std::unique_ptr<Engine> openTensorRtEngine(VouchedPlan const& plan, GpuOptions const& options)
{
    std::string const version = tensorRtLibrary().versionText();
    int count = 0;
    cudaError_t const status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess)
    {
        throw Error("GPU", std::string("cannot be used: ") + cudaGetErrorString(status),
            "install NVIDIA's driver on a machine with a GPU, or run inside its container toolkit");
    }
    if (options.device < 0 || options.device >= count)
    {
        throw Error("--device",
            std::to_string(options.device) + " does not exist: there are " + std::to_string(count) + " GPUs",
            "give 0 to " + std::to_string(count - 1), Code::kUSAGE);
    }
    check(cudaSetDevice(options.device), "cannot use GPU " + std::to_string(options.device));
    int major = 0;
    int minor = 0;
    int integrated = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, options.device), "cannot ask the GPU");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, options.device), "cannot ask the GPU");
    check(cudaDeviceGetAttribute(&integrated, cudaDevAttrIntegrated, options.device), "cannot ask the GPU");
    checkMachine(plan, Machine{HSPAN_TENSORRT_FLAVOR, version, "sm_" + std::to_string(major) + std::to_string(minor)});
    return std::make_unique<TensorRtEngine>(plan, options, integrated != 0);
}

std::string tensorRtDescription()
{
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "cannot ask CUDA's runtime");
    std::string tensorrt;
    try
    {
        tensorrt = tensorRtLibrary().versionText();
    }
    catch (Error const&)
    { // a description of what is here needs no TensorRT
        tensorrt = "(not installed)";
    }
    return std::string(HSPAN_TENSORRT_FLAVOR) + " " + tensorrt + ", CUDA " + std::to_string(version / 1000) + "."
        + std::to_string(version % 1000 / 10);
}

} // namespace hspan
