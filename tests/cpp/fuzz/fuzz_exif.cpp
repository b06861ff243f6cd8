// Any bytes as an EXIF segment: an orientation from 1 to 8.

#include "pixels.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size)
{
    static std::uint8_t const kSTART[] = {'E', 'x', 'i', 'f', 0, 0};
    // A copy of exactly this length, so that a read past the end is seen.
    std::vector<std::uint8_t> segment(std::begin(kSTART), std::end(kSTART));
    segment.insert(segment.end(), data, data + size);
    segment.shrink_to_fit();
    int const orientation = hspan::orientationFromExif(segment.data(), segment.size());
    if (orientation < 1 || orientation > 8)
    {
        std::abort();
    }
    return 0;
}
