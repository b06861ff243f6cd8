#include "error.h"
#include "image_formats.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <jpeglib.h>

#include <jerror.h> // after jpeglib.h, which it needs
#include <utility>

namespace hspan
{
namespace
{

constexpr int kQUALITY = 95;
constexpr int kMAX_SCANS = 100; // a progressive file may hold thousands and take minutes

struct Failure : jpeg_error_mgr
{
    std::jmp_buf back;
    char text[JMSG_LENGTH_MAX] = "";
};

// libjpeg's way out of an error is ours to choose; C++ objects must not live between setjmp and longjmp.
[[noreturn]] void onError(j_common_ptr codec)
{
    auto* failure = static_cast<Failure*>(codec->err);
    failure->format_message(codec, failure->text);
    std::longjmp(failure->back, 1);
}

// Missing data is a warning to libjpeg, which goes on with gray; a picture half gray is an error here. Harmless
// oddities, such as extra bytes between segments, are warnings too and pass.
void onMessage(j_common_ptr codec, int level)
{
    int const code = codec->err->msg_code;
    if (level < 0
        && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE
            || code == JWRN_ARITH_BAD_CODE))
    {
        onError(codec);
    }
}

void onProgress(j_common_ptr codec)
{
    auto* decoder = reinterpret_cast<j_decompress_ptr>(codec);
    if (decoder->input_scan_number > kMAX_SCANS)
    {
        onError(codec);
    }
}

void prepare(Failure& failure)
{
    jpeg_std_error(&failure);
    failure.error_exit = onError;
    failure.emit_message = onMessage;
}

struct Reading
{
    jpeg_decompress_struct codec{};
    Failure failure;
    jpeg_progress_mgr progress{};
    bool created = false;
    JOCTET* profile = nullptr;
    unsigned profileSize = 0;

    ~Reading()
    {
        std::free(profile);
        if (created)
        {
            jpeg_destroy_decompress(&codec);
        }
    }
};

bool readHeader(Reading& reading, Bytes const& bytes)
{
    if (setjmp(reading.failure.back) != 0)
    {
        return false;
    }
    jpeg_create_decompress(&reading.codec);
    reading.created = true;
    reading.progress.progress_monitor = onProgress;
    reading.codec.progress = &reading.progress;
    jpeg_mem_src(&reading.codec, bytes.data(), static_cast<unsigned long>(bytes.size()));
    jpeg_save_markers(&reading.codec, JPEG_APP0 + 1, 0xffff);
    jpeg_save_markers(&reading.codec, JPEG_APP0 + 2, 0xffff); // where a profile is
    jpeg_read_header(&reading.codec, TRUE);
    jpeg_read_icc_profile(&reading.codec, &reading.profile, &reading.profileSize);
    return true;
}

bool readRows(Reading& reading, Image& image)
{
    if (setjmp(reading.failure.back) != 0)
    {
        return false;
    }
    jpeg_start_decompress(&reading.codec);
    while (reading.codec.output_scanline < reading.codec.output_height)
    {
        JSAMPROW row = &image.samples[reading.codec.output_scanline * image.rowBytes()];
        jpeg_read_scanlines(&reading.codec, &row, 1);
    }
    jpeg_finish_decompress(&reading.codec);
    return true;
}

struct Writing
{
    jpeg_compress_struct codec{};
    Failure failure;
    bool created = false;
    unsigned char* buffer = nullptr;
    unsigned long size = 0;

    ~Writing()
    {
        if (created)
        {
            jpeg_destroy_compress(&codec);
        }
        std::free(buffer);
    }
};

bool writeAll(Writing& writing, Image const& image)
{
    if (setjmp(writing.failure.back) != 0)
    {
        return false;
    }
    jpeg_create_compress(&writing.codec);
    writing.created = true;
    jpeg_mem_dest(&writing.codec, &writing.buffer, &writing.size);
    writing.codec.image_width = static_cast<JDIMENSION>(image.width);
    writing.codec.image_height = static_cast<JDIMENSION>(image.height);
    writing.codec.input_components = image.channels;
    writing.codec.in_color_space = image.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&writing.codec);
    jpeg_set_quality(&writing.codec, kQUALITY, TRUE);
    for (int i = 0; i < writing.codec.num_components; ++i)
    {
        writing.codec.comp_info[i].h_samp_factor = 1;
        writing.codec.comp_info[i].v_samp_factor = 1;
    }
    jpeg_start_compress(&writing.codec, TRUE);
    if (Bytes const& profile = image.said.profile; !profile.empty())
    {
        jpeg_write_icc_profile(&writing.codec, profile.data(), static_cast<unsigned>(profile.size()));
    }
    while (writing.codec.next_scanline < writing.codec.image_height)
    {
        // libjpeg reads through this pointer only.
        auto* row = const_cast<JSAMPROW>(&image.samples[writing.codec.next_scanline * image.rowBytes()]);
        jpeg_write_scanlines(&writing.codec, &row, 1);
    }
    jpeg_finish_compress(&writing.codec);
    return true;
}

int orientation(jpeg_decompress_struct const& codec)
{
    for (jpeg_saved_marker_ptr marker = codec.marker_list; marker != nullptr; marker = marker->next)
    {
        if (int const value = orientationFromExif(marker->data, marker->data_length); value != 1)
        {
            return value;
        }
    }
    return 1;
}

} // namespace

Image imageFromJpeg(Bytes const& bytes, std::string const& where)
{
    Reading reading;
    prepare(reading.failure);
    reading.codec.err = &reading.failure;
    auto const damaged = [&]
    {
        return Error(where, "a damaged or truncated JPEG (" + std::string(reading.failure.text) + ")", "copy it again");
    };
    if (!readHeader(reading, bytes))
    {
        throw damaged();
    }
    jpeg_decompress_struct& codec = reading.codec;
    if (codec.num_components != 1 && codec.num_components != 3)
    {
        throw Error(where, "a JPEG with " + std::to_string(codec.num_components) + " color components",
            "convert it to an RGB picture");
    }
    codec.out_color_space = codec.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    Image image = imageWithSize(where, codec.image_height, codec.image_width, codec.num_components, 8);
    image.said.profile.assign(reading.profile, reading.profile + reading.profileSize);
    int const turned = orientation(codec); // libjpeg forgets the markers with the last row
    if (!readRows(reading, image))
    {
        throw damaged();
    }
    return uprightImage(std::move(image), turned);
}

Bytes jpegFromImage(Image const& image, std::string const& where)
{
    Writing writing;
    prepare(writing.failure);
    writing.codec.err = &writing.failure;
    if (!writeAll(writing, image))
    {
        throw Error(where, "cannot be written as JPEG (" + std::string(writing.failure.text) + ")");
    }
    return Bytes(writing.buffer, writing.buffer + writing.size);
}

} // namespace hspan
