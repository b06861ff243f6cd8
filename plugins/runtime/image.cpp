#include "image.h"

#include "error.h"
#include "image_formats.h"

#include <algorithm>
#include <cctype>
#include <initializer_list>
#include <iterator>
#include <vector>

namespace hspan
{
namespace
{

constexpr int kMAX_JPEG_SIDE = 65500; // libjpeg's own limit

// What chunks of a PNG say of sRGB, after their kinds: files that say nothing are taken for that.
std::string const kSRGB_CHUNKS[] = {std::string("cICP\x01\x0d\0\x01", 8), std::string("gAMA\0\0\xb1\x8f", 8),
    std::string(
        "cHRM\0\0\x7a\x26\0\0\x80\x84\0\0\xfa\0\0\0\x80\xe8\0\0\x75\x30\0\0\xea\x60\0\0\x3a\x98\0\0\x17\x70", 36)};

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
    if (format == Format::kJPEG && (picture.height > kMAX_JPEG_SIDE || picture.width > kMAX_JPEG_SIDE))
    {
        throw Error(path, "JPEG cannot hold sides above " + std::to_string(kMAX_JPEG_SIDE) + " pixels", next);
    }
}

std::string lostColors(Image const& image, std::string const& path)
{
    Format const format = formatFromSuffix(path);
    if (format == Format::kPNG)
    {
        return "";
    }
    auto const [profile, chunks] = image.said;
    std::vector<std::string> names;
    for (std::size_t at = 0; at < chunks.size(); at += 12U + chunks[at + 3])
    {
        std::string const chunk(&chunks[at + 4], &chunks[at + 8] + chunks[at + 3]);
        if (std::find(std::begin(kSRGB_CHUNKS), std::end(kSRGB_CHUNKS), chunk) == std::end(kSRGB_CHUNKS))
        {
            names.push_back(chunk.substr(0, 4));
        }
    }
    bool const isSrgb = std::find(names.begin(), names.end(), "sRGB") != names.end();
    std::string list = !profile.empty() && format != Format::kJPEG ? "profile" : "";
    for (std::string const& name : names)
    {
        // A profile and sRGB have more right than these two.
        bool const counts = name != "sRGB" && ((profile.empty() && !isSrgb) || (name != "gAMA" && name != "cHRM"));
        list += counts ? (list.empty() ? "" : ", ") + name : "";
    }
    return list.empty() ? "" : "what it says of its colors (" + list + ") is lost: write .png instead";
}

Bytes bytesFromImage(Image const& image, std::string const& path)
{
    requireFormatHolds(path, {image.height, image.width, image.channels, image.bits});
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

} // namespace hspan
