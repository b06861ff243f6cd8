// Every operation on floats here is the Python runtime's, in the same order, so that both give the same bits:
// compile without contraction of multiplications and additions.

#include "upscaler.h"

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
        float const white = mImage.bits == 8 ? 255.0F : 65535.0F;
        for (std::size_t x = 0; x < planes.columns; ++x)
        {
            float const red = planes.row(0, row)[x];
            float const green = planes.row(1, row)[x];
            float const blue = planes.row(2, row)[x];
            if (!std::isfinite(red) || !std::isfinite(green) || !std::isfinite(blue))
            {
                throw Error(mWhere, "the network's output holds NaN or infinite values",
                    "build the engine with --precision fp32 or bf16: FP16 overflows at 65504");
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
        std::size_t const sample = x * z(mImage.channels) + z(channel);
        std::uint8_t* row = &mImage.samples[z(y) * mImage.rowBytes()];
        if (mImage.bits == 8)
        {
            row[sample] = static_cast<std::uint8_t>(level);
        }
        else
        {
            auto const wide = static_cast<std::uint16_t>(level);
            std::memcpy(row + 2 * sample, &wide, sizeof(wide));
        }
    }

    Image& mImage;
    std::string mWhere;
};

float sampleValue(Image const& image, int y, int x, int channel)
{
    std::size_t const sample = z(x) * z(image.channels) + z(channel);
    std::uint8_t const* row = &image.samples[z(y) * image.rowBytes()];
    if (image.bits == 8)
    {
        return static_cast<float>(row[sample]) / 255.0F;
    }
    std::uint16_t wide = 0;
    std::memcpy(&wide, row + 2 * sample, sizeof(wide));
    return static_cast<float>(wide) / 65535.0F;
}

Size sides(Shape const& shape)
{
    return Size{static_cast<int>(shape[2]), static_cast<int>(shape[3])};
}

std::vector<SizeRange> sizeRanges(Engine const& engine)
{
    std::vector<SizeRange> result;
    for (ShapeRange const& range : engine.ranges())
    {
        result.push_back({sides(range.least), sides(range.largest)});
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

void Upscaler::fillInput(Image const& image, Span const& row, Span const& column, bool alpha)
{
    std::int64_t const batch = leastBatch(*mEngine, {row.length, column.length});
    float* target = mEngine->input({batch, 3, row.length, column.length});
    std::size_t const plane = z(row.length) * z(column.length);
    int const first = alpha ? image.channels - 1 : 0;
    int const step = !alpha && image.colors() == 3 ? 1 : 0;
    std::vector<int> sources(z(column.length));
    for (int x = 0; x < column.length; ++x)
    {
        sources[z(x)] = reflectedIndex(column.start + x, image.width);
    }
    for (int channel = 0; channel < 3; ++channel)
    {
        for (int y = 0; y < row.length; ++y)
        {
            int const sourceRow = reflectedIndex(row.start + y, image.height);
            float* out = target + z(channel) * plane + z(y) * z(column.length);
            for (std::size_t x = 0; x < sources.size(); ++x)
            {
                out[x] = sampleValue(image, sourceRow, sources[x], first + channel * step);
            }
        }
    }
    for (std::int64_t item = 1; item < batch; ++item)
    { // an engine for larger batches gets the picture repeated
        std::memcpy(target + static_cast<std::size_t>(item) * kPLANES * plane, target, kPLANES * plane * sizeof(float));
    }
}

float const* Upscaler::runTile(
    Image const& image, Span const& row, Span const& column, bool alpha, std::vector<float>& constant)
{
    fillInput(image, row, column, alpha);
    if (alpha)
    { // mostly opaque: where it is constant there is nothing to infer
        std::size_t const inner = z(row.length) * z(column.length);
        float const* input
            = mEngine->input({leastBatch(*mEngine, {row.length, column.length}), 3, row.length, column.length});
        float const first = input[0];
        if (std::all_of(input, input + inner, [first](float value) { return value == first; }))
        {
            constant.assign(kPLANES * inner * z(scale()) * z(scale()), first);
            return constant.data();
        }
    }
    return mEngine->run();
}

Image Upscaler::attempt(Image const& image, TilePlan const& plan, std::string const& where)
{
    int const factor = scale();
    Image result = imageWithSize(where + ", upscaled", std::int64_t{image.height} * factor,
        std::int64_t{image.width} * factor, image.channels, image.bits);
    PixelWriter writer(result, where);
    int const passes = image.hasAlpha() ? 2 : 1;
    int const total = passes * static_cast<int>(plan.rows.size() * plan.columns.size());
    int finished = 0;
    std::vector<float> constant;
    for (int pass = 0; pass < passes; ++pass)
    {
        bool const alpha = pass == 1;
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
                float const* output = runTile(image, row, column, alpha, constant);
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
