#include "attention_cases.h"

#include <cstring>
#include <random>

#include <simt.h>

namespace hspan::test
{

int32_t gLaneOrder{0};
Variant gVariant;

namespace
{

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

//! Half the distance between the neighbors of a number in the element type: what rounding may cost.
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

} // namespace

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

std::vector<float> attention(ElementType type, Problem const& problem, uint64_t seed)
{
    auto const input = [&](std::vector<float> const& tensor, int64_t channels)
    { return stored(type, laidOut(type, tensor, channels, problem.positions)); };
    std::vector<float> output = laidOut(type, problem.value, problem.valueChannels, problem.positions);
    std::vector<unsigned char> bytes = stored(type, output);
    hspanEmulatedMultiprocessors(gVariant.multiprocessors);
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

} // namespace hspan::test
