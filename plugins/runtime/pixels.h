// Pictures in memory: samples, their limits and their orientation. Knows no file format.
#pragma once

#include "files.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace hspan
{

// What a file says of its colors: an ICC profile, and chunks of a PNG beside it, as a PNG has them.
struct Colors
{
    Bytes profile;
    Bytes chunks;
};

// Samples interleaved, rows from top to bottom without padding; 16-bit samples in the machine's byte order.
struct Image
{
    int height = 0;
    int width = 0;
    int channels = 0; // 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha
    int bits = 8;     // 8 or 16
    Bytes samples;
    Colors said;

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
    std::uint32_t white() const
    {
        return bits == 8 ? 255 : 65535;
    }
    std::uint32_t sample(int y, int x, int channel) const
    {
        std::size_t const at = offset(y, x, channel);
        if (bits == 8)
        {
            return samples[at];
        }
        std::uint16_t wide = 0;
        std::memcpy(&wide, &samples[at], sizeof(wide));
        return wide;
    }
    void setSample(int y, int x, int channel, std::uint32_t level)
    {
        std::size_t const at = offset(y, x, channel);
        if (bits == 8)
        {
            samples[at] = static_cast<std::uint8_t>(level);
            return;
        }
        auto const wide = static_cast<std::uint16_t>(level);
        std::memcpy(&samples[at], &wide, sizeof(wide));
    }

private:
    std::size_t offset(int y, int x, int channel) const
    {
        std::size_t const index
            = static_cast<std::size_t>(x) * static_cast<std::size_t>(channels) + static_cast<std::size_t>(channel);
        return static_cast<std::size_t>(y) * rowBytes() + index * static_cast<std::size_t>(bits / 8);
    }
};

// 134 million: more than any camera's picture, less than would fill the memory.
// (The fuzzers set less, so that they spend their minute on readers and not on clearing memory.)
#ifndef HSPAN_MAX_PIXELS
#define HSPAN_MAX_PIXELS (1 << 27)
#endif
constexpr std::int64_t kMAX_PIXELS = HSPAN_MAX_PIXELS;

// Throws Error unless 1 <= height, width and height * width <= kMAX_PIXELS.
void requireSize(std::string const& where, std::int64_t height, std::int64_t width);

// Allocates the samples, zeroed. Throws Error as requireSize.
Image imageWithSize(std::string const& where, std::int64_t height, std::int64_t width, int channels, int bits);

// The eight EXIF orientations (1 is upright). Others leave the picture as it is.
Image uprightImage(Image image, int orientation);

// EXIF's orientation in a JPEG's APP1 segment; 1 when there is none or it is damaged.
int orientationFromExif(std::uint8_t const* data, std::size_t size) noexcept;

} // namespace hspan
