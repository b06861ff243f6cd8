#include "error.h"
#include "image_formats.h"

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <memory>
#include <vector>

namespace hspan
{
namespace
{

constexpr std::size_t kDEFLATE_RATIO = 1032;
constexpr std::size_t kMOST_EXPANSION = 32; // one bit of a palette becomes RGB and alpha

struct Messages
{
    std::string text;
};

// libpng's way out of an error is a longjmp to its caller; C++ objects must not live between the two.
[[noreturn]] void onError(png_structp png, png_const_charp message)
{
    static_cast<Messages*>(png_get_error_ptr(png))->text = message;
    png_longjmp(png, 1);
}

void onWarning(png_structp, png_const_charp)
{
}

struct Source
{
    std::uint8_t const* next;
    std::size_t left;
};

void readBytes(png_structp png, png_bytep target, png_size_t count)
{
    auto* source = static_cast<Source*>(png_get_io_ptr(png));
    if (count > source->left)
    {
        png_error(png, "the file ends too early");
    }
    std::memcpy(target, source->next, count);
    source->next += count;
    source->left -= count;
}

void appendBytes(png_structp png, png_bytep data, png_size_t count)
{
    auto* target = static_cast<Bytes*>(png_get_io_ptr(png));
    try
    {
        target->insert(target->end(), data, data + count);
    }
    catch (...)
    {
        png_error(png, "out of memory");
    }
}

void flushNothing(png_structp)
{
}

// Everything with a destructor belongs to the caller.
struct Reading
{
    png_structp png = nullptr;
    png_infop info = nullptr;
    Messages messages;
    Source source{};
    std::vector<png_bytep> rows;

    ~Reading()
    {
        png_destroy_read_struct(&png, &info, nullptr);
    }
};

bool readHeader(Reading& reading)
{
    if (setjmp(png_jmpbuf(reading.png)) != 0)
    {
        return false;
    }
    png_set_read_fn(reading.png, &reading.source, readBytes);
    png_set_user_limits(reading.png, 1U << 27, 1U << 27);
    // Text chunks and profiles are not kept; a bomb inside one is not unpacked either.
    png_set_keep_unknown_chunks(reading.png, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
    png_set_chunk_malloc_max(reading.png, 8U << 20);
    png_read_info(reading.png, reading.info);
    png_set_expand(reading.png); // palettes, fewer than 8 bits, a transparent color
    if (png_get_bit_depth(reading.png, reading.info) == 16)
    {
        png_set_swap(reading.png); // to little endian: every machine that this runs on
    }
    png_set_interlace_handling(reading.png);
    png_read_update_info(reading.png, reading.info);
    return true;
}

bool readRows(Reading& reading)
{
    if (setjmp(png_jmpbuf(reading.png)) != 0)
    {
        return false;
    }
    png_read_image(reading.png, reading.rows.data());
    png_read_end(reading.png, nullptr);
    return true;
}

struct Writing
{
    png_structp png = nullptr;
    png_infop info = nullptr;
    Messages messages;
    Bytes bytes;
    std::vector<png_bytep> rows;

    ~Writing()
    {
        png_destroy_write_struct(&png, &info);
    }
};

bool writeAll(Writing& writing, png_uint_32 width, png_uint_32 height, int bits, int colorType)
{
    if (setjmp(png_jmpbuf(writing.png)) != 0)
    {
        return false;
    }
    png_set_write_fn(writing.png, &writing.bytes, appendBytes, flushNothing);
    png_set_IHDR(writing.png, writing.info, width, height, bits, colorType, PNG_INTERLACE_NONE,
        PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_compression_level(writing.png, 6);
    png_write_info(writing.png, writing.info);
    if (bits == 16)
    {
        png_set_swap(writing.png);
    }
    png_write_image(writing.png, writing.rows.data());
    png_write_end(writing.png, nullptr);
    return true;
}

void pointRows(std::vector<png_bytep>& rows, Image const& image)
{
    rows.resize(static_cast<std::size_t>(image.height));
    for (std::size_t y = 0; y < rows.size(); ++y)
    {
        // libpng takes pointers to non-const and writes through them only when it reads a file.
        rows[y] = const_cast<png_bytep>(&image.samples[y * image.rowBytes()]);
    }
}

} // namespace

Image imageFromPng(Bytes const& bytes, std::string const& where)
{
    auto const damaged = [&](Reading const& reading)
    { return Error(where, "a damaged or truncated PNG (" + reading.messages.text + ")", "copy it again"); };
    Reading reading;
    reading.source = {bytes.data(), bytes.size()};
    reading.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reading.messages, onError, onWarning);
    reading.info = reading.png == nullptr ? nullptr : png_create_info_struct(reading.png);
    if (reading.info == nullptr)
    {
        throw Error(where, "out of memory", "", Code::kOUT_OF_MEMORY);
    }
    if (!readHeader(reading))
    {
        throw damaged(reading);
    }
    // Deflate shrinks nothing to less than 1/1032 (RFC 1951: 258 bytes by two bits); a file that claims more is no
    // picture.
    if (png_get_rowbytes(reading.png, reading.info) / kDEFLATE_RATIO * png_get_image_height(reading.png, reading.info)
        > kMOST_EXPANSION * bytes.size())
    {
        throw Error(where,
            "a damaged PNG: it claims more pixels than its " + std::to_string(bytes.size()) + " bytes can hold",
            "copy it again");
    }
    Image image = imageWithSize(where, png_get_image_height(reading.png, reading.info),
        png_get_image_width(reading.png, reading.info), png_get_channels(reading.png, reading.info),
        png_get_bit_depth(reading.png, reading.info));
    if (png_get_rowbytes(reading.png, reading.info) != image.rowBytes())
    {
        throw Error(where, "a PNG of an unknown kind", "convert it to 8-bit RGB");
    }
    pointRows(reading.rows, image);
    if (!readRows(reading))
    {
        throw damaged(reading);
    }
    return image;
}

Bytes pngFromImage(Image const& image, std::string const& where)
{
    static int const kTYPES[]
        = {0, PNG_COLOR_TYPE_GRAY, PNG_COLOR_TYPE_GRAY_ALPHA, PNG_COLOR_TYPE_RGB, PNG_COLOR_TYPE_RGBA};
    Writing writing;
    writing.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &writing.messages, onError, onWarning);
    writing.info = writing.png == nullptr ? nullptr : png_create_info_struct(writing.png);
    if (writing.info == nullptr)
    {
        throw Error(where, "out of memory", "", Code::kOUT_OF_MEMORY);
    }
    pointRows(writing.rows, image);
    if (!writeAll(writing, static_cast<png_uint_32>(image.width), static_cast<png_uint_32>(image.height), image.bits,
            kTYPES[image.channels]))
    {
        throw Error(where, "cannot be written as PNG (" + writing.messages.text + ")");
    }
    return std::move(writing.bytes);
}

} // namespace hspan
