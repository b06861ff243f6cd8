// Pictures as files: PNG, JPEG, PPM and PGM.
#pragma once

#include "pixels.h"

#include <cstdint>
#include <string>

namespace hspan
{

// 2 GiB: more than kMAX_PIXELS of any format here take.
constexpr std::uint64_t kMAX_FILE_BYTES = std::uint64_t{2} << 30;

// The format is recognized by content. EXIF's orientation is applied. Palettes become RGB, fewer than 8 bits become 8.
// Throws Error: not a picture, damaged, truncated, too large, CMYK.
Image imageFromBytes(Bytes const& bytes, std::string const& where);

// The format follows the name: .png, .jpg, .jpeg (quality 95, full color resolution), .ppm, .pgm.
// Throws Error: another suffix, or what the format cannot hold (JPEG: alpha, 16 bit, sides above 65,500; PPM: alpha).
Bytes bytesFromImage(Image const& image, std::string const& path);

// What a picture says of its colors and a file of this name will not, in one phrase; empty if nothing.
std::string lostColors(Image const& image, std::string const& path);

// Checks before any work that bytesFromImage knows the suffix. Throws Error.
void requireWritableSuffix(std::string const& path);

// What a picture will be, before its samples exist.
struct PictureShape
{
    std::int64_t height;
    std::int64_t width;
    int channels;
    int bits;
};

// Checks before any work that the format of this name holds such a picture. Throws Error, as bytesFromImage.
void requireFormatHolds(std::string const& path, PictureShape const& picture);

} // namespace hspan
