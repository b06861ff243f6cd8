#include "attention_plugin.h"

#include <cstdio>
#include <new>

#include "../cuda_advice.h"
#include "plugin_abi.h"
#include "report.h"

namespace hspan
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

namespace
{

constexpr int32_t kINPUTS{3};
constexpr int32_t kOUTPUTS{1};
constexpr int32_t kDIMENSIONS{4};
constexpr int32_t kCHANNELS_AXIS{1};

constexpr int32_t kQUERY{0};
constexpr int32_t kKEY{1};
constexpr int32_t kVALUE{2};

constexpr int32_t kOK{0};
constexpr int32_t kFAILED{-1};

constexpr int32_t gAbiVersion{kABI_VERSION};

//! The dimensions may differ only where one of them is still dynamic (-1).
bool fits(int64_t a, int64_t b) noexcept
{
    return a < 0 || b < 0 || a == b;
}

AttentionShape attentionShape(Dims const& query, Dims const& value) noexcept
{
    AttentionShape shape;
    shape.batch = query.d[0];
    shape.scoreChannels = query.d[1];
    shape.valueChannels = value.d[1];
    shape.positions = static_cast<int64_t>(query.d[2]) * query.d[3];
    return shape;
}

//! H * W of a tensor whose profile has one shape; -1 when it has more.
int64_t fixedPositions(DynamicPluginTensorDesc const& tensor) noexcept
{
    for (int32_t i = 0; i < kDIMENSIONS; ++i)
    {
        if (tensor.max.d[i] < 0 || tensor.min.d[i] != tensor.max.d[i])
        {
            return -1;
        }
    }
    return tensor.max.d[2] * tensor.max.d[3];
}

int32_t checkCounts(int32_t inputCount, int32_t outputCount) noexcept
{
    if (inputCount == kINPUTS && outputCount == kOUTPUTS)
    {
        return kOK;
    }
    reportError("HighSimilarityPassAttention: expected 3 inputs (query, key, value) and 1 output, got %d and %d",
        inputCount, outputCount);
    return kFAILED;
}

int32_t checkShapes(Dims const& query, Dims const& key, Dims const& value) noexcept
{
    char const* const error = shapeError(query, key, value);
    if (error == nullptr)
    {
        return kOK;
    }
    auto const at
        = [](Dims const& dims, int32_t i) { return i < dims.nbDims ? static_cast<long long>(dims.d[i]) : -1LL; };
    reportError("HighSimilarityPassAttention: %s; got query (%lld, %lld, %lld, %lld), key (%lld, %lld, %lld, %lld), "
                "value (%lld, %lld, %lld, %lld)",
        error, at(query, 0), at(query, 1), at(query, 2), at(query, 3), at(key, 0), at(key, 1), at(key, 2), at(key, 3),
        at(value, 0), at(value, 1), at(value, 2), at(value, 3));
    return kFAILED;
}

//! Fills in what the kernels are to compute.
int32_t checkProblem(PluginTensorDesc const* inputs, AttentionProblem& problem) noexcept
{
    PluginTensorDesc const& query = inputs[kQUERY];
    if (checkShapes(query.dims, inputs[kKEY].dims, inputs[kVALUE].dims) != kOK)
    {
        return kFAILED;
    }
    for (int32_t i = 0; i < kINPUTS; ++i)
    {
        bool const isAlike = inputs[i].type == query.type && inputs[i].format == query.format;
        if (!isAlike || !isFormatSupported(inputs[i], FormatChoice::kANY))
        {
            reportError(
                "HighSimilarityPassAttention: input %d has type %d and format %d, which the plugin never offered", i,
                static_cast<int>(inputs[i].type), static_cast<int>(inputs[i].format));
            return kFAILED;
        }
    }
    elementTypeFromDataType(query.type, problem.type);
    problem.layout = layoutFromFormat(query.format);
    problem.shape = attentionShape(query.dims, inputs[kVALUE].dims);
    return kOK;
}

//! Whether the tactic's configuration can run here. Without a GPU nothing runs, and nothing is refused.
int32_t checkTactic(AttentionProblem const& problem, int32_t tactic) noexcept
{
    int32_t const config = configFromTactic(tactic);
    int32_t const gpu = currentComputeCapability();
    if (config == kAUTOMATIC_CONFIG || gpu == 0
        || isAttentionConfigSupported(
            config, problem.type, problem.shape.scoreChannels, problem.shape.valueChannels, gpu))
    {
        return kOK;
    }
    reportError(
        "HighSimilarityPassAttention: the engine was built for configuration %s, which does not run on sm_%d with %lld "
        "score channels and %lld value channels; rebuild the engine on this GPU",
        attentionConfigName(config), gpu, static_cast<long long>(problem.shape.scoreChannels),
        static_cast<long long>(problem.shape.valueChannels));
    return kFAILED;
}

//! Reports a configuration that the node asks for and that does not serve it.
int32_t checkConfiguration(TacticProblem const& problem) noexcept
{
    int32_t const gpu = judgedArchitecture(currentComputeCapability());
    if (problem.config == kANY_CONFIG || problem.scoreChannels < 0 || problem.valueChannels < 0
        || isAttentionConfigSupported(problem.config, problem.type, problem.scoreChannels, problem.valueChannels, gpu))
    {
        return kOK;
    }
    reportError(
        "HighSimilarityPassAttention: configuration %s does not run on sm_%d with %lld score channels and %lld value "
        "channels in this type",
        attentionConfigName(problem.config), gpu, static_cast<long long>(problem.scoreChannels),
        static_cast<long long>(problem.valueChannels));
    return kFAILED;
}

} // namespace

char const* shapeError(Dims const& query, Dims const& key, Dims const& value) noexcept
{
    if (query.nbDims != kDIMENSIONS || key.nbDims != kDIMENSIONS || value.nbDims != kDIMENSIONS)
    {
        return "every input must have four dimensions (N, channels, H, W)";
    }
    for (int32_t i = 0; i < kDIMENSIONS; ++i)
    {
        if (!fits(query.d[i], key.d[i]))
        {
            return "query and key must have the same shape";
        }
        if (i != 1 && !(fits(query.d[i], value.d[i]) && fits(key.d[i], value.d[i])))
        {
            return "value must have the batch, height and width of query and key";
        }
    }
    int64_t const height = query.d[2];
    int64_t const width = query.d[3];
    if (height > 0 && width > INT32_MAX / height)
    {
        return "an image may have at most 2^31 - 1 positions";
    }
    return nullptr;
}

AttentionPlugin::AttentionPlugin(FormatChoice choice, int32_t config, int32_t tactic) noexcept
    : mChoice{choice}
    , mConfig{config}
    , mTactic{tactic}
    , mFields{{kABI_VERSION_FIELD, &gAbiVersion, nvinfer1::PluginFieldType::kINT32, 1},
          {kTACTIC_FIELD, &mTactic, nvinfer1::PluginFieldType::kINT32, 1}}
    , mFieldCollection{2, mFields}
{
    std::snprintf(mTimingCacheId, sizeof mTimingCacheId, "%s-%s-abi%d-%s-%s", kPLUGIN_NAME, kPLUGIN_VERSION,
        kABI_VERSION, textFromFormatChoice(choice), textFromConfigChoice(config));
}

nvinfer1::IPluginCapability* AttentionPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* AttentionPlugin::clone() noexcept
{
    auto* const copy = new (std::nothrow) AttentionPlugin{mChoice, mConfig, mTactic};
    if (copy == nullptr)
    {
        reportError("HighSimilarityPassAttention: out of host memory");
        return nullptr;
    }
    copy->mConfigured = mConfigured;
    return copy;
}

