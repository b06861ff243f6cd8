// Where a picture is cut into tiles, by the rules of docs/tiling.md: integers only, the same plan as the Python
// runtime.
#pragma once

#include "size.h"

#include <cstddef>
#include <vector>

namespace hspan
{

// One tile along one axis, in pixels of the picture that goes into the network.
struct Span
{
    int start;     // first pixel that the network sees; start + length may pass the end: reflected
    int length;    // pixels that the network sees
    int riseStart; // here the weight climbs from 0 to 1 over riseLength pixels; 0 before
    int riseLength;
    int fallStart; // here it falls back to 0 over fallLength pixels; 0 after
    int fallLength;

    int keptEnd() const
    {
        return fallStart + fallLength;
    }
};

// Every row span with every column span is a tile.
struct TilePlan
{
    int height;
    int width;
    std::vector<Span> rows;
    std::vector<Span> columns;
};

// Tiles of one size, evenly spread, none of which leaves the picture. `minimum` is what the network needs at least, and
// a side that is not cut grows to a multiple of `step`.
// Throws Error (kUSAGE) when a size is below 1, or the overlap negative or more than half of a side that is cut.
TilePlan tilePlan(Size picture, Size tile, int overlap, Size minimum, int step = 1);

// Pixels of the ramp between two tiles.
int featherLength(int overlap);

// Weight number k (from 0) of a ramp of `length` output pixels: (2k + 1) / 2 length, and the same backwards. Between
// two tiles the two sum to 1 within one rounding.
float risingWeight(std::size_t k, std::size_t length);
float fallingWeight(std::size_t k, std::size_t length);

// Which pixel of 0 ... size - 1 stands at `position` beyond the end, mirrored at the last pixel without repeating it.
int reflectedIndex(int position, int size);

} // namespace hspan
