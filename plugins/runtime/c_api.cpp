// The C API: arguments are checked, C++ exceptions become a status and a message, nothing else happens here.

#include "error.h"
#include "hspan/runtime.h"
#include "network_engine.h"
#include "upscaler.h"
#ifdef HSPAN_TENSORRT_FLAVOR
#include "tensorrt_engine.h"
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>

struct hspan_upscaler
{
    hspan::Upscaler upscaler;
};

namespace
{

using hspan::Code;
using hspan::Error;
using hspan::Image;

thread_local std::string gLastError;

template <typename Action>
hspan_status guarded(Action const& action) noexcept
{
    try
    {
        gLastError.clear();
        action();
        return HSPAN_OK;
    }
    catch (Error const& error)
    {
        try
        {
            gLastError = error.what();
        }
        catch (...)
        { // no memory for the message either
        }
        return static_cast<hspan_status>(error.code());
    }
    catch (std::bad_alloc const&)
    {
        gLastError.clear(); // needs no memory
        try
        {
            gLastError = "out of memory";
        }
        catch (...)
        {
        }
        return HSPAN_OUT_OF_MEMORY;
    }
    catch (std::exception const& error)
    {
        try
        {
            gLastError = std::string("unexpected: ") + error.what();
        }
        catch (...)
        {
        }
        return HSPAN_FAILED;
    }
    catch (...)
    {
        return HSPAN_FAILED;
    }
}

void require(bool condition, char const* function, char const* what)
{
    if (!condition)
    {
        throw Error(function, what, "", Code::kUSAGE);
    }
}

// Refuses rows that no memory can hold: their addresses must not wrap around.
void requireRows(void const* first, std::int64_t rows, std::size_t rowBytes, std::size_t stride, char const* name)
{
    require(stride >= rowBytes, "hspan_upscale", (std::string(name) + "_stride is shorter than a row").c_str());
    auto const room = std::min<std::uintptr_t>(UINTPTR_MAX - reinterpret_cast<std::uintptr_t>(first), PTRDIFF_MAX);
    require(rowBytes <= room && static_cast<std::uintptr_t>(rows - 1) <= (room - rowBytes) / stride, "hspan_upscale",
        (std::string(name) + "_stride is too long for memory").c_str());
}

hspan::TileChoice tileChoice(hspan_tiling const& tiling)
{
    hspan::TileChoice choice;
    bool const sized = tiling.tile_height != 0 || tiling.tile_width != 0;
    require(!sized || (tiling.tile_height >= 1 && tiling.tile_width >= 1), "hspan_tiling",
        "a tile needs two positive sides");
    require(!sized || tiling.whole == 0, "hspan_tiling", "a tile size and `whole` exclude each other");
    choice.mode = sized ? hspan::TileMode::kSIZE : tiling.whole != 0 ? hspan::TileMode::kNONE : hspan::TileMode::kAUTO;
    choice.size = {tiling.tile_height, tiling.tile_width};
    if (tiling.overlap >= 0 && (sized || tiling.overlap > 0))
    {
        choice.overlap = tiling.overlap;
    }
    return choice;
}

} // namespace

int32_t hspan_runtime_abi_version(void)
{
    return HSPAN_RUNTIME_ABI_VERSION;
}

char const* hspan_last_error(void)
{
    return gLastError.c_str();
}

hspan_status hspan_open(char const* plan, char const* plugin, hspan_tiling tiling, hspan_upscaler** upscaler)
{
    return hspan_open_on_gpu(plan, plugin, 0, tiling, upscaler);
}

hspan_status hspan_open_on_gpu(
    char const* plan, char const* plugin, int32_t device, hspan_tiling tiling, hspan_upscaler** upscaler)
{
    return guarded(
        [&]
        {
            require(plan != nullptr && upscaler != nullptr, "hspan_open", "plan and upscaler must not be NULL");
            *upscaler = nullptr;
#ifdef HSPAN_TENSORRT_FLAVOR
            hspan::VouchedPlan const vouched = hspan::readVouchedPlan(plan, plugin != nullptr ? plugin : "");
            hspan::GpuOptions options;
            options.device = device;
            auto engine = hspan::openTensorRtEngine(vouched, options);
            *upscaler = new hspan_upscaler{hspan::Upscaler(std::move(engine), tileChoice(tiling))};
#else
            static_cast<void>(plugin);
            static_cast<void>(device);
            static_cast<void>(tiling);
            throw Error("hspan_open", "this library was built without TensorRT", "use hspan_open_network");
#endif
        });
}

