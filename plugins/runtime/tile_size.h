// How large a tile may be: what the network takes and what memory holds, by the rules of docs/tiling.md.
#pragma once

#include "engine.h"
#include "tile_plan.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace hspan
{

enum class TileMode
{
    kAUTO,
    kNONE,
    kSIZE
};

struct TileChoice
{
    TileMode mode = TileMode::kAUTO;
    Size size{0, 0};            // for kSIZE
    std::optional<int> overlap; // empty: 32 pixels, or a quarter of the tile's shorter side if that is less
};

// Inputs that one run takes: the smallest and the largest; sides are multiples of `step`, those of both too.
struct SizeRange
{
    Size least;
    Size largest;
    int step = 1;
};

// Both sides raised or lowered to a multiple, lowered to the first one at least.
Size roundedUp(Size size, int step);
Size roundedDown(Size size, int step);

// What decides: the engine's profiles, its memory for one input, and the memory that is free (0 where unknown).
struct TileLimits
{
    std::vector<SizeRange> ranges; // at least one
    std::function<std::int64_t(Size)> memoryBytes;
    std::int64_t availableBytes = 0;
};

// The tiles in which a network takes a picture. `limit` is what an earlier lack of memory has taught not to exceed.
// Throws Error: the size given, or with kNONE the picture, does not fit the network; or the overlap the tile.
TilePlan planForPicture(
    Size picture, TileChoice const& choice, TileLimits const& limits, std::optional<Size> limit = {});

int trimmedTile(int size, int tile, int overlap, int least, int step = 1);
int chosenOverlap(std::optional<int> overlap, Size tile, Size picture);

// What to try after a tile did not fit in memory: the longer side halved; nothing when there is nothing smaller.
std::optional<Size> smallerTile(Size tile, std::vector<SizeRange> const& ranges);

} // namespace hspan
