// Transparency of one tile: what networks see under it, and what it settles whatever a network says; by the rules of
// trt_hspan/upscaling/alpha.py, integers only, the same bits.
#pragma once

#include "pixels.h"

#include <array>
#include <cstdint>
#include <vector>

namespace hspan
{

class TileAlpha
{
public:
    // A tile of 2 or 4 channels. Where it is fully clear and of the color that most such pixels have, it gets the
    // colors around.
    explicit TileAlpha(Image& tile);

    // What a network gave for the tile's alpha, 3 planes of scale times its sides. Returns where colors are to be as
    // before, one for each pixel; none where no color was replaced.
    std::vector<bool> settleAlpha(float* planes, int scale) const;
    // What it gave for the tile's colors.
    void settleColors(float* planes, int scale, std::vector<bool> const& before) const;

private:
    // Where a channel of alpha is `level` at a pixel and its neighbors.
    std::vector<bool> around(Image const& tile, std::uint32_t level) const;
    void set(float* planes, int scale, std::vector<bool> const& where, float value) const;

    int mHeight;
    int mWidth;
    float mWhite;
    std::vector<bool> mClear;
    std::vector<bool> mSolid;
    std::vector<bool> mUnused; // clear, and of the color that most of what is clear has; empty if there is none
    std::array<float, 3> mColor{};
};

} // namespace hspan
