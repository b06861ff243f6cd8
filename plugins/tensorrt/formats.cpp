#include "formats.h"

#include <cstring>

namespace hspan
{

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

namespace
{

constexpr FormatChoice kFORMAT_CHOICE_VALUES[]{
    FormatChoice::kANY, FormatChoice::kLINEAR, FormatChoice::kHWC, FormatChoice::kHWC8};

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

} // namespace

bool formatChoiceFromText(char const* text, size_t length, FormatChoice& choice) noexcept
{
    length = length > 0 && text[length - 1] == '\0' ? length - 1 : length;
    for (FormatChoice const each : kFORMAT_CHOICE_VALUES)
    {
        char const* const name = textFromFormatChoice(each);
        if (std::strlen(name) == length && std::strncmp(name, text, length) == 0)
        {
            choice = each;
            return true;
        }
    }
    return false;
}

char const* textFromFormatChoice(FormatChoice choice) noexcept
{
    switch (choice)
    {
    case FormatChoice::kANY: return "any";
    case FormatChoice::kLINEAR: return "linear";
    case FormatChoice::kHWC: return "hwc";
    case FormatChoice::kHWC8: return "hwc8";
    }
    return "";
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
    case TensorFormat::kHWC: return type == ElementType::kFLOAT;
    default: return false;
    }
}

TensorLayout layoutFromFormat(TensorFormat format) noexcept
{
    return format == TensorFormat::kLINEAR ? TensorLayout::kLINEAR : TensorLayout::kCHANNELS_LAST;
}

} // namespace hspan
