//! \file plugin_class.cpp
//! The plugin class on the emulated kernels, behind C functions: what TensorRT's builder and runtime ask of it, asked
//! from Python. Tensors are query, key, value, output; a tensor's sizes are four numbers, N, channels, H, W.
#include <cstring>
#include <string>

#include <NvInferRuntime.h>
#include <simt.h>

#include "attention_creator.h"
#include "attention_plugin.h"
#include "loaded_tensorrt.h"
#include "plugin_abi.h"

using namespace nvinfer1;

namespace
{

constexpr int32_t kTENSORS{4};

std::string& messages()
{
    static std::string gMessages;
    return gMessages;
}

hspan::AttentionPluginCreator& creator()
{
    static hspan::AttentionPluginCreator gCreator;
    return gCreator;
}

hspan::AttentionPlugin& pluginOf(void* handle)
{
    return *static_cast<hspan::AttentionPlugin*>(static_cast<IPluginV3*>(handle));
}

Dims dimsOf(int64_t const* sizes)
{
    Dims dims;
    dims.nbDims = 4;
    for (int32_t i = 0; i < dims.nbDims; ++i)
    {
        dims.d[i] = sizes[i];
    }
    return dims;
}

struct Tensors
{
    DynamicPluginTensorDesc dynamic[kTENSORS];
    PluginTensorDesc plain[kTENSORS];

    Tensors(int32_t const* types, int32_t const* formats, int64_t const* sizes)
    {
        for (int32_t i = 0; i < kTENSORS; ++i)
        {
            plain[i] = {};
            plain[i].dims = dimsOf(sizes + 4 * i);
            plain[i].type = static_cast<DataType>(types[i]);
            plain[i].format = static_cast<TensorFormat>(formats[i]);
            plain[i].scale = 1.0F;
            dynamic[i] = {plain[i], plain[i].dims, plain[i].dims, plain[i].dims};
        }
    }
};

} // namespace

//! Takes the place of loaded_tensorrt.cpp: there is no TensorRT in this process.
void hspan::log(ILogger::Severity severity, char const* message) noexcept
{
    messages() += severity == ILogger::Severity::kERROR ? message : "not an error?";
    messages() += '\n';
}

