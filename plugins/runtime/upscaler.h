// A picture of any size through an engine: tiles, blending, gray and alpha, and smaller tiles when memory runs out.
#pragma once

#include "engine.h"
#include "image.h"
#include "tile_size.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace hspan
{

class Upscaler
{
public:
    Upscaler(std::unique_ptr<Engine> engine, TileChoice const& choice);

    int scale() const
    {
        return mEngine->scale();
    }

    // Called after each tile (finished, in all), and with one line whenever memory ran out and the tiles became
    // smaller.
    std::function<void(int, int)> onTile;
    std::function<void(std::string const&)> onShrink;

    // A picture of the same kind, scale() times as large. A gray picture travels as three equal channels and comes back
    // as their luma; alpha travels as a gray picture, and under what it makes clear networks see the colors around
    // (alpha.h). Values are clamped and rounded half to even.
    // Throws Error: the picture does not fit the engine, the result has too many pixels, a value is NaN or infinite,
    // memory ran out with the smallest tiles too.
    Image upscale(Image const& image, std::string const& where);

    TilePlan plan(Size picture) const;

    // What upscale() will make of a picture; runs nothing.
    // Throws Error: the picture does not fit the engine, the result has too many pixels.
    PictureShape resultOf(Image const& image, std::string const& where) const;

private:
    Image attempt(Image const& image, TilePlan const& plan, std::string const& where);
    // One plane set (color or alpha) of one tile: 3 planes. `before` goes from the tile's alpha to its colors.
    void fillInput(Image const& tile, bool alpha);
    float const* runTile(Image tile, bool alpha, std::vector<float>& settled, std::vector<bool>& before);

    std::unique_ptr<Engine> mEngine;
    TileChoice mChoice;
    std::optional<Size> mLimit;
};

} // namespace hspan
