#include "tensorrt_engine.h"

#include "cuda_objects.h"
#include "deferred_engine.h"
#include "error.h"
#include "tensorrt_library.h"

#include <NvInferRuntime.h>

#include <cstdlib>
#include <mutex>
#include <sys/statvfs.h>
#include <unistd.h>
#include <utility>
#include <vector>

#ifndef HSPAN_TENSORRT_FLAVOR
#error "HSPAN_TENSORRT_FLAVOR must name the TensorRT that is linked: tensorrt or tensorrt-rtx"
#endif

namespace hspan
{
namespace
{

std::string temporaryFolder()
{
    char const* const named = std::getenv("TMPDIR");
    return named != nullptr && *named != '\0' ? named : "/tmp";
}

bool mayRunFilesFrom(std::string const& folder)
{
    struct statvfs facts{};
    return ::access(folder.c_str(), W_OK | X_OK) == 0 && ::statvfs(folder.c_str(), &facts) == 0
        && (facts.f_flag & ST_NOEXEC) == 0;
}

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
        , mStream(shared)
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
        allowCodeOf(plan.manifest);
        mEngine.reset(mRuntime->deserializeCudaEngine(plan.plan.data(), plan.plan.size()));
        if (!mEngine)
        {
            throw refused(mLogger, mWhere, "TensorRT refuses the engine");
        }
        for (std::size_t i = 0; i < mManifest.profiles.size(); ++i)
        {
            mContexts.push_back(newContext(i));
        }
        mStream.wait("cannot choose the profiles");
    }

    ~TensorRtEngine() override
    {
        cudaSetDevice(mOptions.device);
    }

    float* input(Shape const& shape) override
    {
        useDevice();
        if (shape != mShape)
        {
            setShape(shape);
        }
        return mInput.host();
    }

    float const* run() override
    {
        useDevice();
        if (cudaGraphExec_t const graph = mGraphs.use(mShape))
        {
            check(cudaGraphLaunch(graph, mStream.get()), "cannot launch the CUDA graph");
            mStream.wait("the run failed");
            return mOutput.host();
        }
        Context const own = mOptions.cudaGraphs && mGraphs.worthCapturing(mShape) ? contextOfGraph() : nullptr;
        Context const& context = own ? own : mContexts[mProfile];
        if (own || !mIsBound)
        {
            bind(*context);
            mIsBound = !own;
        }
        enqueue(*context); // the first run of a shape lets TensorRT allocate and choose; it must not be captured
        mStream.wait("the run failed");
        if (own)
        {
            capture(own);
        }
        return mOutput.host();
    }

private:
    using Context = std::shared_ptr<nvinfer1::IExecutionContext>;

    // CUDA's current device is the thread's, and another thread than the one before may call.
    void useDevice() const
    {
        check(cudaSetDevice(mOptions.device), "cannot use GPU " + std::to_string(mOptions.device));
    }

    // Code in a plan whose hash was checked may run. TensorRT writes it to a file in TMPDIR or /tmp and opens that;
    // where no program may run from there, it is to stay in memory.
    void allowCodeOf(Manifest const& manifest)
    {
        if (!has(manifest, "embedded-plugin") && !has(manifest, "version-compatible"))
        {
            return;
        }
        mRuntime->setEngineHostCodeAllowed(true);
        if (!mayRunFilesFrom(temporaryFolder()))
        {
            mRuntime->setTempfileControlFlags(
                1U << static_cast<std::uint32_t>(nvinfer1::TempfileControlFlag::kALLOW_IN_MEMORY_FILES));
        }
    }

