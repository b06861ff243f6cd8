// The C API as a program with threads uses it: opens PLAN on a GPU that is not there, then on GPU 1 (of two), upscales
// on another thread than the one that opened, and closes there too. Prints what it was told.

#include "hspan/runtime.h"

#include <cstdio>
#include <thread>
#include <vector>

int main(int argc, char** argv)
{
    if (argc != 2)
    {
        return 2;
    }
    hspan_upscaler* upscaler = nullptr;
    hspan_status const missing = hspan_open_on_gpu(argv[1], nullptr, 7, hspan_tiling{}, &upscaler);
    std::printf("%d %s\n", missing, hspan_last_error());
    if (hspan_open_on_gpu(argv[1], nullptr, 1, hspan_tiling{}, &upscaler) != HSPAN_OK)
    {
        std::printf("%s\n", hspan_last_error());
        return 1;
    }
    int status = HSPAN_FAILED;
    std::thread(
        [&]
        {
            std::vector<unsigned char> const input(20 * 30 * 3, 90);
            auto const scale = static_cast<std::size_t>(hspan_scale(upscaler));
            std::vector<unsigned char> output(input.size() * scale * scale);
            status = hspan_upscale(upscaler, input.data(), 20, 30, 3, 8, 90, output.data(), 90 * scale);
            hspan_close(upscaler);
        })
        .join();
    std::printf("%d\n", status);
    return 0;
}
