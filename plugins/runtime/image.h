// Pictures in memory and as files: PNG, JPEG, PPM and PGM. Owns formats and orientation; knows nothing of networks.
#pragma once

#include "files.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace hspan
{

// Samples interleaved, rows from top to bottom without padding; 16-bit samples in the machine's byte order.
struct Image
{
    int width = 0;
    int height = 0;
    int channels = 0; // 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha
    int bits = 8;     // 8 or 16
    Bytes samples;

    std::size_t rowBytes() const
    {
        return static_cast<std::size_t>(width) * static_cast<std::size_t>(channels)
            * static_cast<std::size_t>(bits / 8);
    }
    int colors() const
    {
        return channels >= 3 ? 3 : 1;
    }
    bool hasAlpha() const
    {
        return channels == 2 || channels == 4;
    }
};

// 134 million: more than any camera's picture, less than would fill the memory.
// (The fuzzers set less, so that they spend their minute on readers and not on clearing memory.)
#ifndef HSPAN_MAX_PIXELS
#define HSPAN_MAX_PIXELS (1 << 27)
#endif
constexpr std::int64_t kMAX_PIXELS = HSPAN_MAX_PIXELS;

// 2 GiB: more than kMAX_PIXELS of any format here take.
constexpr std::uint64_t kMAX_FILE_BYTES = std::uint64_t{2} << 30;

// Allocates the samples, zeroed. Throws Error when the sizes make no sense or exceed kMAX_PIXELS.
Image imageWithSize(std::string const& where, std::int64_t width, std::int64_t height, int channels, int bits);

// The format is recognized by content. EXIF's orientation is applied. Palettes become RGB, fewer than 8 bits become 8.
// Throws Error: not a picture, damaged, truncated, too large, CMYK.
Image imageFromBytes(Bytes const& bytes, std::string const& where);

// The format follows the name: .png, .jpg, .jpeg (quality 95, full color resolution), .ppm, .pgm.
// Throws Error: another suffix, or what the format cannot hold (JPEG: alpha, 16 bit, sides above 65,500; PPM: alpha).
Bytes bytesFromImage(Image const& image, std::string const& path);

// Checks before any work that bytesFromImage knows the suffix. Throws Error.
void requireWritableSuffix(std::string const& path);

// What a picture will be, before its samples exist.
struct PictureShape
{
    std::int64_t width;
    std::int64_t height;
    int channels;
    int bits;
};

// Checks before any work that the format of this name holds such a picture. Throws Error, as bytesFromImage.
void requireFormatHolds(std::string const& path, PictureShape const& picture);

// Throws Error unless 1 <= width, height and width * height <= kMAX_PIXELS.
void requireSize(std::string const& where, std::int64_t width, std::int64_t height);

// The eight EXIF orientations (1 is upright). Others leave the picture as it is.
Image uprightImage(Image image, int orientation);

// EXIF's orientation in a JPEG's APP1 segment; 1 when there is none or it is damaged.
int orientationFromExif(std::uint8_t const* data, std::size_t size) noexcept;

// One reader and writer per format; imageFromBytes and bytesFromImage choose, and check what a format holds.
Image imageFromPng(Bytes const& bytes, std::string const& where);
Image imageFromJpeg(Bytes const& bytes, std::string const& where);
Image imageFromPnm(Bytes const& bytes, std::string const& where);
Bytes pngFromImage(Image const& image, std::string const& where);
Bytes jpegFromImage(Image const& image, std::string const& where);
Bytes pnmFromImage(Image const& image, std::string const& where);

} // namespace hspan
