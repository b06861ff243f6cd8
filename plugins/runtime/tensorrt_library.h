// TensorRT's few C functions, from a library that was linked or is loaded at run time; everything else of TensorRT is
// virtual functions of what they return.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace hspan
{

struct TensorRtLibrary
{
    void* (*createRuntime)(void* logger, std::int32_t version) noexcept;
    std::int32_t (*version)() noexcept; // as createRuntime takes it
    std::int32_t (*major)() noexcept;
    std::int32_t (*minor)() noexcept;
    std::int32_t (*patch)() noexcept;

    // "10.3.0"
    std::string versionText() const
    {
        return std::to_string(major()) + "." + std::to_string(minor()) + "." + std::to_string(patch());
    }
};

// Throws Error: the library is not on this machine, or is none of TensorRT's.
TensorRtLibrary const& tensorRtLibrary();

} // namespace hspan
