#include "tile_size.h"

#include "error.h"

#include <algorithm>
#include <string>

namespace hspan
{
namespace
{

constexpr int kSIDE_STEP = 8;
constexpr int kSMALLEST_SIDE = 16;
constexpr int kDEFAULT_OVERLAP = 32;

int dividedUp(int value, int divisor)
{
    return (value + divisor - 1) / divisor;
}

std::string text(Size size)
{
    return std::to_string(size.height) + "x" + std::to_string(size.width);
}

void requireFits(Size size, TileLimits const& limits, std::string const& what)
{
    if (size.height < limits.least.height || size.width < limits.least.width || size.height > limits.largest.height
        || size.width > limits.largest.width)
    {
        throw Error(what,
            text(size) + " does not fit the engine, which takes " + text(limits.least) + " to " + text(limits.largest)
                + " (height x width)",
            "use --tile auto, or build the engine for other sizes");
    }
}

} // namespace

Size autoTile(Size picture, TileLimits const& limits)
{
    Size const low = limits.least;
    Size const high = limits.largest;
    std::int64_t const budget = limits.availableBytes / 2;
    auto const bounded = [&](int height, int width)
    {
        return Size{
            std::max(low.height, std::min(height, high.height)), std::max(low.width, std::min(width, high.width))};
    };
    auto const fits = [&](Size size)
    { return limits.availableBytes == 0 || !limits.memoryBytes || limits.memoryBytes(size) <= budget; };
    Size const whole{std::max(picture.height, low.height), std::max(picture.width, low.width)};
    if (whole.height <= high.height && whole.width <= high.width && fits(whole))
    {
        return whole;
    }
    for (int side = std::max(high.height, high.width);;)
    {
        std::int64_t const pixels = static_cast<std::int64_t>(side) * side;
        auto tall = static_cast<std::int64_t>(std::min(picture.height, side));
        auto const wide = std::min<std::int64_t>(picture.width, pixels / tall);
        tall = std::min<std::int64_t>(picture.height, pixels / wide);
        Size const size = bounded(static_cast<int>(tall), static_cast<int>(wide));
        if (fits(size) || side <= kSMALLEST_SIDE)
        {
            return size;
        }
        side = std::max(kSMALLEST_SIDE, (side - 1) / kSIDE_STEP * kSIDE_STEP);
    }
}

int trimmedTile(int size, int tile, int overlap, int least)
{
    if (size <= tile || overlap > tile / 2)
    {
        return tile;
    }
    int const count = dividedUp(size - overlap, tile - overlap);
    int const needed = dividedUp(size + (count - 1) * overlap, count);
    int const rounded = dividedUp(needed, kSIDE_STEP) * kSIDE_STEP;
    return std::min(tile, std::max({rounded, least, 2 * overlap}));
}

int chosenOverlap(std::optional<int> overlap, Size tile, Size picture)
{
    if (overlap)
    {
        if (*overlap < 0)
        {
            throw Error(
                "--overlap", std::to_string(*overlap) + " pixels make no sense", "give 0 or more", Code::kUSAGE);
        }
        return *overlap;
    }
    int shortest = 0;
    for (auto const& [side, size] : {std::pair{tile.height, picture.height}, std::pair{tile.width, picture.width}})
    {
        if (side < size)
        {
            shortest = shortest == 0 ? side : std::min(shortest, side);
        }
    }
    return std::min(kDEFAULT_OVERLAP, shortest / 4);
}

TilePlan planForPicture(Size picture, TileChoice const& choice, TileLimits const& limits, std::optional<Size> limit)
{
    Size const low = limits.least;
    if (choice.mode == TileMode::kNONE)
    {
        Size const whole{std::max(picture.height, low.height), std::max(picture.width, low.width)};
        requireFits(whole, limits, "picture");
        return tilePlan(picture, whole, 0, low);
    }
    Size side = choice.mode == TileMode::kAUTO ? autoTile(picture, limits) : choice.size;
    if (choice.mode == TileMode::kSIZE)
    {
        requireFits(side, limits, "--tile");
    }
    if (limit)
    {
        side.height = std::max(low.height, std::min(side.height, limit->height));
        side.width = std::max(low.width, std::min(side.width, limit->width));
    }
    int const overlap = chosenOverlap(choice.overlap, side, picture);
    if (choice.mode == TileMode::kAUTO)
    {
        side.height = trimmedTile(picture.height, side.height, overlap, low.height);
        side.width = trimmedTile(picture.width, side.width, overlap, low.width);
    }
    return tilePlan(picture, side, overlap, low);
}

std::optional<Size> smallerTile(Size tile, Size least)
{
    auto const halved = [](int side, int floor)
    { return std::min(side, std::max({kSMALLEST_SIDE, floor, dividedUp(side, 2 * kSIDE_STEP) * kSIDE_STEP})); };
    Size const shorter{halved(tile.height, least.height), tile.width};
    Size const narrower{tile.height, halved(tile.width, least.width)};
    bool const heightChanges = shorter.height != tile.height;
    bool const widthChanges = narrower.width != tile.width;
    if (tile.width > tile.height)
    {
        return widthChanges ? std::optional(narrower) : heightChanges ? std::optional(shorter) : std::nullopt;
    }
    return heightChanges ? std::optional(shorter) : widthChanges ? std::optional(narrower) : std::nullopt;
}

} // namespace hspan
