//! \file test_threshold.cpp
//! The two kernels apart, one tile of rows each, at lengths that the whole operator would take too long for.
#include <cmath>
#include <random>

#include <simt.h>

#include "check.h"
#include "guarded_buffer.h"
#include "plain_attention.cuh"
#include "reference.h"

using namespace hspan;
using namespace hspan::test;

namespace
{

//! Rows 0 ... 31 for scores query[i] * key[j].
std::vector<PlainRow> thresholds(std::vector<float> const& query, std::vector<float> const& key)
{
    auto const positions = static_cast<int32_t>(key.size());
    GuardedBuffer const q{query.data(), query.size() * sizeof(float)};
    GuardedBuffer const k{key.data(), key.size() * sizeof(float)};
    GuardedBuffer const workspace{key.size() * sizeof(PlainRow)};
    std::vector<float> bounds(static_cast<size_t>(boundsPerImage(positions)));
    auto const* const keys = static_cast<float const*>(k.data());
    cudaError_t status
        = launchKeyBounds<float>({keys, bounds.data(), positions, positions, 1, 1, 1, positions}, nullptr);
    check(status == cudaSuccess, simt::emulation::lastError());
    auto* const rows = static_cast<PlainRow*>(workspace.data());
    status = simt::launch<float const*, float const*, float const*, PlainRow*, Strides, int64_t, int32_t, int32_t>(
        &thresholdKernel<float>, simt::Grid{}, kTHREADS_PER_BLOCK, nullptr, static_cast<float const*>(q.data()), keys,
        bounds.data(), rows, {positions, positions, 1}, 1, 1, positions);
    check(status == cudaSuccess, simt::emulation::lastError());
    return {rows, rows + std::min<int32_t>(positions, kROWS_PER_TILE)};
}

//! A score of one channel as the kernels compute it in this row.
float scoreIn(PlainRow const& row, float q, float k)
{
    float sum = row.refinement.grid;
    float rest = 0.0F;
    addProduct(sum, rest, q, k);
    return scoreOf(sum, rest, row.refinement);
}

//! |sum of weights - 1|, weights as the second kernel computes them, summed in double precision.
double excessOfOne(PlainRow const& row, float q, std::vector<float> const& key)
{
    double sum = 0.0;
    for (float const k : key)
    {
        sum += std::max(excess(scoreIn(row, q, k), row.threshold), 0.0F);
    }
    return std::fabs(sum - 1.0);
}

void checkWeightsSumToOne(std::vector<float> const& query, std::vector<float> const& key)
{
    std::vector<PlainRow> const found = thresholds(query, key);
    for (size_t row = 0; row < found.size(); ++row)
    {
        double const error = excessOfOne(found[row], query[row], key);
        // 21 u from the threshold (threshold.cuh), 2 u from the weights.
        check(error <= 23.0 * kUNIT, "row ", row, ": weights sum to 1 up to ", error / kUNIT, " u");
    }
}

std::vector<float> uniform(size_t count, float low, float high, uint32_t seed)
{
    std::mt19937 generator{seed};
    std::uniform_real_distribution<float> distribution{low, high};
    std::vector<float> values(count);
    for (float& value : values)
    {
        value = distribution(generator);
    }
    return values;
}

} // namespace

