// Any text as a manifest: an Error or a Manifest, nothing else.

#include "error.h"
#include "manifest.h"

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size)
{
    try
    {
        hspan::manifestFromJson(std::string(reinterpret_cast<char const*>(data), size), "fuzz");
    }
    catch (hspan::Error const&)
    {
    }
    return 0;
}
