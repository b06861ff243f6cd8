//! \file test_attention.cpp
//! The operator on emulated hardware against its definition, at sizes and inputs that invite mistakes.
//! Argument: the lane order, forward, reverse or shuffled.
#include <cstring>
#include <random>
#include <string>

#include <simt.h>

#include "check.h"
#include "emulated_attention.h"
#include "reference.h"
#include "sparsemax_attention.h"

using namespace hspan;
using namespace hspan::test;

namespace
{

int32_t gLaneOrder{0};

//! By which kernels, from which layout.
struct Variant
{
    int32_t config{kAUTOMATIC_CONFIG};
    int32_t capacity{0}; //!< of the candidate lists; 0 is the usual
    TensorLayout layout{TensorLayout::kLINEAR};
};

Variant gVariant;

constexpr float kINFINITY{std::numeric_limits<float>::infinity()};

//! What the scores look like.
enum class Regime
{
    kSPARSE,   //!< spread of about 10: a few keys per row
    kDENSE,    //!< range of about 0.01: all keys
    kFLAT,     //!< all equal
    kTIES,     //!< few distinct values
    kDOMINANT, //!< one key far above the others
    kHUGE,     //!< of order 1e4
    kNEGATIVE, //!< all below zero
    kZERO,     //!< all zero
};

constexpr Regime kREGIMES[] = {Regime::kSPARSE, Regime::kDENSE, Regime::kFLAT, Regime::kTIES, Regime::kDOMINANT,
    Regime::kHUGE, Regime::kNEGATIVE, Regime::kZERO};
constexpr char const* kREGIME_NAMES[] = {"sparse", "dense", "flat", "ties", "dominant", "huge", "negative", "zero"};

constexpr char const* kTYPE_NAMES[] = {"FP32", "FP16", "BF16"};

float rounded(ElementType type, float value)
{
    switch (type)
    {
    case ElementType::kFLOAT: return value;
    case ElementType::kHALF: return simt::toFloat(simt::fromFloat<simt::Half>(value));
    case ElementType::kBFLOAT16: return simt::toFloat(simt::fromFloat<simt::BFloat16>(value));
    }
    return value;
}

//! Half the distance between the neighbours of a number in the element type: what rounding may cost.
double roundingOf(ElementType type, double value)
{
    if (type == ElementType::kFLOAT)
    {
        return 0.0; // inside the 96 u
    }
    int32_t const digits = type == ElementType::kHALF ? 11 : 8;
    double const smallest = type == ElementType::kHALF ? 0x1p-24 : 0x1p-133;
    return std::max(std::ldexp(1.0, std::ilogb(std::max(std::fabs(value), 1e-300)) - digits), smallest / 2.0);
}

Problem problemOf(ElementType type, Regime regime, int64_t batch, int64_t channels, int64_t values, int64_t positions)
{
    std::mt19937 generator{static_cast<uint32_t>(positions * 131 + channels * 17 + values * 3 + batch)};
    std::normal_distribution<float> normal;
    Problem problem{batch, channels, values, positions, {}, {}, {}};
    auto const scoreCount = static_cast<size_t>(batch * channels * positions);
    float const perChannel = 1.0F / std::sqrt(std::sqrt(static_cast<float>(channels)));
    for (size_t i = 0; i < scoreCount; ++i)
    {
        float q = normal(generator) * perChannel;
        float k = normal(generator) * perChannel;
        switch (regime)
        {
        case Regime::kSPARSE:
            q *= 5.0F;
            k *= 2.0F;
            break;
        case Regime::kDENSE: k *= 0.002F; break;
        case Regime::kFLAT: k = 0.37F * perChannel; break;
        case Regime::kTIES:
            q = std::round(q * 2.0F);
            k = std::round(k);
            break;
        case Regime::kDOMINANT:
            k = static_cast<int64_t>(i) % positions == positions / 2 ? 40.0F : k;
            q = std::fabs(q) + 0.5F;
            break;
        case Regime::kHUGE:
            q *= 100.0F;
            k *= 100.0F;
            break;
        case Regime::kNEGATIVE:
            q = std::fabs(q) + 0.1F;
            k = -std::fabs(k) - 0.1F;
            break;
        case Regime::kZERO: k = 0.0F; break;
        }
        problem.query.push_back(rounded(type, q));
        problem.key.push_back(rounded(type, k));
    }
    for (int64_t i = 0; i < batch * values * positions; ++i)
    {
        problem.value.push_back(rounded(type, normal(generator)));
    }
    return problem;
}

//! A (N, channels, L) tensor in the layout of the variant, and back. What pads channels-last tensors is NaN, and must
//! be zero when it comes back.
std::vector<float> laidOut(ElementType type, std::vector<float> const& tensor, int64_t channels, int64_t positions)
{
    if (gVariant.layout == TensorLayout::kLINEAR)
    {
        return tensor;
    }
    int64_t const pitch = channelPitch(type, channels);
    auto const batch = static_cast<int64_t>(tensor.size()) / channels / positions;
    std::vector<float> result(static_cast<size_t>(batch * positions * pitch), NAN);
    for (int64_t i = 0; i < static_cast<int64_t>(tensor.size()); ++i)
    {
        int64_t const n = i / positions / channels;
        result[static_cast<size_t>((n * positions + i % positions) * pitch + i / positions % channels)]
            = tensor[static_cast<size_t>(i)];
    }
    return result;
}

std::vector<float> linear(ElementType type, std::vector<float> const& tensor, int64_t channels, int64_t positions)
{
    if (gVariant.layout == TensorLayout::kLINEAR)
    {
        return tensor;
    }
    int64_t const pitch = channelPitch(type, channels);
    auto const rows = static_cast<int64_t>(tensor.size()) / pitch;
    std::vector<float> result(static_cast<size_t>(rows * channels));
    for (int64_t row = 0; row < rows; ++row)
    {
        for (int64_t channel = 0; channel < pitch; ++channel)
        {
            float const value = tensor[static_cast<size_t>(row * pitch + channel)];
            if (channel < channels)
            {
                result[static_cast<size_t>((row / positions * channels + channel) * positions + row % positions)]
                    = value;
            }
            else
            {
                check(value == 0.0F, "the output's padding is ", value);
            }
        }
    }
    return result;
}

//! Bytes of the tensor in the element type.
std::vector<unsigned char> stored(ElementType type, std::vector<float> const& values)
{
    size_t const size = type == ElementType::kFLOAT ? 4 : 2;
    std::vector<unsigned char> bytes(values.size() * size);
    for (size_t i = 0; i < values.size(); ++i)
    {
        uint16_t const bits
            = type == ElementType::kFLOAT ? uint16_t{0} : hspanEmulatedFromFloat(static_cast<int32_t>(type), values[i]);
        std::memcpy(
            bytes.data() + i * size, type == ElementType::kFLOAT ? static_cast<void const*>(&values[i]) : &bits, size);
    }
    return bytes;
}

std::vector<float> attention(ElementType type, Problem const& problem, uint64_t seed = 1)
{
    auto const input = [&](std::vector<float> const& tensor, int64_t channels)
    { return stored(type, laidOut(type, tensor, channels, problem.positions)); };
    std::vector<float> output = laidOut(type, problem.value, problem.valueChannels, problem.positions);
    std::vector<unsigned char> bytes = stored(type, output);
    int32_t const status
        = hspanEmulatedAttention(static_cast<int32_t>(type), static_cast<int32_t>(gVariant.layout), gVariant.config,
            gVariant.capacity, 86, problem.batch, problem.scoreChannels, problem.valueChannels, problem.positions,
            input(problem.query, problem.scoreChannels).data(), input(problem.key, problem.scoreChannels).data(),
            input(problem.value, problem.valueChannels).data(), bytes.data(), gLaneOrder, seed);
    check(status == cudaSuccess, "status ", status, ": ", hspanEmulatedError());
    for (size_t i = 0; i < output.size(); ++i)
    {
        uint16_t bits = 0;
        if (type == ElementType::kFLOAT)
        {
            std::memcpy(&output[i], bytes.data() + 4 * i, 4);
            continue;
        }
        std::memcpy(&bits, bytes.data() + 2 * i, 2);
        output[i] = hspanEmulatedToFloat(static_cast<int32_t>(type), bits);
    }
    return linear(type, output, problem.valueChannels, problem.positions);
}

void compare(ElementType type, Problem const& problem, std::vector<float> const& output, Scores kind, int64_t rowStep)
{
    for (int64_t n = 0; n < problem.batch; ++n)
    {
        for (int64_t row = n % rowStep; row < problem.positions; row += rowStep)
        {
            RowReference const expected = rowReference(problem, n, row, kind);
            for (int64_t d = 0; d < problem.valueChannels; ++d)
            {
                auto const at = static_cast<size_t>(d);
                double const want = expected.output[at];
                double const got
                    = output[static_cast<size_t>((n * problem.valueChannels + d) * problem.positions + row)];
                double const most
                    = expected.tolerance[at] + roundingOf(type, std::max(std::fabs(want), std::fabs(got)));
                bool const fits = std::isnan(want) ? std::isnan(got) : std::fabs(got - want) <= most;
                check(fits, kind == Scores::kEXACT ? "exact scores" : "given scores", ": batch ", n, " row ", row,
                    " channel ", d, ": got ", got, ", expected ", want, " within ", most, "; support ",
                    expected.support);
            }
        }
    }
}

//! Against the definition, given the scores and from exact scores. Long problems are sampled in rows.
void checkAgainstReference(ElementType type, Problem const& problem)
{
    std::vector<float> const output = attention(type, problem);
    int64_t const rowStep = problem.positions > 200 ? 7 : 1;
    if (type == ElementType::kFLOAT)
    {
        compare(type, problem, output, Scores::kREFINED, rowStep);
        return;
    }
    compare(type, problem, output, Scores::kCHAIN, rowStep);
    compare(type, problem, output, Scores::kEXACT, rowStep);
}

Problem small(ElementType type, int64_t positions = 70)
{
    return problemOf(type, Regime::kSPARSE, 2, 5, 3, positions);
}

bool rowIsNan(Problem const& problem, std::vector<float> const& output, int64_t n, int64_t row)
{
    bool all = true;
    bool any = false;
    for (int64_t d = 0; d < problem.valueChannels; ++d)
    {
        bool const nan
            = std::isnan(output[static_cast<size_t>((n * problem.valueChannels + d) * problem.positions + row)]);
        all = all && nan;
        any = any || nan;
    }
    check(all == any, "batch ", n, " row ", row, " is NaN in some channels only");
    return all;
}

void addSizes(bool all)
{
    constexpr int64_t kLENGTHS[] = {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 577, 1025};
    constexpr int64_t kSCORE_CHANNELS[] = {1, 3, 16, 24, 96, 128};
    constexpr int64_t kVALUE_CHANNELS[] = {1, 5, 24, 64, 192};
    // Every length meets every regime; channels, batch and type go round so that all neighbouring pairs occur.
    // The configurations that serve a type do too, as do layouts and capacities, those that overflow among them.
    constexpr int32_t kCAPACITIES[] = {0, 16, 0, 64, 100};
    size_t turn = 0;
    for (int64_t const positions : kLENGTHS)
    {
        for (size_t r = 0; r < std::size(kREGIMES); ++r, ++turn)
        {
            int64_t const channels = kSCORE_CHANNELS[turn % std::size(kSCORE_CHANNELS)];
            int64_t const values = kVALUE_CHANNELS[turn % std::size(kVALUE_CHANNELS)];
            int64_t const batch = static_cast<int64_t>(turn / 3 % 3) + 1;
            auto const type = static_cast<ElementType>(turn % 7 % 3);
            if ((!all && (positions > 129 || turn % 3 != 0)) || (positions > 600 && r % 2 != 0))
            {
                continue;
            }
            Variant variant;
            variant.config = static_cast<int32_t>(turn / 2) % attentionConfigCount();
            variant.capacity = kCAPACITIES[turn % std::size(kCAPACITIES)];
            variant.layout = static_cast<TensorLayout>(turn / 5 % 2);
            if (!isAttentionConfigSupported(variant.config, type, channels, values, 86))
            {
                variant.config = kAUTOMATIC_CONFIG;
            }
            Regime const regime = kREGIMES[r];
            addTest(std::string{kTYPE_NAMES[static_cast<size_t>(type)]} + " " + kREGIME_NAMES[r]
                    + " scores, L=" + std::to_string(positions) + " C=" + std::to_string(channels)
                    + " D=" + std::to_string(values) + " N=" + std::to_string(batch) + ", "
                    + attentionConfigName(variant.config) + ", lists of " + std::to_string(variant.capacity)
                    + (variant.layout == TensorLayout::kLINEAR ? "" : ", channels last"),
                [=]
                {
                    gVariant = variant;
                    checkAgainstReference(type, problemOf(type, regime, batch, channels, values, positions));
                });
        }
    }
}

void addDegenerateRows(ElementType type, Variant variant)
{
    auto const add = [variant, type](std::string const& name, std::function<void()> const& body)
    {
        addTest(name + ", " + kTYPE_NAMES[static_cast<size_t>(type)] + " " + attentionConfigName(variant.config)
                + ", lists of " + std::to_string(variant.capacity),
            [=]
            {
                gVariant = variant;
                body();
            });
    };
    add("a NaN in a query makes its row NaN and no other",
        [type]
        {
            Problem problem = small(type);
            problem.query[static_cast<size_t>(2 * problem.positions + 33)] = NAN;
            std::vector<float> const output = attention(type, problem);
            for (int64_t n = 0; n < problem.batch; ++n)
            {
                for (int64_t row = 0; row < problem.positions; ++row)
                {
                    check(rowIsNan(problem, output, n, row) == (n == 0 && row == 33), "batch ", n, " row ", row);
                }
            }
        });
    add("a NaN in a key makes all rows of its batch NaN and none of another",
        [type]
        {
            Problem problem = small(type);
            problem.key[static_cast<size_t>((5 + 1) * problem.positions + 69)] = NAN;
            std::vector<float> const output = attention(type, problem);
            for (int64_t n = 0; n < problem.batch; ++n)
            {
                for (int64_t row = 0; row < problem.positions; ++row)
                {
                    check(rowIsNan(problem, output, n, row) == (n == 1), "batch ", n, " row ", row);
                }
            }
        });
    add("a score of +inf makes its row NaN, a score of -inf has weight 0",
        [type]
        {
            Problem problem = small(type);
            for (int64_t c = 0; c < problem.scoreChannels; ++c)
            {
                problem.key[static_cast<size_t>(c * problem.positions + 12)] = c == 0 ? kINFINITY : 1.0F;
            }
            std::vector<float> const output = attention(type, problem);
            int64_t nanRows = 0;
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                bool const positive = problem.query[static_cast<size_t>(row)] > 0.0F; // channel 0 decides the sign
                check(rowIsNan(problem, output, 0, row) == positive, "row ", row);
                nanRows += positive ? 1 : 0;
            }
            check(nanRows > 0 && nanRows < problem.positions, "both kinds must occur");
            Problem without = problem;
            for (int64_t c = 0; c < problem.scoreChannels; ++c)
            {
                without.key[static_cast<size_t>(c * problem.positions + 12)] = c == 0 ? -3.0e38F : 0.0F;
            }
            std::vector<float> const same = attention(type, without);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                if (problem.query[static_cast<size_t>(row)] > 0.0F)
                {
                    auto const at = static_cast<size_t>(row);
                    check(!std::isnan(same[at]), "row ", row);
                }
            }
        });
    add("a row of scores that are all -inf is NaN",
        [type]
        {
            Problem problem = problemOf(type, Regime::kSPARSE, 1, 1, 2, 40);
            std::fill(problem.key.begin(), problem.key.end(), -kINFINITY);
            std::fill(problem.query.begin(), problem.query.end(), 1.0F);
            std::vector<float> const output = attention(type, problem);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                check(rowIsNan(problem, output, 0, row), "row ", row);
            }
        });
    add("values of weight 0 may be NaN or infinite, those of the support count",
        [type]
        {
            Problem problem = problemOf(type, Regime::kDOMINANT, 1, 3, 4, 70);
            std::vector<float> const before = attention(type, problem);
            for (int64_t j = 0; j < problem.positions; ++j)
            {
                for (int64_t d = 0; d < problem.valueChannels && j != problem.positions / 2; ++d)
                {
                    problem.value[static_cast<size_t>(d * problem.positions + j)] = j % 2 == 0 ? NAN : -kINFINITY;
                }
            }
            check(attention(type, problem) == before, "a value outside the support entered the sum");
            problem.value[static_cast<size_t>(problem.positions / 2)] = kINFINITY;
            std::vector<float> const infinite = attention(type, problem);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                check(infinite[static_cast<size_t>(row)] == kINFINITY, "row ", row);
            }
        });
    add("a NaN in a value reaches the rows that give it a weight and no others of their warp",
        [type]
        {
            Problem problem = small(type);
            for (float& q : problem.query)
            {
                q *= 0.1F; // supports of a few dozen keys
            }
            // weight[row][j], below zero outside the support
            std::vector<std::vector<double>> weights;
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                weights.push_back(scoresReference(problem, 0, row, Scores::kCHAIN));
                double const threshold = thresholdReference(weights.back());
                for (double& weight : weights.back())
                {
                    weight -= threshold;
                }
            }
            // The first warp must hold rows of both kinds.
            size_t bad = 0;
            auto const isMixed = [&weights](size_t j)
            { return weights[0][j] * weights[1][j] < 0.0 || weights[0][j] * weights[2][j] < 0.0; };
            while (!isMixed(bad))
            {
                bad += 1;
                check(bad < weights.size(), "no key has a weight in one of the rows 0 to 2 and none in another");
            }
            std::vector<float> const before = attention(type, problem);
            for (int64_t d = 0; d < problem.valueChannels; ++d)
            {
                problem.value[static_cast<size_t>(d * problem.positions) + bad] = NAN;
            }
            std::vector<float> const after = attention(type, problem);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                auto const at = static_cast<size_t>(row);
                double const weight = weights[at][bad];
                check(std::fabs(weight) > 1e-5, "row ", row, " is too close to call");
                check(rowIsNan(problem, after, 0, row) == (weight > 0.0), "row ", row, ": weight ", weight);
                check(weight > 0.0 || after[at] == before[at], "row ", row, " changed");
            }
        });
}