hspan_status hspan_open_network(
    hspan_network network, void* user_data, hspan_network_limits limits, hspan_tiling tiling, hspan_upscaler** upscaler)
{
    return guarded(
        [&]
        {
            require(upscaler != nullptr, "hspan_open_network", "upscaler must not be NULL");
            *upscaler = nullptr;
            auto engine = std::make_unique<hspan::NetworkEngine>(network, user_data, limits);
            *upscaler = new hspan_upscaler{hspan::Upscaler(std::move(engine), tileChoice(tiling))};
        });
}

void hspan_close(hspan_upscaler* upscaler)
{
    delete upscaler;
}

int32_t hspan_scale(hspan_upscaler const* upscaler)
{
    return upscaler == nullptr ? 0 : upscaler->upscaler.scale();
}

hspan_status hspan_upscale(hspan_upscaler* upscaler, void const* input, int32_t height, int32_t width, int32_t channels,
    int32_t bits, size_t input_stride, void* output, size_t output_stride)
{
    return guarded(
        [&]
        {
            require(upscaler != nullptr && input != nullptr && output != nullptr, "hspan_upscale", "a pointer is NULL");
            require(channels >= 1 && channels <= 4, "hspan_upscale", "channels must be 1 to 4");
            require(bits == 8 || bits == 16, "hspan_upscale", "bits must be 8 or 16");
            hspan::requireSize("hspan_upscale", height, width);
            auto const scale = static_cast<std::int64_t>(upscaler->upscaler.scale());
            hspan::requireSize("hspan_upscale, upscaled", height * scale, width * scale);
            auto const rowBytes = static_cast<std::size_t>(width) * static_cast<std::size_t>(channels * (bits / 8));
            requireRows(input, height, rowBytes, input_stride, "input");
            requireRows(output, height * scale, rowBytes * static_cast<std::size_t>(scale), output_stride, "output");
            Image image = hspan::imageWithSize("hspan_upscale", height, width, channels, bits);
            for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y)
            {
                std::memcpy(&image.samples[y * image.rowBytes()], static_cast<char const*>(input) + y * input_stride,
                    image.rowBytes());
            }
            Image const result = upscaler->upscaler.upscale(image, "hspan_upscale");
            for (std::size_t y = 0; y < static_cast<std::size_t>(result.height); ++y)
            {
                std::memcpy(static_cast<char*>(output) + y * output_stride, &result.samples[y * result.rowBytes()],
                    result.rowBytes());
            }
        });
}

hspan_status hspan_upscale_file(hspan_upscaler* upscaler, char const* input, char const* output)
{
    return guarded(
        [&]
        {
            require(upscaler != nullptr && input != nullptr && output != nullptr, "hspan_upscale_file",
                "a pointer is NULL");
            hspan::requireWritableSuffix(output);
            hspan::requireWritableFolder(output);
            Image const image = hspan::imageFromBytes(hspan::readFile(input, hspan::kMAX_FILE_BYTES), input);
            hspan::requireFormatHolds(output, upscaler->upscaler.resultOf(image, input));
            hspan::Bytes const bytes = hspan::bytesFromImage(upscaler->upscaler.upscale(image, input), output);
            hspan::writeFile(output, bytes.data(), bytes.size());
        });
}

hspan_status hspan_plan(hspan_upscaler const* upscaler, int32_t height, int32_t width, int32_t* rows, int32_t* columns,
    int32_t* numbers, size_t capacity)
{
    return guarded(
        [&]
        {
            require(upscaler != nullptr && rows != nullptr && columns != nullptr, "hspan_plan", "a pointer is NULL");
            hspan::requireSize("hspan_plan", height, width);
            hspan::TilePlan const plan = upscaler->upscaler.plan({height, width});
            *rows = static_cast<int32_t>(plan.rows.size());
            *columns = static_cast<int32_t>(plan.columns.size());
            if (numbers == nullptr)
            {
                return;
            }
            require(capacity >= 6 * (plan.rows.size() + plan.columns.size()), "hspan_plan", "capacity is too small");
            for (auto const* spans : {&plan.rows, &plan.columns})
            {
                for (hspan::Span const& span : *spans)
                {
                    for (int const value :
                        {span.start, span.length, span.riseStart, span.riseLength, span.fallStart, span.fallLength})
                    {
                        *numbers++ = value;
                    }
                }
            }
        });
}