nvinfer1::AsciiChar const* AttentionPlugin::getPluginName() const noexcept
{
    return kPLUGIN_NAME;
}

nvinfer1::AsciiChar const* AttentionPlugin::getPluginVersion() const noexcept
{
    return kPLUGIN_VERSION;
}

nvinfer1::AsciiChar const* AttentionPlugin::getPluginNamespace() const noexcept
{
    return kPLUGIN_NAMESPACE;
}

int32_t AttentionPlugin::configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t inputCount,
    DynamicPluginTensorDesc const* /*outputs*/, int32_t outputCount) noexcept
{
    if (checkCounts(inputCount, outputCount) != kOK)
    {
        return kFAILED;
    }
    mConfigured = {};
    elementTypeFromDataType(inputs[kQUERY].desc.type, mConfigured.type); // a type that the plugin said it supports
    Dims const& query = inputs[kQUERY].desc.dims;
    Dims const& value = inputs[kVALUE].desc.dims;
    if (checkShapes(query, inputs[kKEY].desc.dims, value) != kOK)
    {
        return kFAILED;
    }
    mConfigured.scoreChannels = query.d[kCHANNELS_AXIS];
    mConfigured.valueChannels = value.d[kCHANNELS_AXIS];
    if (checkShapes(inputs[kQUERY].max, inputs[kKEY].max, inputs[kVALUE].max) != kOK)
    {
        return kFAILED;
    }
    mConfigured.positions = fixedPositions(inputs[kQUERY]);
    mConfigured.config = mConfig;
    return checkConfiguration(mConfigured);
}

int32_t AttentionPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t outputCount, DataType const* inputTypes, int32_t inputCount) const noexcept
{
    if (checkCounts(inputCount, outputCount) != kOK)
    {
        return kFAILED;
    }
    ElementType type{};
    if (!elementTypeFromDataType(inputTypes[kQUERY], type) || inputTypes[kKEY] != inputTypes[kQUERY]
        || inputTypes[kVALUE] != inputTypes[kQUERY])
    {
        reportError("HighSimilarityPassAttention: query, key and value must be of one type: FP32, FP16 or BF16");
        return kFAILED;
    }
    outputTypes[0] = inputTypes[kQUERY];
    return kOK;
}

int32_t AttentionPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount,
    nvinfer1::DimsExprs const* /*shapeInputs*/, int32_t /*shapeInputCount*/, nvinfer1::DimsExprs* outputs,
    int32_t outputCount, nvinfer1::IExprBuilder& /*builder*/) noexcept
{
    if (checkCounts(inputCount, outputCount) != kOK)
    {
        return kFAILED;
    }
    Dims shapes[kINPUTS];
    for (int32_t i = 0; i < kINPUTS; ++i)
    {
        shapes[i].nbDims = inputs[i].nbDims;
        for (int32_t d = 0; d < inputs[i].nbDims; ++d)
        {
            shapes[i].d[d] = inputs[i].d[d]->isConstant() ? inputs[i].d[d]->getConstantValue() : -1;
        }
    }
    if (checkShapes(shapes[kQUERY], shapes[kKEY], shapes[kVALUE]) != kOK)
    {
        return kFAILED;
    }
    outputs[0] = inputs[kQUERY];
    outputs[0].d[1] = inputs[kVALUE].d[1];
    return kOK;
}

bool AttentionPlugin::supportsFormatCombination(
    int32_t position, DynamicPluginTensorDesc const* tensors, int32_t inputCount, int32_t outputCount) noexcept
{
    if (inputCount != kINPUTS || outputCount != kOUTPUTS || position < 0 || position >= kINPUTS + kOUTPUTS)
    {
        return false;
    }
    PluginTensorDesc const& tensor = tensors[position].desc;
    PluginTensorDesc const& query = tensors[kQUERY].desc;
    return isFormatSupported(tensor, mChoice) && tensor.type == query.type && tensor.format == query.format;
}

