#include "tile_plan.h"

#include "error.h"

#include <algorithm>
#include <cstdint>
#include <string>

namespace hspan
{
namespace
{

std::vector<Span> spans(int size, int tile, int overlap, int minimum, int multiple)
{
    tile = std::max(tile, minimum);
    if (size <= tile)
    {
        return {
            Span{0, std::max((size / multiple + (size % multiple == 0 ? 0 : 1)) * multiple, minimum), 0, 0, size, 0}};
    }
    if (overlap < 0 || overlap > tile / 2)
    {
        throw Error("--overlap",
            std::to_string(overlap) + " pixels do not suit a tile side of " + std::to_string(tile) + ", expected 0 to "
                + std::to_string(tile / 2),
            "give a smaller overlap or a larger tile", Code::kUSAGE);
    }
    int const feather = featherLength(overlap);
    int const step = tile - overlap;
    int const count = (size - overlap + step - 1) / step;
    std::vector<Span> result(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i)
    {
        result[static_cast<std::size_t>(i)]
            = Span{static_cast<int>(static_cast<std::int64_t>(i) * (size - tile) / (count - 1)), tile, 0, 0, size, 0};
    }
    for (std::size_t i = 1; i < result.size(); ++i)
    {
        Span& left = result[i - 1];
        Span& right = result[i];
        right.riseStart = left.fallStart = (left.start + right.start + tile - feather) / 2;
        right.riseLength = left.fallLength = feather;
    }
    return result;
}

} // namespace

int featherLength(int overlap)
{
    return overlap - 2 * (3 * overlap / 8);
}

float risingWeight(std::size_t k, std::size_t length)
{
    return static_cast<float>(2 * k + 1) / static_cast<float>(2 * length);
}

float fallingWeight(std::size_t k, std::size_t length)
{
    return risingWeight(length - 1 - k, length);
}

TilePlan tilePlan(Size picture, Size tile, int overlap, Size minimum, int step)
{
    if (picture.height < 1 || picture.width < 1)
    {
        throw Error("tiles", "a picture without pixels cannot be cut", "", Code::kUSAGE);
    }
    if (tile.height < 1 || tile.width < 1)
    {
        throw Error("--tile", sizeText(tile) + " is not a size", "give HxW in pixels, such as 128x128", Code::kUSAGE);
    }
    return TilePlan{picture.height, picture.width, spans(picture.height, tile.height, overlap, minimum.height, step),
        spans(picture.width, tile.width, overlap, minimum.width, step)};
}

int reflectedIndex(int position, int size)
{
    if (size == 1)
    {
        return 0;
    }
    int const period = 2 * (size - 1);
    int const phase = position % period;
    return phase < size ? phase : period - phase;
}

} // namespace hspan
