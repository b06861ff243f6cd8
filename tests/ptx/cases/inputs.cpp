//! \file inputs.cpp
//! Inputs that lead into every route of the kernels, and to where numbers end.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include <immintrin.h>

#include "case.h"

namespace ptx
{

using hspan::ElementType;

namespace
{

constexpr double kNAN{NAN};
constexpr double kINFINITY{INFINITY};

//! Spread of the scores by regime: 5 leaves a few keys a weight, 0.5 dozens, 0.002 all.
double spreadOf(std::string const& regime)
{
    static std::map<std::string, double> const spreads = {{"sparse", 5}, {"nan", 5}, {"keyinf", 5}, {"mid", 0.5},
        {"ties", 0.5}, {"mixed", 0.3}, {"onedense", 0.3}, {"tiny", 0.3}, {"huge", 1e4}};
    auto const entry = spreads.find(regime);
    return entry == spreads.end() ? 0.002 : entry->second;
}

void forChannels(Tensor const& tensor, auto const& visit)
{
    for (int32_t channel = 0; channel < tensor.channels; ++channel)
    {
        visit(channel);
    }
}

void makePositive(Tensor& tensor, int32_t image)
{
    for (int32_t i = 0; i < tensor.positions; ++i)
    {
        tensor.at(image, i, 0) = std::fabs(tensor.at(image, i, 0)) + 0.01;
    }
}

//! Keys that are all alike ("flat"), or of four kinds ("ties").
void repeatKeys(Inputs& inputs, int32_t image, int32_t kinds)
{
    for (int32_t i = kinds; i < inputs.key.positions; ++i)
    {
        int32_t const kind = kinds == 1 ? 0 : (i * 7 + image) % kinds;
        forChannels(inputs.key, [&](int32_t c) { inputs.key.at(image, i, c) = inputs.key.at(image, kind, c); });
    }
}

//! Dense rows far from zero.
void offsetScores(Inputs& inputs, int32_t image, double offset)
{
    for (int32_t i = 0; i < inputs.key.positions; ++i)
    {
        inputs.key.at(image, i, 0) = offset;
        inputs.query.at(image, i, 0) = 100 + i % 3;
    }
}

//! Dense and sparse rows in one tile, or one dense row in a tile beside others, and a NaN among them.
void mixRows(Inputs& inputs, int32_t image, bool isOneDense)
{
    for (int32_t i = 0; i < inputs.query.positions; ++i)
    {
        bool const isDense = isOneDense ? i % 128 == 40 : i % 64 < 32;
        forChannels(inputs.query, [&](int32_t c) { inputs.query.at(image, i, c) *= isDense ? 1e-3 : 50.0; });
        if (i % 64 == 41 || i % 64 == 3)
        {
            inputs.query.at(image, i, inputs.query.channels - 1) = kNAN;
        }
    }
}

//! Every key above all before it, or below.
void sortScores(Inputs& inputs, int32_t image, bool isAscending)
{
    for (int32_t i = 0; i < inputs.key.positions; ++i)
    {
        for (Tensor* const tensor : {&inputs.query, &inputs.key})
        {
            forChannels(*tensor, [&](int32_t c) { tensor->at(image, i, c) = 0; });
        }
        inputs.query.at(image, i, 0) = i % 2 == 1 ? 1 : 0.01;
        inputs.key.at(image, i, 0) = 0.0078125 * (isAscending ? i : inputs.key.positions - i);
    }
}

void setAll(Tensor& tensor, auto const& function)
{
    std::transform(tensor.numbers.begin(), tensor.numbers.end(), tensor.numbers.begin(), function);
}

//! NaN and infinity in queries: rows of NaN, and nothing in others.
void spoilQueries(Inputs& inputs, int32_t image)
{
    makePositive(inputs.key, image);
    inputs.query.at(image, 0, inputs.query.channels - 1) = kNAN;
    if (inputs.query.positions > 11)
    {
        inputs.query.at(image, 9, 0) = -kINFINITY; // all scores are -inf
        inputs.query.at(image, 11, 0) = kINFINITY;
    }
}

//! A key with weight 0 everywhere, whose value must not count.
void spoilKey(Inputs& inputs, int32_t image, bool spoilsValue)
{
    makePositive(inputs.query, image);
    if (inputs.key.positions <= 2)
    {
        return;
    }
    inputs.key.at(image, 2, 0) = -kINFINITY;
    constexpr double kSPECIAL[]{kNAN, kINFINITY, -kINFINITY};
    forChannels(inputs.value, [&](int32_t c)
        { inputs.value.at(image, 2, c) = spoilsValue ? kSPECIAL[c % 3] : inputs.value.at(image, 2, c); });
}

//! Infinities, their sum and a NaN among values that count.
void spoilValues(Tensor& value, int32_t image)
{
    if (value.positions > 6)
    {
        value.at(image, 4, 0) = kINFINITY;
        value.at(image, 5, 1 % value.channels) = -kINFINITY;
        value.at(image, 4, 2 % value.channels) = kINFINITY;
        value.at(image, 5, 2 % value.channels) = -kINFINITY;
        value.at(image, 6, 3 % value.channels) = kNAN;
    }
}

//! One key far below all others, and so long that it widens the slack of all lists.
void addLongKey(Inputs& inputs, int32_t image, ElementType type)
{
    makePositive(inputs.query, image);
    if (inputs.key.positions > 5)
    {
        inputs.key.at(image, 5, 0) = type == ElementType::kHALF ? -6e4 : -1e7;
    }
}

void applyRegime(Inputs& inputs, Case const& testCase, int32_t image)
{
    std::string const& regime = testCase.regime;
    if (regime == "flat" || regime == "ties")
    {
        repeatKeys(inputs, image, regime == "flat" ? 1 : 4);
    }
    else if (regime == "offset" || regime == "offsetneg")
    {
        offsetScores(inputs, image, regime == "offset" ? 100 : -100);
    }
    else if (regime == "mixed" || regime == "onedense")
    {
        mixRows(inputs, image, regime == "onedense");
    }
    else if (regime == "ascending" || regime == "descending")
    {
        sortScores(inputs, image, regime == "ascending");
    }
    else if (regime == "nan")
    {
        spoilQueries(inputs, image);
    }
    else if (regime == "keynan" && image == 0) // all rows of its image, none of others
    {
        inputs.key.at(image, inputs.key.positions / 2, 0) = kNAN;
    }
    else if (regime == "keyinf" || regime == "valinf")
    {
        spoilKey(inputs, image, regime == "valinf");
    }
    else if (regime == "valspecial")
    {
        spoilValues(inputs.value, image);
    }
    else if (regime == "longkey")
    {
        addLongKey(inputs, image, testCase.type);
    }
}

} // namespace

uint32_t bitsFromFloat(ElementType type, float number)
{
    auto const bits = __builtin_bit_cast(uint32_t, number);
    switch (type)
    {
    case ElementType::kFLOAT: return bits;
    case ElementType::kHALF: return _cvtss_sh(number, 0);
    case ElementType::kBFLOAT16: return number != number ? 0x7fffU : (bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U;
    }
    return 0;
}

float floatFromBits(ElementType type, uint32_t bits)
{
    return type == ElementType::kHALF ? _cvtsh_ss(static_cast<uint16_t>(bits))
                                      : __builtin_bit_cast(float, type == ElementType::kFLOAT ? bits : bits << 16U);
}

Tensor::Tensor(int32_t imageCount, int32_t positionCount, int32_t channelCount)
    : images(imageCount)
    , positions(positionCount)
    , channels(channelCount)
    , numbers(static_cast<size_t>(imageCount) * static_cast<size_t>(positionCount) * static_cast<size_t>(channelCount))
{
}

size_t Tensor::index(int32_t image, int32_t position, int32_t channel) const
{
    return (static_cast<size_t>(image) * static_cast<size_t>(positions) + static_cast<size_t>(position))
        * static_cast<size_t>(channels)
        + static_cast<size_t>(channel);
}

double& Tensor::at(int32_t image, int32_t position, int32_t channel)
{
    return numbers[index(image, position, channel)];
}

double Tensor::at(int32_t image, int32_t position, int32_t channel) const
{
    return numbers[index(image, position, channel)];
}

Inputs inputsOf(Case const& testCase)
{
    int32_t const images = testCase.images;
    int32_t const positions = testCase.positions;
    Inputs inputs{{images, positions, testCase.scoreChannels}, {images, positions, testCase.scoreChannels},
        {images, positions, testCase.valueChannels}};
    std::mt19937 generator(1234U + static_cast<uint32_t>(positions * 7 + testCase.scoreChannels));
    std::normal_distribution<double> normal;
    double const scale
        = std::sqrt(spreadOf(testCase.regime) / std::sqrt(std::max(1.0, double(testCase.scoreChannels))));
    for (Tensor* const tensor : {&inputs.query, &inputs.key})
    {
        setAll(*tensor, [&](double) { return scale * normal(generator); });
    }
    setAll(inputs.value, [&](double) { return normal(generator); });
    for (int32_t image = 0; image < images; ++image)
    {
        applyRegime(inputs, testCase, image);
    }
    double const tiny = testCase.type == ElementType::kHALF ? 1e-4 : 1e-19; // products underflow
    constexpr double kGREATEST_HALF{65504};
    for (Tensor* const tensor : {&inputs.query, &inputs.key, &inputs.value})
    {
        if (testCase.regime == "tiny" && tensor != &inputs.value)
        {
            setAll(*tensor, [&](double number) { return number * tiny; });
        }
        if (testCase.regime == "max")
        {
            setAll(*tensor, [&](double number) { return std::copysign(kGREATEST_HALF, number); });
        }
        setAll(*tensor, [&](double number)
            { return floatFromBits(testCase.type, bitsFromFloat(testCase.type, static_cast<float>(number))); });
    }
    return inputs;
}

} // namespace ptx