int32_t AttentionPlugin::getNbOutputs() const noexcept
{
    return kOUTPUTS;
}

size_t AttentionPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t inputCount,
    DynamicPluginTensorDesc const* /*outputs*/, int32_t outputCount) const noexcept
{
    if (inputCount != kINPUTS || outputCount != kOUTPUTS || inputs[kQUERY].max.nbDims != kDIMENSIONS
        || inputs[kVALUE].max.nbDims != kDIMENSIONS)
    {
        return 0;
    }
    AttentionProblem problem;
    elementTypeFromDataType(inputs[kQUERY].desc.type, problem.type);
    problem.layout = layoutFromFormat(inputs[kQUERY].desc.format);
    problem.shape = attentionShape(inputs[kQUERY].max, inputs[kVALUE].max);
    return workspaceBytes(problem);
}

int32_t AttentionPlugin::getNbTactics() noexcept
{
    return validTactics(mConfigured, currentComputeCapability(), nullptr, 0);
}

int32_t AttentionPlugin::getValidTactics(int32_t* tactics, int32_t tacticCount) noexcept
{
    int32_t const available = validTactics(mConfigured, currentComputeCapability(), tactics, tacticCount);
    if (available != tacticCount)
    {
        reportError("HighSimilarityPassAttention: TensorRT expects %d tactics, there are %d", tacticCount, available);
        return kFAILED;
    }
    return kOK;
}

char const* AttentionPlugin::getTimingCacheID() noexcept
{
    return mTimingCacheId; // TensorRT itself adds shapes, types and formats
}

int32_t AttentionPlugin::setTactic(int32_t tactic) noexcept
{
    if (!isTactic(tactic))
    {
        reportError("HighSimilarityPassAttention: tactic %d is unknown to this library; rebuild the engine", tactic);
        return kFAILED;
    }
    mTactic = tactic;
    return kOK;
}

int32_t AttentionPlugin::onShapeChange(PluginTensorDesc const* inputs, int32_t inputCount,
    PluginTensorDesc const* /*outputs*/, int32_t outputCount) noexcept
{
    if (checkCounts(inputCount, outputCount) != kOK)
    {
        return kFAILED;
    }
    AttentionProblem problem;
    if (checkProblem(inputs, problem) != kOK)
    {
        return kFAILED;
    }
    return checkTactic(problem, mTactic);
}

int32_t AttentionPlugin::enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const* /*outputs*/,
    void const* const* inputData, void* const* outputData, void* workspace, cudaStream_t stream) noexcept
{
    AttentionProblem problem;
    if (checkProblem(inputs, problem) != kOK)
    {
        return kFAILED;
    }
    int32_t const config = configFromTactic(mTactic);
    cudaError_t const status = launchSparsemaxAttention(
        problem, config, inputData[kQUERY], inputData[kKEY], inputData[kVALUE], outputData[0], workspace, stream);
    if (status != cudaSuccess)
    {
        AttentionShape const& shape = problem.shape;
        CudaAdvice const advice = adviceForCuda(status);
        reportError(
            "HighSimilarityPassAttention: %s (%s), configuration %s at batch %lld, %lld score channels, %lld value "
            "channels, %lld positions%s%s",
            cudaGetErrorName(status), advice.what == nullptr ? cudaGetErrorString(status) : advice.what,
            attentionConfigName(config), static_cast<long long>(shape.batch),
            static_cast<long long>(shape.scoreChannels), static_cast<long long>(shape.valueChannels),
            static_cast<long long>(shape.positions), advice.what == nullptr ? "" : "; ", advice.nextStep);
        return kFAILED;
    }
    return kOK;
}

nvinfer1::IPluginV3* AttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept
{
    return clone();
}

PluginFieldCollection const* AttentionPlugin::getFieldsToSerialize() noexcept
{
    return &mFieldCollection;
}

} // namespace hspan
