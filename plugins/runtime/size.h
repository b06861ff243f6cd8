// The size of a picture or tile in pixels, height first, and how messages print it.
#pragma once

#include <cstdint>
#include <string>

namespace hspan
{

struct Size
{
    int height;
    int width;
};

inline std::string sizeText(std::int64_t height, std::int64_t width)
{
    return std::to_string(height) + "x" + std::to_string(width);
}

inline std::string sizeText(Size size)
{
    return sizeText(size.height, size.width);
}

} // namespace hspan
