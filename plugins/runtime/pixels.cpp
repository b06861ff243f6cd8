#include "pixels.h"

#include "error.h"
#include "size.h"

#include <array>
#include <cstring>
#include <utility>

namespace hspan
{

void requireSize(std::string const& where, std::int64_t height, std::int64_t width)
{
    if (height < 1 || width < 1)
    {
        throw Error(where, "has no pixels: " + sizeText(height, width));
    }
    if (height > kMAX_PIXELS || width > kMAX_PIXELS || height * width > kMAX_PIXELS)
    {
        throw Error(where,
            "claims " + sizeText(height, width) + " pixels, more than the " + std::to_string(kMAX_PIXELS / 1000000)
                + " million accepted",
            "cut it into smaller pictures");
    }
}

Image imageWithSize(std::string const& where, std::int64_t height, std::int64_t width, int channels, int bits)
{
    requireSize(where, height, width);
    Image image;
    image.height = static_cast<int>(height);
    image.width = static_cast<int>(width);
    image.channels = channels;
    image.bits = bits;
    image.samples.resize(image.rowBytes() * static_cast<std::size_t>(height));
    return image;
}

Image uprightImage(Image image, int orientation)
{
    if (orientation < 2 || orientation > 8)
    {
        return image;
    }
    bool const turned = orientation >= 5;
    Image upright = imageWithSize("picture", turned ? image.width : image.height, turned ? image.height : image.width,
        image.channels, image.bits);
    upright.said = std::move(image.said);
    std::size_t const pixel = static_cast<std::size_t>(image.channels) * static_cast<std::size_t>(image.bits / 8);
    int const right = image.width - 1;
    int const bottom = image.height - 1;
    for (int y = 0; y < upright.height; ++y)
    {
        for (int x = 0; x < upright.width; ++x)
        {
            // EXIF 2.3, tag 0x0112: which stored pixel stands at (x, y) of the upright picture.
            std::array<std::pair<int, int>, 9> const source{{{x, y}, {x, y}, {right - x, y}, {right - x, bottom - y},
                {x, bottom - y}, {y, x}, {y, bottom - x}, {right - y, bottom - x}, {right - y, x}}};
            auto const [sx, sy] = source[static_cast<std::size_t>(orientation)];
            std::memcpy(
                &upright
                    .samples[static_cast<std::size_t>(y) * upright.rowBytes() + static_cast<std::size_t>(x) * pixel],
                &image.samples[static_cast<std::size_t>(sy) * image.rowBytes() + static_cast<std::size_t>(sx) * pixel],
                pixel);
        }
    }
    return upright;
}

int orientationFromExif(std::uint8_t const* data, std::size_t size) noexcept
{
    constexpr std::size_t kHEADER = 6; // "Exif\0\0", then a TIFF file
    if (size < kHEADER + 8 || std::memcmp(data, "Exif\0\0", kHEADER) != 0)
    {
        return 1;
    }
    std::uint8_t const* tiff = data + kHEADER;
    std::size_t const length = size - kHEADER;
    bool const little = tiff[0] == 'I';
    auto const number = [&](std::size_t at, int bytes)
    {
        std::uint32_t value = 0;
        for (int i = 0; i < bytes; ++i)
        {
            value |= static_cast<std::uint32_t>(tiff[at + static_cast<std::size_t>(i)])
                << (8 * (little ? i : bytes - 1 - i));
        }
        return value;
    };
    std::size_t const directory = number(4, 4);
    if (directory > length - 2)
    {
        return 1;
    }
    std::size_t const count = number(directory, 2);
    for (std::size_t i = 0; i < count; ++i)
    {
        std::size_t const entry = directory + 2 + 12 * i;
        if (entry + 12 > length)
        {
            return 1;
        }
        if (number(entry, 2) == 0x0112)
        {
            auto const value = static_cast<int>(number(entry + 8, 2));
            return value >= 1 && value <= 8 ? value : 1;
        }
    }
    return 1;
}

} // namespace hspan
