/* libhspan_runtime: HSPAN engines from C, and from every language that can call C.
 *
 * Every function returns a status and sets a message for hspan_last_error(); none throws, aborts or exits. An upscaler
 * is used by one thread at a time; different upscalers may run in different threads. */
#ifndef HSPAN_RUNTIME_H
#define HSPAN_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C"
{
#endif

#define HSPAN_RUNTIME_ABI_VERSION 1

#if defined(__GNUC__)
#define HSPAN_API __attribute__((visibility("default")))
#else
#define HSPAN_API
#endif

    typedef enum hspan_status
    {
        HSPAN_OK = 0,
        HSPAN_FAILED = 1,       /* a file, the machine or the GPU */
        HSPAN_USAGE = 2,        /* a request that makes no sense whatever the files hold */
        HSPAN_OUT_OF_MEMORY = 3 /* of the host or the GPU, with the smallest tiles too */
    } hspan_status;

    typedef struct hspan_upscaler hspan_upscaler;

    /* How pictures are cut into tiles. Zeroed: the engine's profile and free memory decide. */
    typedef struct hspan_tiling
    {
        int32_t whole;       /* not 0: as a whole or not at all */
        int32_t tile_height; /* in input pixels; 0: chosen */
        int32_t tile_width;
        int32_t overlap; /* in input pixels; below 0, or 0 without a tile size: chosen */
    } hspan_tiling;

    /* A network that the caller runs: input (3, height, width) and output (3, scale * height, scale * width) float32
     * planes, nominally in [0, 1]. Returns HSPAN_OK; HSPAN_OUT_OF_MEMORY makes the tiles smaller; anything else is a
     * failure. */
    typedef hspan_status (*hspan_network)(
        void* user_data, float const* input, int32_t height, int32_t width, float* output);

    typedef struct hspan_network_limits
    {
        int32_t scale;
        int32_t least_height, least_width;
        int32_t largest_height, largest_width;
    } hspan_network_limits;

    /* The ABI version that the library was built with: compare it with HSPAN_RUNTIME_ABI_VERSION. */
    HSPAN_API int32_t hspan_runtime_abi_version(void);

    /* The calling thread's last failure in one line; "" when there was none. Valid until the thread's next call. */
    HSPAN_API char const* hspan_last_error(void);

    /* Opens NAME.plan with NAME.json beside it. plugin may be NULL: the library that the manifest names, beside the
     * plan. HSPAN_FAILED when the library was built without TensorRT. */
    HSPAN_API hspan_status hspan_open(
        char const* plan, char const* plugin, hspan_tiling tiling, hspan_upscaler** upscaler);

    /* The same on the GPU of this number, from 0 in CUDA's order; hspan_open takes 0. HSPAN_USAGE when there is none.
     */
    HSPAN_API hspan_status hspan_open_on_gpu(
        char const* plan, char const* plugin, int32_t device, hspan_tiling tiling, hspan_upscaler** upscaler);

    /* The same with the caller's network. */
    HSPAN_API hspan_status hspan_open_network(hspan_network network, void* user_data, hspan_network_limits limits,
        hspan_tiling tiling, hspan_upscaler** upscaler);

    /* Frees it; NULL is allowed. */
    HSPAN_API void hspan_close(hspan_upscaler* upscaler);

    HSPAN_API int32_t hspan_scale(hspan_upscaler const* upscaler);

    /* Upscales a picture in memory. Samples are interleaved, channels 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB,
     * alpha), bits 8 or 16 (native byte order). A stride is the distance of two rows in bytes. output holds scale *
     * height rows of scale * width pixels, at most 134 million of them, and is left as it is on failure. */
    HSPAN_API hspan_status hspan_upscale(hspan_upscaler* upscaler, void const* input, int32_t height, int32_t width,
        int32_t channels, int32_t bits, size_t input_stride, void* output, size_t output_stride);

    /* From file to file: PNG, JPEG, PPM, PGM. The output is there whole or not at all; a file that exists is replaced.
     * What a picture says of its colors is kept as far as the output's format can say it. */
    HSPAN_API hspan_status hspan_upscale_file(hspan_upscaler* upscaler, char const* input, char const* output);

    /* The tiles for a picture, six numbers each for every row span, then for every column span:
     * start, length, rise start, rise length, fall start, fall length. numbers may be NULL to ask for the counts.
     * capacity counts int32 values. */
    HSPAN_API hspan_status hspan_plan(hspan_upscaler const* upscaler, int32_t height, int32_t width, int32_t* rows,
        int32_t* columns, int32_t* numbers, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif
