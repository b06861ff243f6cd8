/* The C API of a package from C: plans of numbers on standard input, or a picture file through a small network.
 *   probe plan           lines of least h w, largest h w, tile h w, overlap, picture h w -> the plan, or its status
 *   probe upscale IN OUT each pixel twice in both directions */
#include <hspan/runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hspan_status twice(void* data, float const* input, int32_t height, int32_t width, float* output)
{
    (void) data;
    for (int32_t c = 0; c < 3; ++c)
        for (int32_t y = 0; y < 2 * height; ++y)
            for (int32_t x = 0; x < 2 * width; ++x)
                *output++ = input[(c * height + y / 2) * width + x / 2];
    return HSPAN_OK;
}

static int plans(void)
{
    int32_t n[9];
    while (scanf("%d %d %d %d %d %d %d %d %d", n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, n + 8) == 9)
    {
        hspan_network_limits const limits = {2, n[0], n[1], n[2], n[3]};
        hspan_tiling const tiling = {0, n[4], n[5], n[6]};
        hspan_upscaler* upscaler = NULL;
        int32_t rows = 0;
        int32_t columns = 0;
        hspan_status status = hspan_open_network(twice, NULL, limits, tiling, &upscaler);
        if (status == HSPAN_OK)
            status = hspan_plan(upscaler, n[7], n[8], &rows, &columns, NULL, 0);
        if (status != HSPAN_OK)
        {
            printf("status %d\n", (int) status);
            hspan_close(upscaler);
            continue;
        }
        size_t const count = 6 * (size_t) (rows + columns);
        int32_t* const numbers = malloc(count * sizeof(*numbers));
        if (numbers == NULL || hspan_plan(upscaler, n[7], n[8], &rows, &columns, numbers, count) != HSPAN_OK)
            return 1;
        printf("%d %d", rows, columns);
        for (size_t i = 0; i < count; ++i)
            printf(" %d", numbers[i]);
        printf("\n");
        free(numbers);
        hspan_close(upscaler);
    }
    return 0;
}

static int upscale(char const* input, char const* output)
{
    hspan_network_limits const limits = {2, 1, 1, 64, 64};
    hspan_tiling const tiling = {0, 0, 0, -1};
    hspan_upscaler* upscaler = NULL;
    if (hspan_open_network(twice, NULL, limits, tiling, &upscaler) != HSPAN_OK
        || hspan_upscale_file(upscaler, input, output) != HSPAN_OK)
    {
        fprintf(stderr, "%s\n", hspan_last_error());
        return 1;
    }
    hspan_close(upscaler);
    return 0;
}

int main(int argc, char** argv)
{
    if (hspan_runtime_abi_version() != HSPAN_RUNTIME_ABI_VERSION)
        return 3;
    if (argc == 2 && strcmp(argv[1], "plan") == 0)
        return plans();
    return argc == 4 && strcmp(argv[1], "upscale") == 0 ? upscale(argv[2], argv[3]) : 2;
}
