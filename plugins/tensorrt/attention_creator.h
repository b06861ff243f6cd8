//! \file attention_creator.h
//! Makes the layer: out of a node's attributes while an engine is built, out of what an engine stores when it runs.
#pragma once

#include <NvInferRuntime.h>

namespace hspan
{

//! Makes AttentionPlugin objects for the ONNX parser, the network definition and the runtime.
class AttentionPluginCreator final : public nvinfer1::IPluginCreatorV3One
{
public:
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* layer, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;
};

} // namespace hspan
