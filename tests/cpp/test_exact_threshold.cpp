//! \file test_exact_threshold.cpp
//! Thresholds in integers: the parts by themselves, and the tiled kernels one tile at a time where rows are long.
#include <cmath>
#include <random>
#include <vector>

#include <simt.h>

#include "check.h"
#include "guarded_buffer.h"
#include "reference.h"
#include "two_looks.cuh"

using namespace hspan;
using namespace hspan::test;

namespace
{

constexpr int64_t kROWS{kMAIN_ROWS};

//! The first rows of a long image with one channel, query 1 in every row: the scores are the keys.
struct LongImage
{
    explicit LongImage(std::vector<float> const& scores, int32_t capacity, float value)
        : positions{static_cast<int64_t>(scores.size())}
        , rows(static_cast<size_t>(positions) * 8, simt::Half{0})
        , ones(rows)
        , values(static_cast<size_t>(positions) * 8, simt::fromFloat<simt::Half>(value))
        , output(static_cast<size_t>(positions) * 8, simt::Half{0x7e00})
    {
        for (size_t j = 0; j < scores.size(); ++j)
        {
            rows[8 * j] = simt::fromFloat<simt::Half>(scores[j]);
            ones[8 * j] = simt::fromFloat<simt::Half>(1.0F);
        }
        call.problem = {ElementType::kHALF, TensorLayout::kCHANNELS_LAST, {1, 8, 1, positions}};
        call.workspace = tiledWorkspace(call.problem, capacity);
        call.plan = lookPlan(call.workspace, positions, 1);
        memory.resize(static_cast<size_t>(call.workspace.bytes) / sizeof(uint64_t));
        call.pointers = {ones.data(), rows.data(), values.data(), output.data(), memory.data()};
        call.slots = kROWS;
        arguments = lookArguments<simt::Half>(call);
        succeeds(findMaxima(call, arguments));
        succeeds(launchLowerBounds(call));
        succeeds(collectLists(call, arguments, false));
        succeeds(finishLists(call, arguments));
        succeeds(findDenseThresholds(call, arguments));
        results.assign(arguments.tensors.results, arguments.tensors.results + kROWS);
    }

    static void succeeds(cudaError_t status)
    {
        check(status == cudaSuccess, simt::emulation::lastError());
    }

    int64_t positions;
    std::vector<simt::Half> rows;
    std::vector<simt::Half> ones;
    std::vector<simt::Half> values;
    std::vector<simt::Half> output;
    std::vector<uint64_t> memory;
    std::vector<RowResult> results;
    LookCall call{};
    LookArguments<simt::Half> arguments{};
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
    addTest("lists of more scores than whose fine parts fit 32 bits find the same bits",
        []
        {
            // Of a score of 15 2^-24 nothing is a multiple of 2^-19: it is all fine part, of nearly 2^21 quanta.
            for (size_t const count : {1023U, 1100U, 1728U})
            {
                std::vector<float> const scores(count, 15 * 0x1p-24F);
                double const error = std::fabs(sumOfWeights(thresholdByBothRoutes(scores), scores) - 1.0);
                check(error <= 2.2 * kUNIT, count, " scores: ", error / kUNIT, " u");
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
                scores[j] += 30.0F; // another anchor
            }
            thresholdByBothRoutes(scores);
        });
    addTest("a list contains the support and few others, in ascending key order",
        []
        {
            std::vector<float> const scores = uniform(300, -1.0F, 1.0F, 8);
            LongImage const image{scores, 300, 1.0F};
            double const threshold = thresholdReference({scores.begin(), scores.end()});
            int32_t entry = 0;
            int32_t others = 0;
            for (size_t j = 0; j < scores.size(); ++j)
            {
                ListEntry const& next = image.arguments.lists[entry];
                bool const isListed = entry < image.results[0].count && next.key == static_cast<int32_t>(j);
                check(isListed ? next.score == scores[j] : !(scores[j] > threshold), "key ", j);
                entry += isListed ? 1 : 0;
                others += isListed && !(scores[j] > threshold) ? 1 : 0;
            }
            check(entry == image.results[0].count && others < 60, entry, " entries, ", others, " too many");
        });
    addTest("quotients by floats are rounded down",
        []
        {
            std::mt19937_64 generator{9};
            for (int32_t i = 0; i < 200000; ++i)
            {
                auto const divisor = static_cast<int32_t>(generator() % kLIST_CAPACITY) + 1;
                int64_t dividend = static_cast<int64_t>(generator() % (6 * kONE) - 3 * kONE) * divisor;
                dividend += static_cast<int64_t>(generator() % 3) - 1;
                int64_t const quotient = floorQuotientByFloats(dividend, divisor);
                check(quotient == floorQuotient(dividend, divisor), dividend, " / ", divisor, ": got ", quotient);
            }
        });
    addTest("bounds are below the threshold and near it",
        []
        {
            uint32_t seed = 40;
            for (size_t const count : {1U, 3U, 64U, 65U, 600U, 4700U})
            {
                for (float const spread : {0.0F, 1e-3F, 0.1F, 2.0F, 300.0F})
                {
                    std::vector<float> const scores = uniform(count, -spread, spread, ++seed);
                    LongImage const image{scores, 0, 1.0F};
                    double const threshold = thresholdReference({scores.begin(), scores.end()});
                    double const below = threshold - static_cast<double>(image.arguments.bounds[0].bound);
                    check(below > 0.0 && below <= 1.0, count, " scores within ", spread, ": ", below, " below");
                }
            }
        });
    addTest("a quarter of a million equal scores get the weight 2^-18 each, and their mean is exact to FP16",
        []
        {
            std::vector<float> const scores(size_t{1} << 18U, 1.7F);
            LongImage image{scores, 1024, 0.7F};
            check(image.results[0].count == kDENSE, "it fits a list");
            float const weight = weightOf(image.results[0], simt::toFloat(simt::fromFloat<simt::Half>(1.7F)));
            check(std::fabs(weight * 0x1p18 - 1.0) <= 4.0 * kUNIT, "weight ", weight);
            LongImage::succeeds(sumDense(image.call, image.arguments));
            simt::Half const expected = simt::fromFloat<simt::Half>(0.7F);
            for (size_t row = 0; row < kROWS; ++row)
            {
                check(image.output[8 * row].bits == expected.bits, "row ", row, ": got ",
                    simt::toFloat(image.output[8 * row]));
            }
        });
    addTest("a dense row whose bound is the threshold of all its scores takes one pass",
        []
        {
            LongImage const image{std::vector<float>(64, 0.25F), 16, 1.0F};
            // One key tile. A vote; one barrier for the query tile; a vote and two barriers for the pass; a vote. The
            // other block has no rows and votes once.
            check(simt::emulation::barrierCount() == 1 + 1 + 1 + 2 + 1 + 1, "got ", simt::emulation::barrierCount());
        });
    return runAll();
}
