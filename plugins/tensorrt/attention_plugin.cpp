#include "attention_plugin.h"

#include <cstring>
#include <new>

#include "../kernels/sparsemax_attention.h"
#include "plugin_abi.h"
#include "report.h"

namespace hspan
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

namespace
{

constexpr int32_t kINPUTS{3};
constexpr int32_t kOUTPUTS{1};
constexpr int32_t kDIMENSIONS{4};

constexpr int32_t kQUERY{0};
constexpr int32_t kKEY{1};
constexpr int32_t kVALUE{2};

constexpr int32_t kOK{0};
constexpr int32_t kFAILED{-1};

constexpr int32_t gAbiVersion{kABI_VERSION};

bool isSupported(DataType type) noexcept
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

//! The dimensions may differ only where one of them is not known yet.
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
    auto* const copy = new (std::nothrow) AttentionPlugin;
    if (copy == nullptr)
    {
        reportError("HighSimilarityPassAttention: out of host memory");
    }
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
    return checkShapes(inputs[kQUERY].desc.dims, inputs[kKEY].desc.dims, inputs[kVALUE].desc.dims);
}

int32_t AttentionPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t outputCount, DataType const* inputTypes, int32_t inputCount) const noexcept
{
    if (checkCounts(inputCount, outputCount) != kOK)
    {
        return kFAILED;
    }
    if (!isSupported(inputTypes[kQUERY]) || inputTypes[kKEY] != inputTypes[kQUERY]
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
    Dims known[kINPUTS];
    for (int32_t i = 0; i < kINPUTS; ++i)
    {
        known[i].nbDims = inputs[i].nbDims;
        for (int32_t d = 0; d < inputs[i].nbDims; ++d)
        {
            known[i].d[d] = inputs[i].d[d]->isConstant() ? inputs[i].d[d]->getConstantValue() : -1;
        }
    }
    if (checkShapes(known[kQUERY], known[kKEY], known[kVALUE]) != kOK)
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
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && isSupported(tensor.type)
        && tensor.type == tensors[kQUERY].desc.type;
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
    problem.shape = attentionShape(inputs[kQUERY].max, inputs[kVALUE].max);
    switch (inputs[kQUERY].desc.type)
    {
    case DataType::kHALF: problem.type = ElementType::kHALF; break;
    case DataType::kBF16: problem.type = ElementType::kBFLOAT16; break;
    default: problem.type = ElementType::kFLOAT; break;
    }
    return attentionWorkspaceBytes(problem, kAUTOMATIC_CONFIG);
}

char const* AttentionPlugin::getTimingCacheID() noexcept
{
    return "hspan-1"; // no attributes: shapes and types, which TensorRT adds itself, say everything
}

int32_t AttentionPlugin::onShapeChange(PluginTensorDesc const* inputs, int32_t inputCount,
    PluginTensorDesc const* /*outputs*/, int32_t outputCount) noexcept
{
    if (checkCounts(inputCount, outputCount) != kOK)
    {
        return kFAILED;
    }
    return checkShapes(inputs[kQUERY].dims, inputs[kKEY].dims, inputs[kVALUE].dims);
}

int32_t AttentionPlugin::enqueue(PluginTensorDesc const* inputs, PluginTensorDesc const* /*outputs*/,
    void const* const* inputData, void* const* outputData, void* workspace, cudaStream_t stream) noexcept
{
    if (checkShapes(inputs[kQUERY].dims, inputs[kKEY].dims, inputs[kVALUE].dims) != kOK)
    {
        return kFAILED;
    }
    ElementType type{};
    switch (inputs[kQUERY].type)
    {
    case DataType::kFLOAT: type = ElementType::kFLOAT; break;
    case DataType::kHALF: type = ElementType::kHALF; break;
    case DataType::kBF16: type = ElementType::kBFLOAT16; break;
    default: reportError("HighSimilarityPassAttention: inputs must be FP32, FP16 or BF16"); return kFAILED;
    }
    AttentionShape const shape = attentionShape(inputs[kQUERY].dims, inputs[kVALUE].dims);
    cudaError_t const status = launchSparsemaxAttention({type, TensorLayout::kLINEAR, shape}, kAUTOMATIC_CONFIG,
        inputData[kQUERY], inputData[kKEY], inputData[kVALUE], outputData[0], workspace, stream);
    if (status != cudaSuccess)
    {
        reportError(
            "HighSimilarityPassAttention: %s (%s) at batch %lld, %lld score channels, %lld value channels, %lld "
            "positions; was the plugin built for this GPU?",
            cudaGetErrorName(status), cudaGetErrorString(status), static_cast<long long>(shape.batch),
            static_cast<long long>(shape.scoreChannels), static_cast<long long>(shape.valueChannels),
            static_cast<long long>(shape.positions));
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
    static PluginField const gField{kABI_VERSION_FIELD, &gAbiVersion, nvinfer1::PluginFieldType::kINT32, 1};
    static PluginFieldCollection const gFields{1, &gField};
    return &gFields;
}

nvinfer1::IPluginV3* AttentionPluginCreator::createPlugin(
    nvinfer1::AsciiChar const* layer, PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase) noexcept
{
    bool const isRuntime = phase == nvinfer1::TensorRTPhase::kRUNTIME;
    bool found = false;
    int32_t const count = fields == nullptr ? 0 : fields->nbFields;
    for (int32_t i = 0; i < count; ++i)
    {
        PluginField const& field = fields->fields[i];
        bool const isAbi = field.name != nullptr && std::strcmp(field.name, kABI_VERSION_FIELD) == 0
            && field.type == nvinfer1::PluginFieldType::kINT32 && field.length == 1 && field.data != nullptr;
        if (!isRuntime || !isAbi)
        {
            reportError("HighSimilarityPassAttention: layer %s: unknown attribute %s", layer == nullptr ? "?" : layer,
                field.name == nullptr ? "?" : field.name);
            return nullptr;
        }
        int32_t version = 0;
        std::memcpy(&version, field.data, sizeof version);
        if (version != kABI_VERSION)
        {
            reportError(
                "HighSimilarityPassAttention: the engine was built with plugin ABI %d, this library has %d; rebuild "
                "the engine",
                version, kABI_VERSION);
            return nullptr;
        }
        found = true;
    }
    if (isRuntime && !found)
    {
        reportError("HighSimilarityPassAttention: the engine holds no plugin ABI version");
        return nullptr;
    }
    auto* const plugin = new (std::nothrow) AttentionPlugin;
    if (plugin == nullptr)
    {
        reportError("HighSimilarityPassAttention: out of host memory");
    }
    return plugin;
}

PluginFieldCollection const* AttentionPluginCreator::getFieldNames() noexcept
{
    static PluginFieldCollection const gNone{0, nullptr};
    return &gNone;
}

nvinfer1::AsciiChar const* AttentionPluginCreator::getPluginName() const noexcept
{
    return kPLUGIN_NAME;
}

nvinfer1::AsciiChar const* AttentionPluginCreator::getPluginVersion() const noexcept
{
    return kPLUGIN_VERSION;
}

nvinfer1::AsciiChar const* AttentionPluginCreator::getPluginNamespace() const noexcept
{
    return kPLUGIN_NAMESPACE;
}

} // namespace hspan
