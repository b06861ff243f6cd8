//! \file attention_plugin.h
//! The operator as a TensorRT layer: checks, formats and tactics, no arithmetic.
#pragma once

#include <NvInferRuntime.h>

#include "formats.h"
#include "tactics.h"

namespace hspan
{

//! out (N, D, H, W) = sparsemax attention of query (N, C, H, W), key (N, C, H, W) and value (N, D, H, W).
//!
//! All four tensors are of one type, FP32, FP16 or BF16, and of one format, linear (NCHW) or channels-last (formats.h).
//! Every dimension may be dynamic. The object holds the tactic and, while an engine is built, what the tactics depend
//! on; both are set between executions only. Each context gets an object of its own.
class AttentionPlugin final : public nvinfer1::IPluginV3,
                              public nvinfer1::IPluginV3OneCore,
                              public nvinfer1::IPluginV3OneBuild,
                              public nvinfer1::IPluginV3OneRuntime
{
public:
    //! \param choice formats to offer; only the build asks.
    //! \param tactic one for which isTactic() holds.
    //! \param config that the node asks for, or kANY_CONFIG.
    AttentionPlugin(FormatChoice choice, int32_t config, int32_t tactic) noexcept;
    AttentionPlugin(AttentionPlugin const&) = delete;
    AttentionPlugin& operator=(AttentionPlugin const&) = delete;
    ~AttentionPlugin() override = default;

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t outputCount) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t outputCount,
        nvinfer1::DataType const* inputTypes, int32_t inputCount) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t inputCount,
        nvinfer1::DimsExprs const* shapeInputs, int32_t shapeInputCount, nvinfer1::DimsExprs* outputs,
        int32_t outputCount, nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
        int32_t inputCount, int32_t outputCount) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t inputCount,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t outputCount) const noexcept override;
    int32_t getNbTactics() noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t tacticCount) noexcept override;
    char const* getTimingCacheID() noexcept override;

    // IPluginV3OneRuntime
    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t inputCount,
        nvinfer1::PluginTensorDesc const* outputs, int32_t outputCount) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* outputs,
        void const* const* inputData, void* const* outputData, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    FormatChoice mChoice;
    int32_t mConfig;
    int32_t mTactic;
    TacticProblem mConfigured; //!< of the last configurePlugin()
    char mTimingCacheId[96];   //!< what the layer's times depend on, apart from shapes, types and formats
    nvinfer1::PluginField mFields[2];
    nvinfer1::PluginFieldCollection mFieldCollection;
};

//! Refuses shapes that do not belong together. Dimensions of -1 are dynamic and fit everything.
//! \return an explanation, null when the shapes are right.
char const* shapeError(nvinfer1::Dims const& query, nvinfer1::Dims const& key, nvinfer1::Dims const& value) noexcept;

} // namespace hspan
