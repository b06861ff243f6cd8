// Netpbm's P5 (gray) and P6 (RGB), 8 and 16 bits: netpbm.sourceforge.net/doc/ppm.html.

#include "error.h"
#include "image_formats.h"

#include <cstring>

namespace hspan
{
namespace
{

class Header
{
public:
    Header(Bytes const& bytes, std::string const& where)
        : mBytes(bytes)
        , mWhere(where)
    {
    }

    // A decimal number after white space and comments.
    std::int64_t number(std::int64_t most)
    {
        for (;; ++mAt)
        {
            if (peek() == '#')
            {
                while (peek() != '\n')
                {
                    ++mAt;
                }
            }
            else if (!isSpace(peek()))
            {
                break;
            }
        }
        std::int64_t value = 0;
        std::size_t const start = mAt;
        for (; peek() >= '0' && peek() <= '9'; ++mAt)
        {
            value = value * 10 + (peek() - '0');
            if (value > most)
            {
                throw damaged();
            }
        }
        if (mAt == start)
        {
            throw damaged();
        }
        return value;
    }

    // Where the samples begin: after the one white space that ends the header.
    std::size_t end()
    {
        if (!isSpace(peek()))
        {
            throw damaged();
        }
        return mAt + 1;
    }

    Error damaged() const
    {
        return Error(mWhere, "a damaged or truncated PPM", "copy it again");
    }

private:
    static bool isSpace(int c)
    {
        return c == ' ' || (c >= '\t' && c <= '\r');
    }

    int peek() const
    {
        if (mAt >= mBytes.size())
        {
            throw damaged();
        }
        return mBytes[mAt];
    }

    Bytes const& mBytes;
    std::string const& mWhere;
    std::size_t mAt = 2;
};

void swapPairs(std::uint8_t* samples, std::size_t count)
{
    for (std::size_t i = 0; i + 1 < count; i += 2)
    {
        std::swap(samples[i], samples[i + 1]);
    }
}

} // namespace

Image imageFromPnm(Bytes const& bytes, std::string const& where)
{
    Header header(bytes, where);
    std::int64_t const width = header.number(kMAX_PIXELS);
    std::int64_t const height = header.number(kMAX_PIXELS);
    std::int64_t const maximum = header.number(65535);
    if (maximum != 255 && maximum != 65535)
    {
        throw Error(where, "a PPM with " + std::to_string(maximum) + " levels", "convert it to 255 or 65535");
    }
    std::size_t const start = header.end();
    Image image = imageWithSize(where, height, width, bytes[1] == '6' ? 3 : 1, maximum == 255 ? 8 : 16);
    if (bytes.size() - start < image.samples.size())
    {
        throw header.damaged();
    }
    std::memcpy(image.samples.data(), bytes.data() + start, image.samples.size());
    if (image.bits == 16)
    { // most significant byte first in the file
        swapPairs(image.samples.data(), image.samples.size());
    }
    return image;
}

Bytes pnmFromImage(Image const& image, std::string const&)
{
    std::string const header = std::string(image.channels == 3 ? "P6" : "P5") + "\n" + std::to_string(image.width) + " "
        + std::to_string(image.height) + "\n" + (image.bits == 8 ? "255" : "65535") + "\n";
    Bytes bytes(header.begin(), header.end());
    bytes.insert(bytes.end(), image.samples.begin(), image.samples.end());
    if (image.bits == 16)
    {
        swapPairs(bytes.data() + header.size(), bytes.size() - header.size());
    }
    return bytes;
}

} // namespace hspan
