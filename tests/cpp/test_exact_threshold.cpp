//! \file test_exact_threshold.cpp
//! Thresholds in integers: the parts by themselves, and the tiled kernels one tile at a time where rows are long.
#include <cmath>
#include <random>
#include <vector>

#include <simt.h>

#include "check.h"
#include "guarded_buffer.h"
#include "reference.h"
#include "tiled_attention.cuh"

using namespace hspan;
using namespace hspan::test;

namespace
{

using Tile = TensorTile<simt::Half, 2, 64>;
constexpr int32_t kROWS{Tile::kWARPS * kROWS_OF_WARP};

//! One tile of rows of a long image with one channel, query 1 in every row: the scores are the keys.
struct LongImage
{
    explicit LongImage(std::vector<float> const& scores, int32_t capacity, float value)
        : positions{static_cast<int64_t>(scores.size())}
        , rows(static_cast<size_t>(positions) * 8, simt::Half{0})
        , ones(rows)
        , values(static_cast<size_t>(positions) * 8, simt::fromFloat<simt::Half>(value))
        , output(static_cast<size_t>(positions) * 8, simt::Half{0x7e00})
        , results(kDENSE_ROWS)
        , listScores(static_cast<size_t>(kDENSE_ROWS) * static_cast<size_t>(capacity))
        , listKeys(listScores.size())
    {
        for (size_t j = 0; j < scores.size(); ++j)
        {
            rows[8 * j] = simt::fromFloat<simt::Half>(scores[j]);
            ones[8 * j] = simt::fromFloat<simt::Half>(1.0F);
        }
        arguments.query = ones.data();
        arguments.key = rows.data();
        arguments.value = values.data();
        arguments.output = output.data();
        arguments.scorePitch = 8;
        arguments.valuePitch = 8;
        arguments.outputChannel = 1;
        arguments.outputPosition = 8;
        arguments.scoreChannels = 1;
        arguments.valueChannels = 1;
        arguments.positions = static_cast<int32_t>(positions);
        arguments.capacity = capacity;
        arguments.slotsPerImage = positions;
        arguments.slots = positions;
        arguments.results = results.data();
        arguments.listScores = listScores.data();
        arguments.listKeys = listKeys.data();
        launch(&selectKernel<simt::Half, Tile>, Tile::kWARPS);
    }

    void launch(void (*kernel)(TiledArguments<simt::Half>), int32_t warps)
    {
        cudaError_t const status = simt::launch(kernel, simt::Grid{}, warps * simt::kWARP_SIZE, nullptr, arguments);
        check(status == cudaSuccess, simt::emulation::lastError());
    }

    int64_t positions;
    std::vector<simt::Half> rows;
    std::vector<simt::Half> ones;
    std::vector<simt::Half> values;
    std::vector<simt::Half> output;
    std::vector<RowResult> results;
    std::vector<float> listScores;
    std::vector<int32_t> listKeys;
    TiledArguments<simt::Half> arguments{};
};

bool isSame(RowResult const& a, RowResult const& b)
{
    return a.anchor == b.anchor && a.limit == b.limit && a.high == b.high && a.low == b.low && a.largest == b.largest;
}

//! Lists of ample and of too small a capacity, and what they find in common.
RowResult thresholdByBothRoutes(std::vector<float> const& scores)
{
    LongImage const byList{scores, static_cast<int32_t>(scores.size()) + 64, 1.0F};
    LongImage const byStream{scores, 16, 1.0F};
    check(byList.results[0].count > 16 && byStream.results[0].count == kDENSE, "both went the same way");
    check(isSame(byList.results[0], byStream.results[0]), "the thresholds differ: ", byList.results[0].high, " + ",
        byList.results[0].low, " and ", byStream.results[0].high, " + ", byStream.results[0].low);
    return byStream.results[0];
}

std::vector<float> uniform(size_t count, float low, float high, uint32_t seed)
{
    std::mt19937 generator{seed};
    std::uniform_real_distribution<float> distribution{low, high};
    std::vector<float> values(count);
    for (float& value : values)
    {
        value = simt::toFloat(simt::fromFloat<simt::Half>(distribution(generator)));
    }
    return values;
}

double sumOfWeights(RowResult const& row, std::vector<float> const& scores)
{
    double sum = 0.0;
    for (float const score : scores)
    {
        sum += static_cast<double>(weightOf(row, score));
    }
    return sum;
}

} // namespace

