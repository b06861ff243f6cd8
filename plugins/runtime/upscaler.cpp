// Every operation on floats here is the Python runtime's, in the same order, so that both give the same bits:
// compile without contraction of multiplications and additions.

#include "upscaler.h"

#include "alpha.h"
#include "error.h"
#include "memory.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace hspan
{
namespace
{

constexpr std::size_t kPLANES = 3;

std::size_t z(int value)
{
    return static_cast<std::size_t>(value);
}

// Where the rise, the body and the fall begin and the fall ends, in output pixels of the tile.
struct Edges
{
    std::size_t rise;
    std::size_t body;
    std::size_t fall;
    std::size_t end;

    Edges(Span const& span, int scale)
        : rise(z((span.riseStart - span.start) * scale))
        , body(z((span.riseStart + span.riseLength - span.start) * scale))
        , fall(z((span.fallStart - span.start) * scale))
        , end(z((span.keptEnd() - span.start) * scale))
    {
    }
};

// Three planes of finished or waiting values.
struct Planes
{
    std::size_t rows = 0;
    std::size_t columns = 0;
    std::vector<float> values;

    void resize(std::size_t height, std::size_t width)
    {
        rows = height;
        columns = width;
        values.resize(kPLANES * height * width);
    }
    float* row(std::size_t plane, std::size_t y)
    {
        return &values[(plane * rows + y) * columns];
    }
};

// Writes one plane set into the picture: all of RGB, or one channel by luma.
class PixelWriter
{
public:
    PixelWriter(Image& image, std::string where)
        : mImage(image)
        , mWhere(std::move(where))
    {
    }

    void writeRow(int y, Planes& planes, std::size_t row, bool alpha)
    {
        int const colors = mImage.colors();
        auto const white = static_cast<float>(mImage.white());
        for (std::size_t x = 0; x < planes.columns; ++x)
        {
            float const red = planes.row(0, row)[x];
            float const green = planes.row(1, row)[x];
            float const blue = planes.row(2, row)[x];
            if (!std::isfinite(red) || !std::isfinite(green) || !std::isfinite(blue))
            {
                throw Error(mWhere, "the network's output holds NaN or infinite values",
                    "see where with trt-hspan audit; FP16 overflows at 65504, BF16 and FP32 do not");
            }
            if (alpha || colors == 1)
            {
                // ITU-R BT.601 luma; three equal channels stay what they are within one rounding.
                float const luma = 0.299F * red + 0.587F * green + 0.114F * blue;
                store(y, x, alpha ? mImage.channels - 1 : 0, luma, white);
            }
            else
            {
                store(y, x, 0, red, white);
                store(y, x, 1, green, white);
                store(y, x, 2, blue, white);
            }
        }
    }

private:
    void store(int y, std::size_t x, int channel, float value, float white)
    {
        float const level = std::nearbyintf(std::min(std::max(value * white, 0.0F), white));
        mImage.setSample(y, static_cast<int>(x), channel, static_cast<std::uint32_t>(level));
    }

    Image& mImage;
    std::string mWhere;
};

// The pixels of a tile, reflected where it leaves the picture.
Image tileOf(Image const& image, Span const& row, Span const& column)
{
    Image tile = imageWithSize("tile", row.length, column.length, image.channels, image.bits);
    for (int y = 0; y < row.length; ++y)
    {
        int const sourceRow = reflectedIndex(row.start + y, image.height);
        for (int x = 0; x < column.length; ++x)
        {
            int const sourceColumn = reflectedIndex(column.start + x, image.width);
            for (int channel = 0; channel < image.channels; ++channel)
            {
                tile.setSample(y, x, channel, image.sample(sourceRow, sourceColumn, channel));
            }
        }
    }
    return tile;
}

Size sides(Shape const& shape)
{
    return Size{static_cast<int>(shape[2]), static_cast<int>(shape[3])};
}

std::vector<SizeRange> sizeRanges(Engine const& engine)
{
    int const step = engine.sizeMultiple();
    std::vector<SizeRange> result;
    for (ShapeRange const& range : engine.ranges())
    {
        result.push_back({roundedUp(sides(range.least), step), roundedDown(sides(range.largest), step), step});
    }
    return result;
}

// How many pictures of a size one run takes at least.
std::int64_t leastBatch(Engine const& engine, Size size)
{
    std::int64_t least = 0;
    for (ShapeRange const& range : engine.ranges())
    {
        bool const fits = size.height >= range.least[2] && size.width >= range.least[3]
            && size.height <= range.largest[2] && size.width <= range.largest[3];
        if (fits && (least == 0 || range.least[0] < least))
        {
            least = range.least[0];
        }
    }
    return std::max<std::int64_t>(1, least);
}

} // namespace

Upscaler::Upscaler(std::unique_ptr<Engine> engine, TileChoice const& choice)
    : mEngine(std::move(engine))
    , mChoice(choice)
{
}

TilePlan Upscaler::plan(Size picture) const
{
    TileLimits limits{sizeRanges(*mEngine),
        [this](Size size) { return mEngine->memoryBytes({leastBatch(*mEngine, size), 3, size.height, size.width}); },
        availableMemoryBytes()};
    return planForPicture(picture, mChoice, limits, mLimit);
}

PictureShape Upscaler::resultOf(Image const& image, std::string const& where) const
{
    PictureShape const result{
        std::int64_t{image.height} * scale(), std::int64_t{image.width} * scale(), image.channels, image.bits};
    requireSize(where + ", upscaled", result.height, result.width);
    plan({image.height, image.width});
    return result;
}

Image Upscaler::upscale(Image const& image, std::string const& where)
{
    for (;;)
    {
        TilePlan const tiles = plan({image.height, image.width});
        try
        {
            return attempt(image, tiles, where);
        }
        catch (Error const& error)
        {
            if (error.code() != Code::kOUT_OF_MEMORY || mChoice.mode == TileMode::kNONE)
            {
                throw;
            }
            Size const tried{tiles.rows.front().length, tiles.columns.front().length};
            std::optional<Size> const smaller = smallerTile(tried, sizeRanges(*mEngine));
            if (!smaller)
            {
                throw Error(where, "out of memory even with tiles of " + sizeText(tried),
                    "end other programs that use it", Code::kOUT_OF_MEMORY);
            }
            mLimit = smaller;
            if (onShrink)
            {
                onShrink("out of memory with tiles of " + sizeText(tried) + ", going on with " + sizeText(*smaller));
            }
        }
    }
}

void Upscaler::fillInput(Image const& tile, bool alpha)
{
    std::int64_t const batch = leastBatch(*mEngine, {tile.height, tile.width});
    float* target = mEngine->input({batch, 3, tile.height, tile.width});
    std::size_t const plane = z(tile.height) * z(tile.width);
    int const first = alpha ? tile.channels - 1 : 0;
    int const step = !alpha && tile.colors() == 3 ? 1 : 0;
    auto const white = static_cast<float>(tile.white());
    float* out = target;
    for (int channel = 0; channel < 3; ++channel)
    {
        for (int y = 0; y < tile.height; ++y)
        {
            for (int x = 0; x < tile.width; ++x)
            {
                *out++ = static_cast<float>(tile.sample(y, x, first + channel * step)) / white;
            }
        }
    }
    for (std::int64_t item = 1; item < batch; ++item)
    { // an engine for larger batches gets the picture repeated
        std::memcpy(target + static_cast<std::size_t>(item) * kPLANES * plane, target, kPLANES * plane * sizeof(float));
    }
}

float const* Upscaler::runTile(Image tile, bool alpha, std::vector<float>& settled, std::vector<bool>& before)
{
    if (!tile.hasAlpha())
    {
        fillInput(tile, false);
        return mEngine->run();
    }
    TileAlpha const transparency(tile);
    fillInput(tile, alpha);
    std::size_t const inner = z(tile.height) * z(tile.width);
    std::size_t const size = kPLANES * inner * z(scale()) * z(scale());
    float const* input = mEngine->input({leastBatch(*mEngine, {tile.height, tile.width}), 3, tile.height, tile.width});
    float const first = input[0];
    if (alpha && std::all_of(input, input + inner, [first](float value) { return value == first; }))
    { // mostly opaque: where it is constant there is nothing to infer
        settled.assign(size, first);
    }
    else
    {
        float const* output = mEngine->run();
        settled.assign(output, output + size);
    }
    if (alpha)
    {
        before = transparency.settleAlpha(settled.data(), scale());
    }
    else
    {
        transparency.settleColors(settled.data(), scale(), before);
    }
    return settled.data();
}

Image Upscaler::attempt(Image const& image, TilePlan const& plan, std::string const& where)
{
    int const factor = scale();
    Image result = imageWithSize(where + ", upscaled", std::int64_t{image.height} * factor,
        std::int64_t{image.width} * factor, image.channels, image.bits);
    result.said = image.said;
    PixelWriter writer(result, where);
    int const passes = image.hasAlpha() ? 2 : 1;
    int const total = passes * static_cast<int>(plan.rows.size() * plan.columns.size());
    int finished = 0;
    std::vector<float> settled;
    // What alpha says of colors, tile by tile: its pass comes first.
    std::vector<std::vector<bool>> before(plan.rows.size() * plan.columns.size());
    for (int pass = 0; pass < passes; ++pass)
    {
        bool const alpha = pass == 0 && passes == 2;
        auto tileBefore = before.begin();
        Planes strip;   // of one row of tiles, blended along the row
        Planes carried; // the previous row's falling ramp, weighted
        std::vector<float> ramp;
        for (Span const& row : plan.rows)
        {
            Edges const vertical(row, factor);
            std::size_t const top = vertical.rise;
            strip.resize(vertical.end - top, z(result.width));
            for (Span const& column : plan.columns)
            {
                Edges const horizontal(column, factor);
                float const* output = runTile(tileOf(image, row, column), alpha, settled, *tileBefore++);
                std::size_t const width = z(column.length * factor);
                std::size_t const height = z(row.length * factor);
                std::size_t const left = z(column.riseStart * factor);
                std::size_t const fallLength = horizontal.end - horizontal.fall;
                std::size_t const riseLength = horizontal.body - horizontal.rise;
                std::vector<float> next(kPLANES * strip.rows * fallLength);
                for (std::size_t plane = 0; plane < kPLANES; ++plane)
                {
                    for (std::size_t y = 0; y < strip.rows; ++y)
                    {
                        float const* source = output + (plane * height + top + y) * width;
                        float* target = strip.row(plane, y) + left;
                        for (std::size_t k = 0; k < riseLength; ++k)
                        {
                            target[k] = ramp[(plane * strip.rows + y) * riseLength + k]
                                + source[horizontal.rise + k] * risingWeight(k, riseLength);
                        }
                        std::copy(source + horizontal.body, source + horizontal.fall, target + riseLength);
                        for (std::size_t k = 0; k < fallLength; ++k)
                        {
                            next[(plane * strip.rows + y) * fallLength + k]
                                = source[horizontal.fall + k] * fallingWeight(k, fallLength);
                        }
                    }
                }
                ramp = std::move(next);
                if (onTile)
                {
                    onTile(++finished, total);
                }
            }
            std::size_t const riseRows = vertical.body - vertical.rise;
            for (std::size_t plane = 0; plane < kPLANES; ++plane)
            {
                for (std::size_t y = 0; y < riseRows; ++y)
                {
                    float* target = strip.row(plane, y);
                    float const* before = carried.row(plane, y);
                    for (std::size_t x = 0; x < strip.columns; ++x)
                    {
                        target[x] = before[x] + target[x] * risingWeight(y, riseRows);
                    }
                }
            }
            std::size_t const finished = vertical.fall - vertical.rise;
            for (std::size_t y = 0; y < finished; ++y)
            {
                writer.writeRow(row.riseStart * factor + static_cast<int>(y), strip, y, alpha);
            }
            std::size_t const fallRows = vertical.end - vertical.fall;
            carried.resize(fallRows, strip.columns);
            for (std::size_t plane = 0; plane < kPLANES; ++plane)
            {
                for (std::size_t y = 0; y < fallRows; ++y)
                {
                    float const* source = strip.row(plane, finished + y);
                    float* target = carried.row(plane, y);
                    for (std::size_t x = 0; x < strip.columns; ++x)
                    {
                        target[x] = source[x] * fallingWeight(y, fallRows);
                    }
                }
            }
        }
    }
    return result;
}

} // namespace hspan
