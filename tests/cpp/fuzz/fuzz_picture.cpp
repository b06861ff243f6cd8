// Any bytes as a picture: an Error or an Image with all of its samples, which every writer takes or refuses.

#include "error.h"
#include "image.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size)
{
    try
    {
        hspan::Image const image = hspan::imageFromBytes(hspan::Bytes(data, data + size), "fuzz");
        if (image.samples.size() != image.rowBytes() * static_cast<std::size_t>(image.height))
        {
            std::abort();
        }
        hspan::lostColors(image, "fuzz.jpg");
        if (image.samples.size() < 4096) // writing is slow, and its input is ours
        {
            hspan::Bytes const png = hspan::bytesFromImage(image, "fuzz.png");
            if (hspan::imageFromBytes(png, "fuzz").samples != image.samples)
            {
                std::abort();
            }
        }
    }
    catch (hspan::Error const&)
    {
    }
    return 0;
}
