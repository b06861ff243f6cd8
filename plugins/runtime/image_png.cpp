#include "error.h"
#include "image_formats.h"

#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>
#include <zlib.h>

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
    // Texts are not kept; a bomb inside one is not unpacked either.
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

constexpr std::size_t kHEADER_END = 8 + 25; // of the signature and the chunk IHDR
constexpr std::size_t kCHUNK_BYTES = 12;    // of a chunk beside its content
constexpr uLong kMOST_PROFILE = 16UL << 20;

std::uint32_t bigEndian(std::uint8_t const* bytes)
{
    return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
}

void appendNumber(Bytes& bytes, std::size_t number)
{
    for (int shift = 24; shift >= 0; shift -= 8)
    {
        bytes.push_back(static_cast<std::uint8_t>(number >> shift));
    }
}

// The profile in the chunk iCCP: a name, a null byte, 0 for deflate, and the profile. Empty if it is none.
Bytes profileFromChunk(std::uint8_t const* content, std::size_t size)
{
    auto const start = static_cast<std::size_t>(std::find(content, content + size, 0) - content) + 2;
    Bytes profile;
    for (uLong room = 4096; start < size && room <= kMOST_PROFILE; room *= 4)
    {
        profile.resize(room);
        uLongf count = room;
        int const result = uncompress(profile.data(), &count, content + start, size - start);
        if (result != Z_BUF_ERROR)
        {
            profile.resize(result == Z_OK ? count : 0);
            return profile;
        }
    }
    return {};
}

Bytes chunkFromProfile(Bytes const& profile)
{
    uLongf size = compressBound(profile.size());
    Bytes packed(size);
    compress(packed.data(), &size, profile.data(), profile.size());
    std::string const head("iCCPICC profile\0\0", 17);
    Bytes chunk;
    appendNumber(chunk, head.size() - 4 + size);
    chunk.insert(chunk.end(), head.begin(), head.end());
    chunk.insert(chunk.end(), packed.begin(), packed.begin() + static_cast<std::ptrdiff_t>(size));
    appendNumber(chunk, crc32(0, &chunk[4], static_cast<uInt>(chunk.size() - 4)));
    return chunk;
}

// The profile, and the first chunk of each kind that says something of colors, before the pixels.
Colors colorsFromPng(Bytes const& file)
{
    std::map<std::string, std::uint32_t> const sizes{
        {"cICP", 4}, {"sRGB", 1}, {"gAMA", 4}, {"cHRM", 32}, {"mDCV", 24}, {"cLLI", 8}};
    Colors said;
    std::set<std::string> seen;
    for (std::size_t at = kHEADER_END; at + kCHUNK_BYTES <= file.size();)
    {
        std::uint8_t const* const chunk = &file[at];
        std::uint32_t const size = bigEndian(chunk);
        std::string const kind(chunk + 4, chunk + 8);
        if (kind == "IDAT" || size > file.size() - at - kCHUNK_BYTES)
        {
            break;
        }
        auto const known = sizes.find(kind);
        bool const taken = kind == "iCCP" || (known != sizes.end() && known->second == size);
        if (taken && crc32(0, chunk + 4, size + 4) == bigEndian(chunk + 8 + size) && seen.insert(kind).second)
        {
            if (kind == "iCCP")
            {
                said.profile = profileFromChunk(chunk + 8, size);
            }
            else
            {
                said.chunks.insert(said.chunks.end(), chunk, chunk + kCHUNK_BYTES + size);
            }
        }
        at += kCHUNK_BYTES + size;
    }
    return said;
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
    image.said = colorsFromPng(bytes);
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
    Bytes chunks = image.said.chunks;
    if (!image.said.profile.empty())
    {
        Bytes const chunk = chunkFromProfile(image.said.profile);
        chunks.insert(chunks.end(), chunk.begin(), chunk.end());
    }
    writing.bytes.insert(writing.bytes.begin() + kHEADER_END, chunks.begin(), chunks.end());
    return std::move(writing.bytes);
}

} // namespace hspan
