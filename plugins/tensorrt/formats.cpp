#include "formats.h"

#include <cstring>

namespace hspan
{

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

namespace
{

constexpr int32_t kDIMENSIONS{4};
constexpr int32_t kCHANNELS_AXIS{1};

bool isChosen(TensorFormat format, FormatChoice choice) noexcept
{
    switch (choice)
    {
    case FormatChoice::kANY: return true;
    case FormatChoice::kLINEAR: return format == TensorFormat::kLINEAR;
    case FormatChoice::kHWC: return format == TensorFormat::kHWC;
    case FormatChoice::kHWC8: return format == TensorFormat::kHWC8;
    }
    return false;
}

//! The kernels step over rows of channelPitch() elements; HWC has rows of as many elements as there are channels.
bool isUnpadded(nvinfer1::PluginTensorDesc const& tensor, ElementType type) noexcept
{
    if (type == ElementType::kFLOAT)
    {
        return true;
    }
    int64_t const channels = tensor.dims.nbDims == kDIMENSIONS ? tensor.dims.d[kCHANNELS_AXIS] : -1;
    return channels >= 0 && channelPitch(type, channels) == channels;
}

} // namespace

bool formatChoiceFromText(char const* text, size_t length, FormatChoice& choice) noexcept
{
    constexpr struct
    {
        char const* name;
        FormatChoice choice;
    } kNAMES[] = {{"any", FormatChoice::kANY}, {"linear", FormatChoice::kLINEAR}, {"hwc", FormatChoice::kHWC},
        {"hwc8", FormatChoice::kHWC8}};
    length = length > 0 && text[length - 1] == '\0' ? length - 1 : length;
    for (auto const& each : kNAMES)
    {
        if (std::strlen(each.name) == length && std::strncmp(each.name, text, length) == 0)
        {
            choice = each.choice;
            return true;
        }
    }
    return false;
}

bool elementTypeFromDataType(DataType dataType, ElementType& type) noexcept
{
    switch (dataType)
    {
    case DataType::kFLOAT: type = ElementType::kFLOAT; return true;
    case DataType::kHALF: type = ElementType::kHALF; return true;
    case DataType::kBF16: type = ElementType::kBFLOAT16; return true;
    default: return false;
    }
}

bool isFormatSupported(nvinfer1::PluginTensorDesc const& tensor, FormatChoice choice) noexcept
{
    ElementType type{};
    if (!elementTypeFromDataType(tensor.type, type) || !isChosen(tensor.format, choice))
    {
        return false;
    }
    switch (tensor.format)
    {
    case TensorFormat::kLINEAR: return true;
    case TensorFormat::kHWC8: return type != ElementType::kFLOAT;
    case TensorFormat::kHWC: return isUnpadded(tensor, type);
    default: return false;
    }
}

TensorLayout layoutFromFormat(TensorFormat format) noexcept
{
    return format == TensorFormat::kLINEAR ? TensorLayout::kLINEAR : TensorLayout::kCHANNELS_LAST;
}

} // namespace hspan
