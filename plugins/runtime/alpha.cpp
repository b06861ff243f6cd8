#include "alpha.h"

#include <algorithm>
#include <cstddef>

namespace hspan
{
namespace
{

std::size_t z(int value)
{
    return static_cast<std::size_t>(value);
}

// Sums of colors times alpha, and of alpha, in blocks of 2x2, 4x4 ... pixels.
struct Level
{
    int height;
    int width;
    std::vector<std::array<std::uint64_t, 4>> sums; // alpha last

    Level(int rows, int columns)
        : height(rows)
        , width(columns)
        , sums(z(rows) * z(columns))
    {
    }
    std::array<std::uint64_t, 4>& at(int y, int x)
    {
        return sums[z(y) * z(width) + z(x)];
    }
};

Level halved(Level& finer)
{
    Level result((finer.height + 1) / 2, (finer.width + 1) / 2);
    for (int y = 0; y < finer.height; ++y)
    {
        for (int x = 0; x < finer.width; ++x)
        {
            for (std::size_t k = 0; k < 4; ++k)
            {
                result.at(y / 2, x / 2)[k] += finer.at(y, x)[k];
            }
        }
    }
    return result;
}

std::uint64_t packedColor(Image const& tile, int y, int x)
{
    std::uint64_t packed = 0;
    for (int channel = 0; channel < tile.colors(); ++channel)
    {
        packed = packed << 16 | tile.sample(y, x, channel);
    }
    return packed;
}

// Puts the mean of the smallest block that is not clear into each pixel of `where`.
void fill(Image& tile, std::vector<bool> const& where)
{
    int const colors = tile.colors();
    Level whole(tile.height, tile.width);
    for (int y = 0; y < tile.height; ++y)
    {
        for (int x = 0; x < tile.width; ++x)
        {
            std::uint64_t const alpha = tile.sample(y, x, colors);
            for (int channel = 0; channel < colors; ++channel)
            {
                whole.at(y, x)[z(channel)] = alpha * tile.sample(y, x, channel);
            }
            whole.at(y, x)[3] = alpha;
        }
    }
    std::vector<Level> levels{halved(whole)};
    while (levels.back().height > 1 || levels.back().width > 1)
    {
        levels.push_back(halved(levels.back()));
    }
    for (int y = 0; y < tile.height; ++y)
    {
        for (int x = 0; x < tile.width; ++x)
        {
            if (!where[z(y) * z(tile.width) + z(x)])
            {
                continue;
            }
            int row = y / 2;
            int column = x / 2;
            auto level = levels.begin();
            for (; level->at(row, column)[3] == 0; row /= 2, column /= 2)
            {
                ++level;
            }
            auto const& sums = level->at(row, column);
            for (int channel = 0; channel < colors; ++channel)
            {
                std::uint64_t const mean = (2 * sums[z(channel)] + sums[3]) / (2 * sums[3]);
                tile.setSample(y, x, channel, static_cast<std::uint32_t>(mean));
            }
        }
    }
}

} // namespace

TileAlpha::TileAlpha(Image& tile)
    : mHeight(tile.height)
    , mWidth(tile.width)
    , mWhite(static_cast<float>(tile.white()))
    , mClear(around(tile, 0))
    , mSolid(around(tile, tile.white()))
{
    int const alpha = tile.channels - 1;
    std::vector<std::uint64_t> hidden;
    for (int y = 0; y < mHeight; ++y)
    {
        for (int x = 0; x < mWidth; ++x)
        {
            if (tile.sample(y, x, alpha) == 0)
            {
                hidden.push_back(packedColor(tile, y, x));
            }
        }
    }
    if (hidden.empty())
    {
        return;
    }
    auto const middle = hidden.begin() + static_cast<std::ptrdiff_t>(hidden.size() / 2);
    std::nth_element(hidden.begin(), middle, hidden.end()); // where a majority is, if there is one
    std::uint64_t const color = *middle;
    auto const count = static_cast<std::size_t>(std::count(hidden.begin(), hidden.end(), color));
    if (2 * count <= hidden.size())
    {
        return;
    }
    for (int channel = 0; channel < 3; ++channel)
    {
        int const shift = tile.colors() == 1 ? 0 : 16 * (2 - channel);
        mColor[z(channel)] = static_cast<float>(color >> shift & 0xFFFF) / mWhite;
    }
    mUnused.resize(mClear.size());
    for (int y = 0; y < mHeight; ++y)
    {
        for (int x = 0; x < mWidth; ++x)
        {
            mUnused[z(y) * z(mWidth) + z(x)] = tile.sample(y, x, alpha) == 0 && packedColor(tile, y, x) == color;
        }
    }
    if (hidden.size() < mClear.size())
    {
        fill(tile, mUnused);
    }
}

std::vector<bool> TileAlpha::settleAlpha(float* planes, int scale) const
{
    set(planes, scale, mClear, 0.0F);
    set(planes, scale, mSolid, 1.0F);
    std::vector<bool> before;
    if (mUnused.empty())
    {
        return before;
    }
    std::size_t const width = z(mWidth) * z(scale);
    std::size_t const inner = z(mHeight) * z(scale) * width;
    before.resize(inner);
    for (std::size_t at = 0; at < inner; ++at)
    {
        float const luma = 0.299F * planes[at] + 0.587F * planes[inner + at] + 0.114F * planes[2 * inner + at];
        before[at] = luma * mWhite <= 0.5F && mUnused[at / width / z(scale) * z(mWidth) + at % width / z(scale)];
    }
    return before;
}

void TileAlpha::settleColors(float* planes, int scale, std::vector<bool> const& before) const
{
    std::size_t const inner = z(mHeight) * z(scale) * z(mWidth) * z(scale);
    for (std::size_t at = 0; at < before.size(); ++at)
    {
        for (std::size_t plane = 0; before[at] && plane < 3; ++plane)
        {
            planes[plane * inner + at] = mColor[plane];
        }
    }
}

std::vector<bool> TileAlpha::around(Image const& tile, std::uint32_t level) const
{
    std::vector<bool> result(z(mHeight) * z(mWidth), true);
    for (int y = 0; y < mHeight; ++y)
    {
        for (int x = 0; x < mWidth; ++x)
        {
            if (tile.sample(y, x, tile.channels - 1) == level)
            {
                continue;
            }
            for (int row = std::max(0, y - 1); row <= std::min(mHeight - 1, y + 1); ++row)
            {
                for (int column = std::max(0, x - 1); column <= std::min(mWidth - 1, x + 1); ++column)
                {
                    result[z(row) * z(mWidth) + z(column)] = false;
                }
            }
        }
    }
    return result;
}

void TileAlpha::set(float* planes, int scale, std::vector<bool> const& where, float value) const
{
    std::size_t const width = z(mWidth) * z(scale);
    std::size_t const height = z(mHeight) * z(scale);
    for (std::size_t row = 0; row < 3 * height; ++row)
    {
        for (std::size_t x = 0; x < width; ++x)
        {
            if (where[row % height / z(scale) * z(mWidth) + x / z(scale)])
            {
                planes[row * width + x] = value;
            }
        }
    }
}

} // namespace hspan