extern "C"
{
    //! Everything logged since the last call.
    char const* takeMessages()
    {
        static std::string gTaken;
        gTaken = messages();
        messages().clear();
        return gTaken.c_str();
    }

    void pretendGpu(int32_t computeCapability)
    {
        simt::emulation::options().computeCapability = computeCapability;
    }

    //! As the ONNX parser does; null for no attribute.
    void* makePlugin(char const* attribute, char const* text)
    {
        PluginField const field{
            attribute, text, PluginFieldType::kCHAR, text == nullptr ? 0 : static_cast<int32_t>(std::strlen(text))};
        PluginFieldCollection const fields{attribute == nullptr ? 0 : 1, &field};
        return creator().createPlugin("layer", &fields, TensorRTPhase::kBUILD);
    }

    //! As the runtime does when an engine is read, with what the plugin gave to be stored. A version or a tactic of
    //! INT32_MIN leaves the field as it is; `more` adds a field.
    void* restorePlugin(void* plugin, int32_t version, int32_t tactic, bool more)
    {
        PluginFieldCollection const* const stored = pluginOf(plugin).getFieldsToSerialize();
        PluginField fields[3];
        int32_t count = 0;
        for (int32_t i = 0; i < stored->nbFields; ++i)
        {
            PluginField field = stored->fields[i];
            if (version != INT32_MIN && std::strcmp(field.name, hspan::kABI_VERSION_FIELD) == 0)
            {
                field.data = &version;
            }
            if (tactic != INT32_MIN && std::strcmp(field.name, hspan::kTACTIC_FIELD) == 0)
            {
                field.data = &tactic;
            }
            fields[count] = field;
            count += 1;
        }
        if (more)
        {
            fields[count] = {"more", &version, PluginFieldType::kINT32, 1};
            count += 1;
        }
        PluginFieldCollection const collection{count, fields};
        return creator().createPlugin("layer", &collection, TensorRTPhase::kRUNTIME);
    }

    //! As the runtime does for an engine without any field.
    void* restoreFromNothing()
    {
        return creator().createPlugin("layer", nullptr, TensorRTPhase::kRUNTIME);
    }

    void* clonePlugin(void* plugin)
    {
        return pluginOf(plugin).attachToContext(nullptr);
    }

    void deletePlugin(void* plugin)
    {
        delete static_cast<IPluginV3*>(plugin);
    }

    char const* timingCacheId(void* plugin)
    {
        return pluginOf(plugin).getTimingCacheID();
    }

    //! The tactic that an engine would store.
    int32_t storedTactic(void* plugin)
    {
        PluginFieldCollection const* const stored = pluginOf(plugin).getFieldsToSerialize();
        for (int32_t i = 0; i < stored->nbFields; ++i)
        {
            if (std::strcmp(stored->fields[i].name, hspan::kTACTIC_FIELD) == 0)
            {
                return *static_cast<int32_t const*>(stored->fields[i].data);
            }
        }
        return -1;
    }

    bool supports(void* plugin, int32_t position, int32_t const* types, int32_t const* formats, int64_t const* sizes)
    {
        Tensors const tensors{types, formats, sizes};
        return pluginOf(plugin).supportsFormatCombination(position, tensors.dynamic, 3, 1);
    }

    //! `least` are the profile's smallest sizes; `sizes` the largest, and those it is tuned for.
    int32_t configure(
        void* plugin, int32_t const* types, int32_t const* formats, int64_t const* least, int64_t const* sizes)
    {
        Tensors tensors{types, formats, sizes};
        for (int32_t i = 0; i < kTENSORS; ++i)
        {
            tensors.dynamic[i].min = dimsOf(least + 4 * i);
        }
        return pluginOf(plugin).configurePlugin(tensors.dynamic, 3, tensors.dynamic + 3, 1);
    }

    //! As the builder does: asks how many, then which.
    int32_t tacticsOf(void* plugin, int32_t* tactics, int32_t capacity)
    {
        int32_t const count = pluginOf(plugin).getNbTactics();
        return count > capacity || pluginOf(plugin).getValidTactics(tactics, count) != 0 ? -1 : count;
    }

    int32_t askForTactics(void* plugin, int32_t* tactics, int32_t count)
    {
        return pluginOf(plugin).getValidTactics(tactics, count);
    }

    int32_t setTactic(void* plugin, int32_t tactic)
    {
        return pluginOf(plugin).setTactic(tactic);
    }

    uint64_t workspaceOf(void* plugin, int32_t const* types, int32_t const* formats, int64_t const* sizes)
    {
        Tensors const tensors{types, formats, sizes};
        return pluginOf(plugin).getWorkspaceSize(tensors.dynamic, 3, tensors.dynamic + 3, 1);
    }

    int32_t changeShapes(void* plugin, int32_t const* types, int32_t const* formats, int64_t const* sizes)
    {
        Tensors const tensors{types, formats, sizes};
        return pluginOf(plugin).onShapeChange(tensors.plain, 3, tensors.plain + 3, 1);
    }

    int32_t run(void* plugin, int32_t const* types, int32_t const* formats, int64_t const* sizes,
        void const* const* inputs, void* output, void* workspace)
    {
        Tensors const tensors{types, formats, sizes};
        void* const outputs[] = {output};
        return pluginOf(plugin).enqueue(tensors.plain, tensors.plain + 3, inputs, outputs, workspace, nullptr);
    }

    //! The kernels' own word on a tactic's configuration, for tests that count them.
    int32_t configCount()
    {
        return hspan::attentionConfigCount();
    }

    bool isConfigSupported(
        int32_t config, int32_t elementType, int64_t scoreChannels, int64_t valueChannels, int32_t computeCapability)
    {
        return hspan::isAttentionConfigSupported(
            config, static_cast<hspan::ElementType>(elementType), scoreChannels, valueChannels, computeCapability);
    }

    uint64_t configWorkspace(int32_t config, int32_t elementType, int64_t batch, int64_t scoreChannels,
        int64_t valueChannels, int64_t positions)
    {
        return hspan::attentionWorkspaceBytes(
            {static_cast<hspan::ElementType>(elementType), hspan::TensorLayout::kLINEAR,
                {batch, scoreChannels, valueChannels, positions}},
            config);
    }
}
