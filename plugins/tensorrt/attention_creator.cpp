#include "attention_creator.h"

#include <cstring>
#include <new>

#include "attention_plugin.h"
#include "plugin_abi.h"
#include "report.h"
#include "tactics.h"

namespace hspan
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace
{

char const* textOf(char const* text) noexcept
{
    return text == nullptr ? "?" : text;
}

bool isNamed(PluginField const& field, char const* name) noexcept
{
    return field.name != nullptr && std::strcmp(field.name, name) == 0;
}

//! Reads a field that is one int32.
bool readInt32(PluginField const& field, int32_t& value) noexcept
{
    if (field.type != PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr)
    {
        return false;
    }
    std::memcpy(&value, field.data, sizeof value);
    return true;
}

nvinfer1::IPluginV3* newPlugin(FormatChoice choice, int32_t config, int32_t tactic) noexcept
{
    auto* const plugin = new (std::nothrow) AttentionPlugin{choice, config, tactic};
    if (plugin == nullptr)
    {
        reportError("HighSimilarityPassAttention: out of host memory");
    }
    return plugin;
}

//! From the attributes of a node.
nvinfer1::IPluginV3* pluginFromAttributes(char const* layer, PluginFieldCollection const& fields) noexcept
{
    FormatChoice choice{FormatChoice::kANY};
    int32_t config = kANY_CONFIG;
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        PluginField const& field = fields.fields[i];
        auto const* const text = static_cast<char const*>(field.data);
        auto const length = static_cast<size_t>(field.length > 0 ? field.length : 0);
        bool const isText = field.type == PluginFieldType::kCHAR && text != nullptr;
        if (isNamed(field, kIO_FORMAT_FIELD))
        {
            if (!isText || !formatChoiceFromText(text, length, choice))
            {
                reportError(
                    "HighSimilarityPassAttention: layer %s: %s must be %s", layer, kIO_FORMAT_FIELD, kFORMAT_CHOICES);
                return nullptr;
            }
        }
        else if (isNamed(field, kCONFIGURATION_FIELD))
        {
            if (!isText || !configChoiceFromText(text, length, config))
            {
                reportError("HighSimilarityPassAttention: layer %s: %s must be any or the name of a configuration",
                    layer, kCONFIGURATION_FIELD);
                return nullptr;
            }
        }
        else
        {
            reportError("HighSimilarityPassAttention: layer %s: unknown attribute %s", layer, textOf(field.name));
            return nullptr;
        }
    }
    return newPlugin(choice, config, kDEFAULT_TACTIC);
}

//! From what getFieldsToSerialize() wrote into an engine.
nvinfer1::IPluginV3* pluginFromEngine(char const* layer, PluginFieldCollection const& fields) noexcept
{
    bool hasVersion = false;
    bool hasTactic = false;
    int32_t version = 0;
    int32_t tactic = kDEFAULT_TACTIC;
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        PluginField const& field = fields.fields[i];
        if (isNamed(field, kABI_VERSION_FIELD) && readInt32(field, version))
        {
            hasVersion = true;
        }
        else if (isNamed(field, kTACTIC_FIELD) && readInt32(field, tactic))
        {
            hasTactic = true;
        }
        else
        {
            reportError("HighSimilarityPassAttention: layer %s: unknown attribute %s", layer, textOf(field.name));
            return nullptr;
        }
    }
    if (!hasVersion)
    {
        reportError("HighSimilarityPassAttention: the engine contains no plugin ABI version");
        return nullptr;
    }
    if (version != kABI_VERSION)
    {
        reportError(
            "HighSimilarityPassAttention: the engine was built with plugin ABI %d, this library has %d; rebuild the "
            "engine",
            version, kABI_VERSION);
        return nullptr;
    }
    if (!hasTactic || !isTactic(tactic))
    {
        reportError(
            "HighSimilarityPassAttention: tactic %d of the engine is unknown to this library; rebuild the engine",
            hasTactic ? tactic : -1);
        return nullptr;
    }
    return newPlugin(FormatChoice::kANY, kANY_CONFIG, tactic);
}

} // namespace

nvinfer1::IPluginV3* AttentionPluginCreator::createPlugin(
    nvinfer1::AsciiChar const* layer, PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase) noexcept
{
    PluginFieldCollection const given = fields == nullptr ? PluginFieldCollection{0, nullptr} : *fields;
    return phase == nvinfer1::TensorRTPhase::kRUNTIME ? pluginFromEngine(textOf(layer), given)
                                                      : pluginFromAttributes(textOf(layer), given);
}

PluginFieldCollection const* AttentionPluginCreator::getFieldNames() noexcept
{
    static PluginField const gFields[]{{kIO_FORMAT_FIELD, nullptr, PluginFieldType::kCHAR, 0},
        {kCONFIGURATION_FIELD, nullptr, PluginFieldType::kCHAR, 0}};
    static PluginFieldCollection const gAttributes{2, gFields};
    return &gAttributes;
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