void addProperties()
{
    auto const addTest = [](std::string name, std::function<void()> const& body)
    {
        hspan::test::addTest(std::move(name),
            [=]
            {
                gVariant = {};
                body();
            });
    };
    addTest("scores near the end of the FP32 range give the dominant key's value",
        []
        {
            Problem problem = problemOf(ElementType::kFLOAT, Regime::kSPARSE, 1, 1, 2, 40);
            std::fill(problem.query.begin(), problem.query.end(), 1.0e19F);
            for (size_t j = 0; j < problem.key.size(); ++j)
            {
                problem.key[j] = j == 17 ? 3.3e19F : -3.3e19F;
            }
            std::vector<float> const output = attention(ElementType::kFLOAT, problem);
            for (size_t row = 0; row < 40; ++row)
            {
                check(output[row] == problem.value[17], "row ", row, ": got ", output[row]);
            }
        });
    addTest("equal scores give the mean of the values",
        []
        {
            Problem const problem = problemOf(ElementType::kFLOAT, Regime::kZERO, 1, 2, 1, 300);
            double mean = 0.0;
            for (float const value : problem.value)
            {
                mean += static_cast<double>(value) / 300.0;
            }
            std::vector<float> const output = attention(ElementType::kFLOAT, problem);
            for (float const got : output)
            {
                check(got == output[0] && std::fabs(got - mean) < 96.0 * kUNIT * 4.0, "got ", got, ", expected ", mean);
            }
        });
    addTest("results agree bit by bit whatever the schedule",
        []
        {
            for (ElementType const type : {ElementType::kFLOAT, ElementType::kHALF})
            {
                Problem const problem = problemOf(type, Regime::kSPARSE, 1, 24, 40, 150);
                for (int32_t const capacity : {0, 16})
                {
                    gVariant.capacity = capacity;
                    std::vector<float> const once = attention(type, problem, 1);
                    int32_t const order = gLaneOrder;
                    gLaneOrder = 0;
                    std::vector<float> const forward = attention(type, problem, 2);
                    gLaneOrder = order;
                    check(once == forward, "they differ");
                }
            }
        });
    addTest("more batches than the grid has places are all computed", []
        { checkAgainstReference(ElementType::kFLOAT, problemOf(ElementType::kFLOAT, Regime::kSPARSE, 7, 3, 2, 33)); });
    addTest("an output wider than one slice is computed in all channels",
        []
        {
            checkAgainstReference(ElementType::kFLOAT, problemOf(ElementType::kFLOAT, Regime::kSPARSE, 1, 3, 290, 33));
        });
    addTest("more score channels than any network has are summed",
        []
        {
            checkAgainstReference(ElementType::kFLOAT, problemOf(ElementType::kFLOAT, Regime::kSPARSE, 1, 500, 3, 33));
        });
    addTest("sizes out of range are refused, empty ones do nothing",
        []
        {
            float number = 0.0F;
            auto const launch = [&](AttentionShape const& shape)
            {
                return launchSparsemaxAttention({ElementType::kFLOAT, TensorLayout::kLINEAR, shape}, kAUTOMATIC_CONFIG,
                    &number, &number, &number, &number, &number, nullptr);
            };
            constexpr int64_t kMANY{int64_t{1} << 40U};
            check(launch({-1, 1, 1, 1}) == cudaErrorInvalidValue, "negative batch");
            check(launch({1, 1, 1, int64_t{1} << 31U}) == cudaErrorInvalidValue, "2^31 positions");
            check(launch({1, kMANY, 1, 1}) == cudaErrorInvalidValue, "2^40 channels");
            check(launch({kMANY, 1 << 20, 1, 1 << 20}) == cudaErrorInvalidValue, "2^80 elements");
            check(launch({1, 1, int64_t{96} * 65536, 1}) == cudaErrorInvalidValue, "more slices than a grid has");
            check(launch({0, 4, 4, 4}) == cudaSuccess, "no batch");
            check(launch({4, 4, 4, 0}) == cudaSuccess, "no positions");
            auto const unknown = static_cast<ElementType>(9);
            check(launchSparsemaxAttention({unknown, TensorLayout::kLINEAR, {1, 1, 1, 1}}, kAUTOMATIC_CONFIG, &number,
                      &number, &number, &number, &number, nullptr)
                    == cudaErrorInvalidValue,
                "unknown type");
        });
    addTest("the plain kernels' workspace is 16 N L bytes, and N L / 8 for FP32",
        []
        {
            AttentionProblem const problem{ElementType::kFLOAT, TensorLayout::kLINEAR, {3, 96, 192, 65536}};
            check(attentionWorkspaceBytes(problem, 1) == 3U * 65536U * 16U + 3U * 65536U / 8U, "FP32");
            AttentionProblem const half{ElementType::kHALF, TensorLayout::kLINEAR, {3, 96, 192, 65536}};
            check(attentionWorkspaceBytes(half, 1) == 3U * 65536U * 16U, "FP16");
        });
}

