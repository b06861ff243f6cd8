//! \file plugin_abi.h
//! Names and numbers by which TensorRT, the ONNX parser and the Python package know this library.
#pragma once

#include <cstdint>

namespace hspan
{

constexpr char const* kPLUGIN_NAME{"HighSimilarityPassAttention"};
constexpr char const* kPLUGIN_VERSION{"1"};

//! The namespace that the ONNX parser looks into for a node without a `plugin_namespace` attribute, whatever the
//! node's domain is.
constexpr char const* kPLUGIN_NAMESPACE{""};

//! Changes whenever an engine built with the library before could not run with the library after: other fields, a
//! tactic that means something else, more workspace. It is written into every engine and reported by hspanPluginInfo().
constexpr int32_t kABI_VERSION{4};

//! The serialized fields.
constexpr char const* kABI_VERSION_FIELD{"abi_version"};
constexpr char const* kTACTIC_FIELD{"tactic"};

//! The attributes that a node may have.
constexpr char const* kIO_FORMAT_FIELD{"io_format"};
constexpr char const* kCONFIGURATION_FIELD{"configuration"};

} // namespace hspan