int main()
{
    addTest("a float exceeds the limit of a threshold exactly if it rounds to more quanta",
        []
        {
            std::mt19937_64 generator{1};
            for (int32_t i = 0; i < 300000; ++i)
            {
                int32_t const bits = i % 46;
                auto threshold = static_cast<int64_t>(generator() & ((uint64_t{1} << static_cast<uint32_t>(bits)) - 1));
                threshold = i % 3 == 0 ? -threshold : threshold;
                if (std::llabs(threshold) > 3 * kONE)
                {
                    continue;
                }
                float const limit = limitOf(threshold);
                auto const isAbove = [threshold](float z)
                { return std::nearbyint(std::ldexp(static_cast<double>(z), 41)) > static_cast<double>(threshold); };
                check(!isAbove(limit), "threshold ", threshold, ": the limit itself is above");
                check(isAbove(std::nextafter(limit, INFINITY)), "threshold ", threshold, ": the next float is not");
            }
        });
    addTest("sums of quanta by parts are those of the conversion to integers",
        []
        {
            std::mt19937 generator{2};
            std::uniform_real_distribution<float> exponent{-45.0F, 1.5F};
            for (int32_t i = 0; i < 20000; ++i)
            {
                TileSum sum = {0, 0, 0, INFINITY};
                int64_t expected = 0;
                float least = INFINITY;
                for (int32_t j = 0; j < 16; ++j)
                {
                    float const z = (j % 2 == 0 ? 1.0F : -1.0F) * std::exp2(exponent(generator));
                    addScore(sum, z, -1.0F);
                    expected += z > -1.0F ? quantaOf(z) : 0;
                    least = z > -1.0F ? std::fmin(least, z) : least;
                }
                check(quantaOf(sum) == expected && sum.least == least, "got ", quantaOf(sum), ", expected ", expected);
            }
        });
    addTest("quotients are rounded down",
        []
        {
            check(floorQuotient(7, 2) == 3 && floorQuotient(-7, 2) == -4 && floorQuotient(-8, 2) == -4, "they are not");
        });
    addTest("list and stream find the same bits, and weights that sum to 1",
        []
        {
            uint32_t seed = 3;
            for (size_t const count : {17U, 64U, 65U, 300U})
            {
                for (float const offset : {0.0F, 1.5F, -1.75F, 3.0F, 700.0F, -700.0F})
                {
                    std::vector<float> const scores = uniform(count, offset - 0.02F, offset + 0.02F, ++seed);
                    double const error = std::fabs(sumOfWeights(thresholdByBothRoutes(scores), scores) - 1.0);
                    // u/8 from the quanta at this length, 2u from each weight.
                    check(error <= 2.2 * kUNIT, "offset ", offset, ", ", count, " scores: ", error / kUNIT, " u");
                }
            }
        });
    addTest("the order of the scores does not change a bit of the threshold",
        []
        {
            std::vector<float> scores = uniform(500, -0.3F, 0.3F, 77);
            RowResult const first = thresholdByBothRoutes(scores);
            std::mt19937 generator{5};
            std::shuffle(scores.begin(), scores.end(), generator);
            check(isSame(first, thresholdByBothRoutes(scores)), "it does");
        });
    addTest("a row whose maximum comes late in the stream starts again from it",
        []
        {
            std::vector<float> scores = uniform(200, -0.1F, 0.1F, 6);
            for (size_t j = 130; j < 160; ++j)
            {
                scores[j] += 30.0F; // another anchor than what the list has seen when it overflows
            }
            thresholdByBothRoutes(scores);
        });
    addTest("entries of a finished list are the support in ascending key order",
        []
        {
            std::vector<float> scores = uniform(300, -1.0F, 1.0F, 8);
            LongImage const image{scores, 300, 1.0F};
            double const threshold = thresholdReference({scores.begin(), scores.end()});
            int32_t entry = 0;
            for (size_t j = 0; j < scores.size(); ++j)
            {
                if (scores[j] > threshold)
                {
                    auto const at = static_cast<size_t>(entry);
                    check(
                        image.listKeys[at] == static_cast<int32_t>(j) && image.listScores[at] == scores[j], "key ", j);
                    entry += 1;
                }
            }
            check(entry == image.results[0].count, "expected ", entry, " entries");
        });
    addTest("a quarter of a million equal scores get the weight 2^-18 each, and their mean is exact to FP16",
        []
        {
            std::vector<float> const scores(size_t{1} << 18U, 1.7F);
            LongImage image{scores, 1024, 0.7F};
            check(image.results[0].count == kDENSE, "it fits a list");
            float const weight = weightOf(image.results[0], simt::toFloat(simt::fromFloat<simt::Half>(1.7F)));
            check(std::fabs(weight * 0x1p18 - 1.0) <= 4.0 * kUNIT, "weight ", weight);
            std::copy_n(image.results.begin(), kROWS, image.results.begin() + kROWS); // the dense tile is twice as high
            image.launch(&denseKernel<simt::Half>, kDENSE_WARPS);
            simt::Half const expected = simt::fromFloat<simt::Half>(0.7F);
            for (size_t row = 0; row < kDENSE_ROWS; ++row)
            {
                check(image.output[8 * row].bits == expected.bits, "row ", row, ": got ",
                    simt::toFloat(image.output[8 * row]));
            }
        });
    addTest("a dense row takes two passes after its list has overflown",
        []
        {
            LongImage const image{std::vector<float>(64, 0.25F), 16, 1.0F};
            // One key tile. The query tile takes one barrier; the first stream three, each further one three; a vote
            // before each pass and after the last. The first pass finds the maximum, the second that nothing is
            // dropped.
            check(simt::emulation::barrierCount() == 1 + 3 + 2 * 3 + 3, "got ", simt::emulation::barrierCount());
        });
    return runAll();
}