//! Scores query[0] * key[j] with a query of ones and one channel: the caller writes the scores down as keys.
Problem withScores(std::vector<float> const& scores)
{
    Problem problem{1, 1, 4, static_cast<int64_t>(scores.size()), {}, scores, {}};
    problem.query.assign(scores.size(), 1.0F);
    for (size_t i = 0; i < 4 * scores.size(); ++i)
    {
        problem.value.push_back(static_cast<float>(i * 37 % 64) - 31.0F);
    }
    return problem;
}

//! Whether a tile took the dense route.
bool isDense(Problem const& problem, int32_t capacity)
{
    gVariant = {2, capacity, TensorLayout::kLINEAR};
    std::vector<float> const output = attention(ElementType::kHALF, problem);
    int64_t const products = hspanEmulatedProducts();
    compare(ElementType::kHALF, problem, output, Scores::kEXACT, 1);
    return products > 0;
}

void addRoutes()
{
    addTest("a support of exactly the list's capacity stays on the list, one more does not",
        []
        {
            for (int32_t const capacity : {64, 100, 128})
            {
                std::vector<float> scores(200, 0.0F);
                std::fill_n(scores.begin() + 20, capacity, 5.0F);
                check(!isDense(withScores(scores), capacity), "capacity ", capacity, " took the dense route");
                scores.back() = 5.0F;
                check(isDense(withScores(scores), capacity), "capacity ", capacity, " and one took lists");
            }
        });
    addTest("ties at the border of the support stay or go together",
        []
        {
            // Three scores of 1 + 1/3 over a hundred of 1: the hundred have weight 0, by a hair or exactly.
            for (float const border : {1.0F, 0.9995117F, 1.0009766F})
            {
                std::vector<float> scores(160, border);
                for (size_t const j : {3U, 70U, 150U})
                {
                    scores[j] = 1.3330078F;
                }
                for (int32_t const capacity : {0, 64, 103})
                {
                    isDense(withScores(scores), capacity); // compares with the reference
                }
            }
        });
    addTest("scores that fall, that rise and that repeat fill and tighten the lists in every pattern",
        []
        {
            for (int32_t const pattern : {0, 1, 2, 3})
            {
                std::vector<float> scores;
                for (int32_t j = 0; j < 330; ++j)
                {
                    float const rising = static_cast<float>(j) / 128.0F;
                    scores.push_back(pattern == 0 ? rising
                            : pattern == 1        ? -rising
                            : pattern == 2        ? static_cast<float>(j % 7) / 16.0F
                                                  : static_cast<float>(j * j % 61) / 32.0F - 1.0F);
                }
                for (int32_t const capacity : {16, 64, 128})
                {
                    isDense(withScores(scores), capacity);
                }
            }
        });
    addTest("rows of one warp that overflow do not change what other warps' rows get",
        []
        {
            Problem problem = problemOf(ElementType::kHALF, Regime::kSPARSE, 1, 16, 24, 200);
            gVariant = {2, 64, TensorLayout::kLINEAR};
            std::vector<float> const before = attention(ElementType::kHALF, problem);
            for (int64_t c = 0; c < 16; ++c)
            {
                problem.query[static_cast<size_t>(c * 200 + 9)] = 0.0F; // all scores equal: 200 candidates
            }
            std::vector<float> const after = attention(ElementType::kHALF, problem);
            check(hspanEmulatedProducts() > 0, "the row stayed on its list");
            checkAgainstReference(ElementType::kHALF, problem);
            for (int64_t row = 64; row < 200; ++row)
            {
                for (int64_t d = 0; d < 24; ++d)
                {
                    auto const at = static_cast<size_t>(d * 200 + row);
                    check(after[at] == before[at], "row ", row, " of another tile changed");
                }
            }
        });
    addTest("tile shapes agree bit by bit, routes within the contract",
        []
        {
            for (ElementType const type : {ElementType::kFLOAT, ElementType::kHALF, ElementType::kBFLOAT16})
            {
                for (Regime const regime : {Regime::kSPARSE, Regime::kDENSE, Regime::kTIES})
                {
                    Problem const problem = problemOf(type, regime, 1, 24, 40, 150);
                    for (int32_t const capacity : {0, 20})
                    {
                        std::vector<float> first;
                        for (int32_t config = 2; config < attentionConfigCount(); ++config)
                        {
                            if (!isAttentionConfigSupported(config, type, 24, 40, 86))
                            {
                                continue;
                            }
                            gVariant = {config, capacity, static_cast<TensorLayout>(config % 2)};
                            std::vector<float> const output = attention(type, problem);
                            compare(type, problem, output, Scores::kEXACT, 1);
                            // Where lists are ample no tile can go another way than in another shape.
                            check(first.empty() || capacity != 0 || output == first, attentionConfigName(config),
                                " differs");
                            first = output;
                        }
                    }
                }
            }
        });
    addTest("a configuration that does not serve the problem is refused",
        []
        {
            alignas(256) static unsigned char memory[1024];
            auto const launch = [&](int32_t config, ElementType type, int64_t channels, int64_t values)
            {
                return launchSparsemaxAttention({type, TensorLayout::kLINEAR, {1, channels, values, 1}}, config, memory,
                    memory, memory, memory, memory, nullptr);
            };
            check(launch(2, ElementType::kHALF, 129, 4) == cudaErrorInvalidValue, "129 score channels");
            check(launch(2, ElementType::kHALF, 4, 257) == cudaErrorInvalidValue, "257 value channels");
            check(launch(-1, ElementType::kHALF, 4, 4) == cudaErrorInvalidValue, "-1");
            check(launch(attentionConfigCount(), ElementType::kHALF, 4, 4) == cudaErrorInvalidValue, "no such number");
            simt::emulation::options().computeCapability = 75;
            check(launch(2, ElementType::kHALF, 4, 4) == cudaErrorInvalidValue, "an old GPU");
            check(!isAttentionConfigSupported(2, ElementType::kHALF, 4, 4, 75), "an old GPU");
            check(isAttentionConfigSupported(1, ElementType::kHALF, 4, 4, 75), "plain kernels run everywhere");
            simt::emulation::options().computeCapability = 86;
            for (int32_t config = 0; config < attentionConfigCount(); ++config)
            {
                check(attentionConfigName(config) != nullptr, config);
                check(isAttentionConfigSupported(config, ElementType::kBFLOAT16, 128, 256, 80), config);
            }
            check(attentionConfigName(attentionConfigCount()) == nullptr, "a name for no configuration");
        });
    addTest("the workspace never shrinks when a size grows, and is linear in the number of positions",
        []
        {
            for (int32_t config = 0; config < attentionConfigCount(); ++config)
            {
                auto const bytes = [config](int64_t n, int64_t c, int64_t d, int64_t l)
                { return attentionWorkspaceBytes({ElementType::kHALF, TensorLayout::kLINEAR, {n, c, d, l}}, config); };
                for (int64_t const l : {1, 63, 1023, 1024, 16384, 65536, 1 << 20, 1 << 21})
                {
                    for (int64_t const c : {1, 96, 128, 129})
                    {
                        size_t const least = bytes(2, c, 192, l);
                        check(bytes(3, c, 192, l) >= least && bytes(2, c + 40, 192, l) >= least
                                && bytes(2, c, 300, l) >= least && bytes(2, c, 192, l + 1) >= least,
                            "config ", config, " L ", l, " C ", c);
                    }
                }
                // Copies of 2 (96 + 96 + 192) bytes per position, and 16384 rows with lists of 1024 entries.
                size_t const lists = 16384U * (32U + 1024U * 8U);
                check(bytes(1, 96, 192, 65536) <= 65536U * 768U + lists, "more than the README says");
            }
        });
}

} // namespace

int main(int argc, char** argv)
{
    std::string const order = argc > 1 ? argv[1] : "forward";
    gLaneOrder = order == "reverse" ? 1 : order == "shuffled" ? 2 : 0;
    addSizes(order == "forward");
    addDegenerateRows(ElementType::kFLOAT, {1, 0, TensorLayout::kLINEAR});
    addDegenerateRows(ElementType::kFLOAT, {});
    addDegenerateRows(ElementType::kFLOAT, {2, 16, TensorLayout::kCHANNELS_LAST});
    addDegenerateRows(ElementType::kHALF, {});
    addDegenerateRows(ElementType::kHALF, {2, 16, TensorLayout::kCHANNELS_LAST});
    addDegenerateRows(ElementType::kBFLOAT16, {3, 40, TensorLayout::kLINEAR});
    addProperties();
    addRoutes();
    return runAll();
}
