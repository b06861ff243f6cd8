//! \file formats.h
//! Which memory formats the plugin takes, and what they are to the kernels. All four tensors of a layer have one
//! format.
#pragma once

#include <NvInferRuntime.h>

#include "../kernels/sparsemax_attention.h"

namespace hspan
{

//! The formats that a network asks for by the node's attribute `io_format`. A builder that times the plugin needs no
//! advice; TensorRT-RTX, which builds without a GPU, keeps the first format it is offered, and linear comes first.
enum class FormatChoice : int32_t
{
    kANY = 0,
    kLINEAR = 1,
    kHWC = 2,
    kHWC8 = 3,
};

constexpr char const* kFORMAT_CHOICES{"any, linear, hwc or hwc8"};

//! Reads the attribute's text.
//! \return false for any other text, with `choice` untouched.
bool formatChoiceFromText(char const* text, size_t length, FormatChoice& choice) noexcept;

//! The attribute's text that stands for the choice.
char const* textFromFormatChoice(FormatChoice choice) noexcept;

//! The kernels' name of a data type.
//! \return false for a type that is neither FP32, FP16 nor BF16, with `type` untouched.
bool elementTypeFromDataType(nvinfer1::DataType dataType, ElementType& type) noexcept;

//! Whether a tensor of this type and format can be handed to the kernels: linear; HWC8 of FP16 and BF16; HWC of FP32,
//! the one type for which TensorRT has it.
bool isFormatSupported(nvinfer1::PluginTensorDesc const& tensor, FormatChoice choice) noexcept;

//! The kernels' name of a format that isFormatSupported() accepts.
TensorLayout layoutFromFormat(nvinfer1::TensorFormat format) noexcept;

} // namespace hspan
