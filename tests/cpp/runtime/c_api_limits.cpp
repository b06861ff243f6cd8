// The C API with arguments that no call can mean, compiled with the address and undefined behavior sanitizers: each is
// refused by a status and a line, before any arithmetic on it.

#include "check.h"
#include "hspan/runtime.h"

#include <climits>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace
{

using hspan::test::addTest;
using hspan::test::check;

hspan_status network(void*, float const* input, std::int32_t height, std::int32_t width, float* output)
{
    for (std::int64_t i = 0; i < std::int64_t{3} * height * width; ++i)
    {
        for (int k = 0; k < 4; ++k)
        {
            output[4 * i + k] = input[i];
        }
    }
    return HSPAN_OK;
}

// Closed at the end of a test.
struct Upscaler
{
    hspan_upscaler* handle = nullptr;

    explicit Upscaler(hspan_network_limits limits = {2, 1, 1, INT32_MAX, INT32_MAX}, hspan_tiling tiling = {})
    {
        check(hspan_open_network(network, nullptr, limits, tiling, &handle) == HSPAN_OK, hspan_last_error());
    }
    Upscaler(Upscaler const&) = delete;
    Upscaler& operator=(Upscaler const&) = delete;
    ~Upscaler()
    {
        hspan_close(handle);
    }
};

void checkRefused(hspan_status status, char const* part)
{
    std::string const message = hspan_last_error();
    check(status == HSPAN_USAGE || status == HSPAN_FAILED, "status ", static_cast<int>(status));
    check(message.find(part) != std::string::npos && message.find('\n') == std::string::npos, message);
}

void addTests()
{
    addTest("null pointers are refused",
        []
        {
            Upscaler const upscaler;
            std::uint8_t pixels[64]{};
            std::int32_t count = 0;
            checkRefused(hspan_open(nullptr, nullptr, {}, nullptr), "NULL");
            checkRefused(hspan_open("x.plan", nullptr, {}, nullptr), "NULL");
            checkRefused(hspan_open_network(network, nullptr, {2, 1, 1, 8, 8}, {}, nullptr), "NULL");
            hspan_upscaler* none = nullptr;
            checkRefused(hspan_open_network(nullptr, nullptr, {2, 1, 1, 8, 8}, {}, &none), "make no sense");
            checkRefused(hspan_upscale(nullptr, pixels, 1, 1, 1, 8, 1, pixels, 2), "NULL");
            checkRefused(hspan_upscale(upscaler.handle, nullptr, INT32_MAX, 1, 1, 8, 1, pixels, 2), "NULL");
            checkRefused(hspan_upscale(upscaler.handle, pixels, 1, 1, 1, 8, 1, nullptr, 2), "NULL");
            checkRefused(hspan_upscale_file(upscaler.handle, nullptr, "o.png"), "NULL");
            checkRefused(hspan_upscale_file(upscaler.handle, "i.png", nullptr), "NULL");
            checkRefused(hspan_plan(nullptr, 8, 8, &count, &count, nullptr, 0), "NULL");
            checkRefused(hspan_plan(upscaler.handle, 8, 8, nullptr, &count, nullptr, 0), "NULL");
            check(hspan_scale(nullptr) == 0, "a scale");
            hspan_close(nullptr);
        });
    addTest("sizes that no picture has are refused",
        []
        {
            Upscaler const upscaler;
            std::uint8_t pixels[64]{};
            std::int32_t count = 0;
            for (std::int32_t const odd : {INT32_MIN, -1, 0, INT32_MAX - 1, INT32_MAX})
            {
                char const* const part = odd < 1 ? "no pixels" : "million accepted";
                for (auto const& [height, width] : {std::pair{odd, 1}, std::pair{1, odd}, std::pair{odd, odd}})
                {
                    checkRefused(hspan_plan(upscaler.handle, height, width, &count, &count, nullptr, 0), part);
                    checkRefused(
                        hspan_upscale(upscaler.handle, pixels, height, width, 3, 8, SIZE_MAX, pixels, SIZE_MAX), part);
                }
                checkRefused(hspan_upscale(upscaler.handle, pixels, 1, 1, odd, 8, 64, pixels, 64), "channels");
                checkRefused(hspan_upscale(upscaler.handle, pixels, 1, 1, 1, odd, 64, pixels, 64), "bits");
            }
            // The picture would pass, its result would not.
            checkRefused(
                hspan_upscale(upscaler.handle, pixels, 1 << 13, 1 << 13, 1, 8, 1 << 13, pixels, 1 << 14), "upscaled");
        });
    addTest("strides that are too short, or run out of memory's end, are refused",
        []
        {
            Upscaler const upscaler;
            std::uint8_t pixels[64]{};
            for (std::size_t const stride : {std::size_t{0}, std::size_t{5}})
            {
                checkRefused(hspan_upscale(upscaler.handle, pixels, 2, 2, 3, 8, stride, pixels, 12), "input_stride");
                checkRefused(hspan_upscale(upscaler.handle, pixels, 2, 2, 3, 8, 6, pixels, stride), "output_stride");
            }
            for (std::size_t const stride : {SIZE_MAX, SIZE_MAX / 2, SIZE_MAX - 5, SIZE_MAX / 2 + 1})
            {
                checkRefused(hspan_upscale(upscaler.handle, pixels, 2, 2, 3, 8, stride, pixels, 12), "input_stride");
                checkRefused(hspan_upscale(upscaler.handle, pixels, 2, 2, 3, 8, 6, pixels, stride), "output_stride");
            }
        });
    addTest("one row needs no stride beyond itself",
        []
        {
            Upscaler const upscaler;
            std::uint8_t input[3]{9, 99, 199};
            std::uint8_t output[12]{};
            check(hspan_upscale(upscaler.handle, input, 1, 1, 3, 8, SIZE_MAX / 2, output, 6) == HSPAN_OK,
                hspan_last_error());
            check(output[0] == 9 && output[11] == 199, "pixels");
        });
    addTest("limits and tiles that no network has are refused",
        []
        {
            for (hspan_network_limits const limits : {hspan_network_limits{0, 1, 1, 8, 8}, {17, 1, 1, 8, 8},
                     {INT32_MAX, 1, 1, 8, 8}, {2, 0, 1, 8, 8}, {2, INT32_MIN, 1, 8, 8}, {2, 9, 1, 8, 8},
                     {2, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX}, {16, INT32_MAX, 1, INT32_MAX, INT32_MAX}})
            {
                hspan_upscaler* none = nullptr;
                checkRefused(hspan_open_network(network, nullptr, limits, {}, &none), "network");
                check(none == nullptr, "a handle");
            }
            for (hspan_tiling const tiling :
                {hspan_tiling{0, 0, 1, 0}, {0, INT32_MIN, INT32_MIN, 0}, {0, -1, 8, 0}, {1, 8, 8, 0}})
            {
                hspan_upscaler* none = nullptr;
                checkRefused(hspan_open_network(network, nullptr, {2, 1, 1, 8, 8}, tiling, &none), "hspan_tiling");
            }
        });
    addTest("10,000 plans of extreme numbers are plans or refused",
        []
        {
            std::mt19937 draw(20);
            std::int32_t const numbers[] = {INT32_MIN, -1, 0, 1, 2, 7, 16, 255, 4096, 1 << 20, 1 << 26, 1 << 27,
                INT32_MAX / 2, INT32_MAX - 8, INT32_MAX - 1, INT32_MAX};
            auto const any = [&] { return numbers[draw() % (sizeof(numbers) / sizeof(numbers[0]))]; };
            int plans = 0;
            for (int i = 0; i < 10000; ++i)
            {
                hspan_tiling tiling{static_cast<std::int32_t>(draw() % 2), 0, 0, any()};
                if (draw() % 2 == 0)
                {
                    tiling = {0, any(), any(), any()};
                }
                hspan_network_limits const limits{
                    static_cast<std::int32_t>(draw() % 18), 1, static_cast<std::int32_t>(draw() % 9), any(), any()};
                hspan_upscaler* handle = nullptr;
                hspan_status status = hspan_open_network(network, nullptr, limits, tiling, &handle);
                // Pictures are moderate where tiles may be tiny: a plan of a hundred million tiles is correct, and
                // slow.
                std::int32_t const height = draw() % 2 == 0 ? any() : static_cast<std::int32_t>(draw() % 500);
                std::int32_t const width = height > 4096 ? 1 : any() % 4096;
                bool const many = limits.largest_height < 4096 || (tiling.tile_height > 0 && tiling.tile_height < 4096);
                std::int32_t rows = 0;
                std::int32_t columns = 0;
                if (status == HSPAN_OK && !(many && height > 4096))
                {
                    status = hspan_plan(handle, height, width, &rows, &columns, nullptr, 0);
                    plans += status == HSPAN_OK;
                }
                check(status == HSPAN_OK || std::string(hspan_last_error()) != "", "no message");
                hspan_close(handle);
            }
            check(plans > 500, plans, " plans");
        });
}

} // namespace

int main()
{
    addTests();
    return hspan::test::runAll();
}