    // Its memory for activations is that of all contexts: they run one after the other.
    Context newContext(std::size_t profile)
    {
        Context context(mEngine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
        if (!context || !context->setOptimizationProfileAsync(static_cast<int>(profile), mStream.get()))
        {
            throw refused(mLogger, mWhere, "TensorRT cannot create an execution context");
        }
        return context;
    }

    // A graph belongs to the state of the context that it is captured from, so it has one of its own.
    Context contextOfGraph()
    {
        try
        {
            return newContext(mProfile);
        }
        catch (Error const& error)
        {
            endGraphs(error.what());
            return nullptr;
        }
    }

    void setShape(Shape const& shape)
    {
        Shape const output{shape[0], shape[1], shape[2] * scale(), shape[3] * scale()};
        mShape = {};
        mIsBound = false;
        mProfile = profileFor(mManifest.profiles, shape);
        if (mProfile == mContexts.size())
        {
            throw Error(mWhere, "has no profile for this input", "build the engine for other sizes");
        }
        bool const moved = mInput.reserve(bytesOf(shape));
        if (mOutput.reserve(bytesOf(output)) || moved)
        {
            mGraphs.clear(); // they hold the old addresses
        }
        mShape = shape;
        mOutputBytes = bytesOf(output);
    }

    void bind(nvinfer1::IExecutionContext& context)
    {
        nvinfer1::Dims dims{};
        dims.nbDims = 4;
        for (std::size_t i = 0; i < mShape.size(); ++i)
        {
            dims.d[i] = mShape[i];
        }
        if (!context.setInputShape(mManifest.inputName.c_str(), dims))
        {
            throw refused(mLogger, mWhere, "does not take this input");
        }
        std::size_t const activations = context.updateDeviceMemorySizeForShapes();
        if (activations > mActivationBytes)
        {
            mGraphs.clear(); // they hold the old address
            mActivations.reset();
            mActivationBytes = 0;
            void* pointer = nullptr;
            check(cudaMalloc(&pointer, activations),
                "cannot allocate " + std::to_string(activations) + " bytes for activations");
            mActivations.reset(pointer);
            mActivationBytes = activations;
        }
        context.setDeviceMemoryV2(mActivations.get(), static_cast<std::int64_t>(mActivationBytes));
        if (!context.setTensorAddress(mManifest.inputName.c_str(), mInput.device())
            || !context.setTensorAddress(mManifest.outputName.c_str(), mOutput.device()))
        {
            throw refused(mLogger, mWhere, "has other tensors than its manifest says");
        }
    }

    void enqueue(nvinfer1::IExecutionContext& context)
    {
        mInput.upload(bytesOf(mShape), mStream.get());
        if (!context.enqueueV3(mStream.get()))
        {
            throw refused(mLogger, mWhere, "the run failed");
        }
        mOutput.download(mOutputBytes, mStream.get());
    }

    void capture(Context const& context)
    {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t executable = nullptr;
        std::string reason;
        cudaError_t status = cudaStreamBeginCapture(mStream.get(), cudaStreamCaptureModeThreadLocal);
        if (status == cudaSuccess)
        {
            try
            {
                enqueue(*context);
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
            mGraphs.insert(mShape, executable, context);
            return;
        }
        cudaGetLastError();
        endGraphs(reason.empty() ? cudaGetErrorString(status) : reason);
    }

    void endGraphs(std::string const& reason)
    {
        mOptions.cudaGraphs = false;
        if (mOptions.onNotice)
        {
            mOptions.onNotice("no CUDA graph: " + reason + "; going on without");
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
    std::vector<Context> mContexts; // one for each profile, for runs without a graph
    GraphCache mGraphs;
    Shape mShape{};
    std::size_t mProfile = 0; // that of mShape
    bool mIsBound = false;    // the profile's context to mShape and the memory
    std::size_t mOutputBytes = 0;
};

} // namespace

std::unique_ptr<Engine> openTensorRtEngine(VouchedPlan const& plan, GpuOptions const& options)
{
    std::string const version = tensorRtLibrary().versionText();
    int driver = 0;
    check(cudaDriverGetVersion(&driver), "the driver cannot be asked");
    if (driver == 0) // where the runtime's own word is error 35, as for an old driver
    {
        throw Error("GPU", "cannot be used: no NVIDIA driver here",
            "install NVIDIA's driver on a machine with a GPU, or run inside its container toolkit");
    }
    int count = 0;
    check(cudaGetDeviceCount(&count), "cannot be used");
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
    std::string const gpu = "sm_" + std::to_string(major) + std::to_string(minor);
    checkMachine(plan, Machine{HSPAN_TENSORRT_FLAVOR, version, gpu, driver});
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
