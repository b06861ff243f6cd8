// Free main memory, as Linux and the container's limits say.
#pragma once

#include <cstdint>

namespace hspan
{

// Bytes that this process may still take without swapping; 0 where Linux does not say.
std::int64_t availableMemoryBytes();

} // namespace hspan
