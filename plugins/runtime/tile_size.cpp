#include "tile_size.h"

#include "error.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace hspan
{
namespace
{

constexpr int kSIDE_STEP = 8;
constexpr int kSMALLEST_SIDE = 16;
constexpr int kDEFAULT_OVERLAP = 32;

int dividedUp(int value, int divisor)
{
    return value / divisor + (value % divisor == 0 ? 0 : 1); // a sum could overflow
}

// The nearest size that is taken, of two the larger one.
Size bounded(SizeRange const& range, Size wanted)
{
    Size const size = roundedUp(wanted, range.step);
    return Size{std::max(range.least.height, std::min(size.height, range.largest.height)),
        std::max(range.least.width, std::min(size.width, range.largest.width))};
}

Size padded(SizeRange const& range, Size picture)
{
    Size const size = roundedUp(picture, range.step);
    return Size{std::max(size.height, range.least.height), std::max(size.width, range.least.width)};
}

bool same(Size a, Size b)
{
    return a.height == b.height && a.width == b.width;
}

std::int64_t area(Size size)
{
    return std::int64_t{size.height} * size.width;
}

bool startsBy(SizeRange const& range, Size size)
{
    return range.least.height <= size.height && range.least.width <= size.width;
}

SizeRange const& largestRange(std::vector<SizeRange> const& ranges)
{
    return *std::max_element(ranges.begin(), ranges.end(),
        [](SizeRange const& a, SizeRange const& b) { return area(a.largest) < area(b.largest); });
}

// The range that takes a picture with the least padding, the smallest if several do; null if none takes it.
SizeRange const* rangeOfWhole(std::vector<SizeRange> const& ranges, Size picture)
{
    SizeRange const* best = nullptr;
    auto const cost
        = [&](SizeRange const& range) { return std::pair{area(padded(range, picture)), area(range.largest)}; };
    for (SizeRange const& range : ranges)
    {
        if (same(bounded(range, picture), padded(range, picture)) && (best == nullptr || cost(range) < cost(*best)))
        {
            best = &range;
        }
    }
    return best;
}

// The ranges that take something within a limit; if none does, the one that starts lowest.
std::vector<SizeRange> rangesBelow(std::vector<SizeRange> const& ranges, Size limit)
{
    std::vector<SizeRange> fitting;
    std::copy_if(ranges.begin(), ranges.end(), std::back_inserter(fitting),
        [&](SizeRange const& range) { return startsBy(range, limit); });
    if (fitting.empty())
    {
        fitting.push_back(*std::min_element(ranges.begin(), ranges.end(),
            [](SizeRange const& a, SizeRange const& b) { return area(a.least) < area(b.least); }));
    }
    return fitting;
}

void requireFits(Size size, std::vector<SizeRange> const& ranges, std::string const& what)
{
    std::string limits;
    for (SizeRange const& range : ranges)
    {
        if (same(bounded(range, size), size))
        {
            return;
        }
        limits += (limits.empty() ? "" : " or ") + sizeText(range.least) + " to " + sizeText(range.largest);
    }
    throw Error(what, sizeText(size) + " does not fit the engine, which takes " + limits + " (height x width)",
        "use --tile auto, or build the engine for other sizes");
}

struct Tile
{
    Size size;
    SizeRange range; // takes it
};

// The largest tile that profiles and memory allow; the whole picture if they do.
Tile autoTile(Size picture, TileLimits const& limits, std::vector<SizeRange> const& ranges)
{
    std::int64_t const budget = limits.availableBytes / 2;
    auto const fits = [&](Size size)
    { return limits.availableBytes == 0 || !limits.memoryBytes || limits.memoryBytes(size) <= budget; };
    if (SizeRange const* range = rangeOfWhole(ranges, picture); range != nullptr && fits(padded(*range, picture)))
    {
        return {padded(*range, picture), *range};
    }
    SizeRange const& range = largestRange(ranges);
    for (int side = std::max(range.largest.height, range.largest.width);;)
    {
        std::int64_t const pixels = static_cast<std::int64_t>(side) * side;
        auto height = static_cast<std::int64_t>(std::min(picture.height, side));
        auto const width = std::min<std::int64_t>(picture.width, pixels / height);
        height = std::min<std::int64_t>(picture.height, pixels / width);
        Size const size = bounded(range, {static_cast<int>(height), static_cast<int>(width)});
        if (fits(size) || side <= kSMALLEST_SIDE)
        {
            return {size, range};
        }
        side = std::max(kSMALLEST_SIDE, (side - 1) / kSIDE_STEP * kSIDE_STEP);
    }
}

// A requested tile, and the smallest range that takes it.
Tile givenTile(Size size, std::vector<SizeRange> const& ranges)
{
    SizeRange const* best = nullptr;
    for (SizeRange const& range : ranges)
    {
        if (same(bounded(range, size), size) && (best == nullptr || area(range.largest) < area(best->largest)))
        {
            best = &range;
        }
    }
    SizeRange const& range = best == nullptr ? largestRange(ranges) : *best;
    return {bounded(range, size), range};
}

Size smaller(Size size, Size limit)
{
    return Size{std::min(size.height, limit.height), std::min(size.width, limit.width)};
}

} // namespace

Size roundedUp(Size size, int step)
{
    return Size{dividedUp(size.height, step) * step, dividedUp(size.width, step) * step};
}

Size roundedDown(Size size, int step)
{
    return Size{std::max(1, size.height / step) * step, std::max(1, size.width / step) * step};
}

int trimmedTile(int size, int tile, int overlap, int least, int step)
{
    if (size <= tile || overlap > tile / 2)
    {
        return tile;
    }
    int const count = dividedUp(size - overlap, tile - overlap);
    int const needed = dividedUp(size + (count - 1) * overlap, count);
    int const rounded = std::max({dividedUp(needed, kSIDE_STEP) * kSIDE_STEP, least, 2 * overlap});
    return std::min(tile, dividedUp(rounded, step) * step);
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
    if (choice.mode == TileMode::kNONE)
    {
        SizeRange const* fitting = rangeOfWhole(limits.ranges, picture);
        SizeRange const& range = fitting == nullptr ? largestRange(limits.ranges) : *fitting;
        Size const whole = padded(range, picture);
        requireFits(whole, limits.ranges, "picture");
        return tilePlan(picture, whole, 0, range.least);
    }
    if (choice.mode == TileMode::kSIZE)
    {
        requireFits(choice.size, limits.ranges, "--tile");
    }
    std::vector<SizeRange> const ranges = limit ? rangesBelow(limits.ranges, *limit) : limits.ranges;
    Tile tile = choice.mode == TileMode::kAUTO
        ? autoTile(picture, limits, ranges)
        : givenTile(limit ? roundedDown(smaller(choice.size, *limit), ranges.front().step) : choice.size, ranges);
    if (limit)
    {
        tile.size = bounded(tile.range, roundedDown(smaller(tile.size, *limit), tile.range.step));
    }
    int const overlap = chosenOverlap(choice.overlap, tile.size, picture);
    if (choice.mode == TileMode::kAUTO)
    {
        tile.size.height
            = trimmedTile(picture.height, tile.size.height, overlap, tile.range.least.height, tile.range.step);
        tile.size.width = trimmedTile(picture.width, tile.size.width, overlap, tile.range.least.width, tile.range.step);
    }
    return tilePlan(picture, tile.size, overlap, tile.range.least, tile.range.step);
}

std::optional<Size> smallerTile(Size tile, std::vector<SizeRange> const& ranges)
{
    Size least = ranges.front().least;
    for (SizeRange const& range : ranges)
    {
        least = smaller(least, range.least);
    }
    int const step = ranges.front().step;
    auto const halved = [step](int side, int floor)
    {
        int const half = std::max({kSMALLEST_SIDE, floor, dividedUp(side, 2 * kSIDE_STEP) * kSIDE_STEP});
        return std::min(side, dividedUp(half, step) * step);
    };
    Size shorter[]{{halved(tile.height, least.height), tile.width}, {tile.height, halved(tile.width, least.width)}};
    if (tile.width > tile.height)
    {
        std::swap(shorter[0], shorter[1]);
    }
    for (Size const size : shorter)
    {
        bool const taken
            = std::any_of(ranges.begin(), ranges.end(), [&](SizeRange const& range) { return startsBy(range, size); });
        if (!same(size, tile) && taken)
        {
            return size;
        }
    }
    return std::nullopt;
}

} // namespace hspan
