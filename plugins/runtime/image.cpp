#include "image.h"

#include "error.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>
#include <utility>

namespace hspan
{
namespace
{

constexpr int kMAX_JPEG_SIDE = 65500; // libjpeg's own limit

enum class Format
{
    kNONE,
    kPNG,
    kJPEG,
    kPNM
};

Format formatFromSuffix(std::string const& path)
{
    std::string const name = nameFromPath(path);
    auto const dot = name.rfind('.');
    std::string suffix = dot == std::string::npos ? "" : name.substr(dot);
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
    if (suffix == ".png")
    {
        return Format::kPNG;
    }
    if (suffix == ".jpg" || suffix == ".jpeg")
    {
        return Format::kJPEG;
    }
    return suffix == ".ppm" || suffix == ".pgm" || suffix == ".pnm" ? Format::kPNM : Format::kNONE;
}

bool startsWith(Bytes const& bytes, std::initializer_list<int> magic)
{
    return bytes.size() >= magic.size() && std::equal(magic.begin(), magic.end(), bytes.begin());
}

} // namespace

void requireSize(std::string const& where, std::int64_t width, std::int64_t height)
{
    if (width < 1 || height < 1)
    {
        throw Error(where, "has no pixels: " + std::to_string(width) + "x" + std::to_string(height));
    }
    if (width > kMAX_PIXELS || height > kMAX_PIXELS || width * height > kMAX_PIXELS)
    {
        throw Error(where,
            "claims " + std::to_string(width) + "x" + std::to_string(height) + " pixels, more than the "
                + std::to_string(kMAX_PIXELS / 1000000) + " million accepted",
            "cut it into smaller pictures");
    }
}

Image imageWithSize(std::string const& where, std::int64_t width, std::int64_t height, int channels, int bits)
{
    requireSize(where, width, height);
    Image image;
    image.width = static_cast<int>(width);
    image.height = static_cast<int>(height);
    image.channels = channels;
    image.bits = bits;
    image.samples.resize(image.rowBytes() * static_cast<std::size_t>(height));
    return image;
}

Image imageFromBytes(Bytes const& bytes, std::string const& where)
{
    if (startsWith(bytes, {0x89, 'P', 'N', 'G'}))
    {
        return imageFromPng(bytes, where);
    }
    if (startsWith(bytes, {0xff, 0xd8, 0xff}))
    {
        return imageFromJpeg(bytes, where);
    }
    if (startsWith(bytes, {'P', '5'}) || startsWith(bytes, {'P', '6'}))
    {
        return imageFromPnm(bytes, where);
    }
    throw Error(where, "not a picture that can be read", "give PNG, JPEG, PPM or PGM");
}

void requireWritableSuffix(std::string const& path)
{
    if (formatFromSuffix(path) == Format::kNONE)
    {
        throw Error(path, "cannot tell the format from its name", "end it in .png, .jpg, .ppm or .pgm", Code::kUSAGE);
    }
}

void requireFormatHolds(std::string const& path, PictureShape const& picture)
{
    Format const format = formatFromSuffix(path);
    bool const alpha = picture.channels == 2 || picture.channels == 4;
    char const* const next = "write .png instead";
    if (alpha && (format == Format::kJPEG || format == Format::kPNM))
    {
        throw Error(
            path, format == Format::kJPEG ? "JPEG cannot hold transparency" : "PPM cannot hold transparency", next);
    }
    if (format == Format::kJPEG && picture.bits != 8)
    {
        throw Error(path, "JPEG cannot hold 16 bits", next);
    }
    if (format == Format::kJPEG && (picture.width > kMAX_JPEG_SIDE || picture.height > kMAX_JPEG_SIDE))
    {
        throw Error(path, "JPEG cannot hold sides above " + std::to_string(kMAX_JPEG_SIDE) + " pixels", next);
    }
}

Bytes bytesFromImage(Image const& image, std::string const& path)
{
    requireFormatHolds(path, {image.width, image.height, image.channels, image.bits});
    switch (formatFromSuffix(path))
    {
    case Format::kPNG: return pngFromImage(image, path);
    case Format::kJPEG: return jpegFromImage(image, path);
    case Format::kPNM: return pnmFromImage(image, path);
    case Format::kNONE: break;
    }
    requireWritableSuffix(path);
    return {};
}

Image uprightImage(Image image, int orientation)
{
    if (orientation < 2 || orientation > 8)
    {
        return image;
    }
    bool const turned = orientation >= 5;
    Image upright = imageWithSize("picture", turned ? image.height : image.width, turned ? image.width : image.height,
        image.channels, image.bits);
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