int main()
{
    constexpr size_t kLONG{size_t{1} << 20U};

    addTest("a million equal scores get the weight 2^-20 each",
        []
        {
            std::vector<float> const key(kLONG, 0.37F);
            std::vector<float> const query = uniform(kLONG, -2.0F, 2.0F, 1);
            std::vector<PlainRow> const found = thresholds(query, key);
            for (size_t row = 0; row < found.size(); ++row)
            {
                float const weight = excess(scoreIn(found[row], query[row], 0.37F), found[row].threshold);
                check(std::fabs(weight * 0x1p20 - 1.0) <= 4.0 * kUNIT, "row ", row, ": weight ", weight);
            }
        });
    addTest("weights of a million scores that differ in their last digits sum to 1",
        []
        {
            std::vector<float> const key = uniform(kLONG, 0.999999F, 1.0F, 2);
            checkWeightsSumToOne(uniform(kLONG, 0.1F, 0.9F, 3), key);
        });
    addTest("weights of many scores far from zero sum to 1, all of them and the few within 1 of the greatest",
        []
        {
            constexpr size_t kMANY{size_t{1} << 16U};
            checkWeightsSumToOne(uniform(kMANY, 1.0F, 1.1F, 5), uniform(kMANY, 9999.0F, 10000.0F, 4));
            std::vector<float> const query = uniform(kMANY, 1.0F, 1.1F, 5);
            std::vector<float> const key(kMANY, 9999.0F);
            std::vector<PlainRow> const found = thresholds(query, key);
            for (size_t row = 0; row < found.size(); ++row)
            {
                check(found[row].refinement.grid > 0.0F, "row ", row, " is not refined");
                float const weight = excess(scoreIn(found[row], query[row], 9999.0F), found[row].threshold);
                check(std::fabs(weight * 0x1p16 - 1.0) <= 4.0 * kUNIT, "row ", row, ": weight ", weight);
            }
        });
    addTest("weights of a dense row of every length around the tile sum to 1",
        []
        {
            for (size_t const length : {1U, 2U, 31U, 32U, 33U, 127U, 128U, 129U, 255U, 256U, 257U, 4099U})
            {
                checkWeightsSumToOne(uniform(length, -1.0F, 1.0F, 6), uniform(length, -0.01F, 0.01F, 7));
                checkWeightsSumToOne(uniform(length, -1.0F, 1.0F, 8), uniform(length, -50.0F, 50.0F, 9));
            }
        });
    addTest("scores in a geometric ladder, one Newton pass per rung, end at the exact threshold",
        []
        {
            std::vector<float> key;
            for (int32_t rung = 0; rung < 300; ++rung)
            {
                key.push_back(-std::ldexp(1.0F, -rung / 12) * (1.0F + static_cast<float>(rung % 12) / 12.0F));
            }
            checkWeightsSumToOne(std::vector<float>(key.size(), 1.0F), key);
            std::vector<PlainRow> const found = thresholds(std::vector<float>(key.size(), 1.0F), key);
            double const expected = thresholdReference({key.begin(), key.end()});
            PlainRow const& row = found[0];
            check(row.refinement.grid > 0.0F, "the row is not refined");
            double const actual = static_cast<double>(row.threshold.high) + row.threshold.low + row.refinement.shift;
            check(std::fabs(actual - expected) <= 23.0 * kUNIT, "threshold ", actual, ", expected ", expected);
        });
    addTest("a support that shrinks by a hair is found although F was rounded",
        []
        {
            // n scores are a, m are b = a - 261/2^27, and n (a - b) = 1.008: the support is the a's alone, by a hair.
            // From max - 1, each b's excess is rounded down by 3/2^27, all of them lower F by 0.0119 > 0.008, and the
            // first step ends below b with the support it began with. Whoever settles there leaves weights that sum
            // to 1.004.
            float const gap = 261.0F * 0x1p-27F;
            auto const count = static_cast<size_t>(1.008 / gap);
            std::vector<float> key(kLONG, 0.1F);
            std::fill(key.begin() + static_cast<std::ptrdiff_t>(count), key.end(), 0.1F - gap);
            TwoFloat const start = exactSum(0.1F, -1.0F);
            double const lost = static_cast<double>(0.1F - gap) - start.high - start.low - excess(0.1F - gap, start);
            check(lost * static_cast<double>(kLONG - count) > 0.0115, "F is lowered by too little for this test");
            checkWeightsSumToOne(std::vector<float>(kLONG, 1.0F), key);
        });
    addTest("a support that a rounded F made shrink by a hair grows again",
        []
        {
            // The mirror image: n (a - b) = 0.995, so all are in the support, by a hair. Each b's excess is rounded up,
            // the first step ends above b, and the next one has to go down.
            float const a = 0.1F + 5.0F * 0x1p-27F;
            float const gap = 262.0F * 0x1p-27F;
            auto const count = static_cast<size_t>(0.995 / gap);
            std::vector<float> key(kLONG, a);
            std::fill(key.begin() + static_cast<std::ptrdiff_t>(count), key.end(), a - gap);
            TwoFloat const start = exactSum(a, -1.0F);
            double const gained = excess(a - gap, start) - (static_cast<double>(a - gap) - start.high - start.low);
            check(gained * static_cast<double>(kLONG - count) > 0.0115, "F is raised by too little for this test");
            checkWeightsSumToOne(std::vector<float>(kLONG, 1.0F), key);
        });
    addTest("a step never ends above max - 1/n",
        []
        {
            // Errors of F that could do it need more than 2^25 scores, so the step is given one here.
            RowState state = initialState(3.0F, true);
            takeStep(state, {1500.0F, 0.0F}, 1000);
            double const threshold = static_cast<double>(state.threshold.high) + state.threshold.low;
            check(std::fabs(threshold - (3.0 - 1e-3)) < 1e-9, "got ", threshold);
            check(state.active, "the row is not finished");
        });
    addTest("a dense row settles after three Newton passes",
        []
        {
            thresholds(std::vector<float>(128, 1.0F), uniform(128, -0.001F, 0.0F, 10));
            // The first finds the support, the second corrects what rounding left, the third confirms. One key tile and
            // one channel slice: two barriers a pass, the maxima's pass included, a vote on refining, and one before
            // each Newton pass and after the last.
            int64_t const barriers = simt::emulation::barrierCount();
            check(barriers == 4 * 2 + 5, "got ", barriers, " barriers");
        });
    addTest("the mean of many equal values is that value",
        []
        {
            constexpr int32_t kPOSITIONS{1 << 17};
            std::vector<float> const zeros(kPOSITIONS, 0.0F);
            std::vector<float> const values(kPOSITIONS, 0.7F);
            GuardedBuffer const scores{zeros.data(), zeros.size() * sizeof(float)};
            GuardedBuffer const value{values.data(), values.size() * sizeof(float)};
            std::vector<PlainRow> const equal(kPOSITIONS, PlainRow{{-1.0F / kPOSITIONS, 0.0F}, {}});
            std::vector<float> output(kPOSITIONS);
            auto const* const operand = static_cast<float const*>(scores.data());
            cudaError_t const status = simt::launch<float const*, float const*, float const*, PlainRow const*, float*,
                Strides, Strides, int64_t, int32_t, int32_t, int32_t>(&weightedSumKernel<float, kMIN_SLICE>,
                simt::Grid{}, kTHREADS_PER_BLOCK, nullptr, operand, operand, static_cast<float const*>(value.data()),
                equal.data(), output.data(), {kPOSITIONS, kPOSITIONS, 1}, {kPOSITIONS, kPOSITIONS, 1}, 1, 1, 1,
                kPOSITIONS);
            check(status == cudaSuccess, simt::emulation::lastError());
            for (int32_t row = 0; row < kROWS_PER_TILE; ++row)
            {
                float const got = output[static_cast<size_t>(row)];
                check(std::fabs(got - 0.7F) <= 0.7 * 67.0 * kUNIT, "row ", row, ": got ", got);
            }
        });
    addTest("two floats hold a sum that one float cannot",
        []
        {
            TwoFloat const sum = plus(plus(TwoFloat{1.0e8F, 0.0F}, 1.0F), -1.0e8F);
            check(sum.high == 1.0F && sum.low == 0.0F, "got ", sum.high, " + ", sum.low);
            TwoFloat const third = quotient({1.0F, 0.0F}, 3.0F);
            double const error = std::fabs((static_cast<double>(third.high) + third.low) * 3.0 - 1.0);
            check(error <= 0x1p-45, "a third is off by ", error);
        });
    return runAll();
}
