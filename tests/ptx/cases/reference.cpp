#include <algorithm>
#include <cmath>
#include <functional>

#include "case.h"

namespace ptx
{

using hspan::ElementType;

namespace
{

constexpr double kUNIT{0x1p-24}; // the rounding unit of FP32

//! Scores of one row, and what bounds their error.
struct Scores
{
    std::vector<double> numbers;
    double greatest{-INFINITY};
    double greatestProducts{}; //!< the most that sum |q_c k_c| comes to
    double length{};           //!< |q|
    bool isDegenerate{};       //!< a NaN or +inf among them
};

Scores scoresOf(Inputs const& inputs, int32_t image, int32_t row)
{
    Scores scores;
    int32_t const channels = inputs.query.channels;
    double const* const query = &inputs.query.numbers[inputs.query.index(image, row, 0)];
    for (int32_t c = 0; c < channels; ++c)
    {
        scores.length += query[c] * query[c];
    }
    scores.length = std::sqrt(scores.length);
    for (int32_t j = 0; j < inputs.key.positions; ++j)
    {
        double const* const key = &inputs.key.numbers[inputs.key.index(image, j, 0)];
        double sum = 0;
        double products = 0;
        for (int32_t c = 0; c < channels; ++c)
        {
            sum += query[c] * key[c];
            products += std::fabs(query[c] * key[c]);
        }
        scores.numbers.push_back(sum);
        scores.greatest = std::max(scores.greatest, sum);
        scores.greatestProducts
            = std::isfinite(products) ? std::max(scores.greatestProducts, products) : scores.greatestProducts;
        scores.isDegenerate = scores.isDegenerate || sum != sum || sum == INFINITY;
    }
    return scores;
}

//! tau by sorting (Martins and Astudillo 2016, algorithm 1).
double thresholdOf(Scores const& scores)
{
    std::vector<double> sorted = scores.numbers;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double sum = 0;
    for (size_t j = 0; j < sorted.size(); ++j)
    {
        sum += sorted[j] - scores.greatest;
        double const threshold = scores.greatest + (sum - 1) / static_cast<double>(j + 1);
        if (j + 1 == sorted.size() || sorted[j + 1] <= threshold)
        {
            return threshold;
        }
    }
    return NAN;
}

double longestKey(Tensor const& key, int32_t image)
{
    double longest = 0;
    for (int32_t j = 0; j < key.positions; ++j)
    {
        double sum = 0;
        for (int32_t c = 0; c < key.channels; ++c)
        {
            sum += key.at(image, j, c) * key.at(image, j, c);
        }
        longest = std::isfinite(sum) ? std::max(longest, std::sqrt(sum)) : longest;
    }
    return longest;
}

//! How far a score may be off: twice the bound of a chain of C multiply-adds, or the bound of refined scores.
double scoreError(Case const& testCase, Scores const& scores, double longest)
{
    double const channels = testCase.scoreChannels;
    bool const isRefined = testCase.type == ElementType::kFLOAT && scores.length * longest >= 1;
    return isRefined ? kUNIT + channels * channels * 0x1p-46 * scores.length * longest
                     : 2 * channels * kUNIT * scores.greatestProducts;
}

} // namespace

Reference referenceOf(Case const& testCase, Inputs const& inputs)
{
    Tensor const& value = inputs.value;
    Reference reference{std::vector<double>(value.numbers.size()), std::vector<double>(value.numbers.size()), 0};
    // Weights of two numbers of 16 bits on the dense route, and sums of 512 products.
    bool const hasDense = testCase.type != ElementType::kFLOAT;
    double const denseError = hasDense ? 0x1p-17 + (130 + value.positions / 512.0) * kUNIT : 0;
    for (int32_t image = 0; image < value.images; ++image)
    {
        double const longest = longestKey(inputs.key, image);
        for (int32_t row = 0; row < value.positions; ++row)
        {
            double* const outputs = &reference.outputs[value.index(image, row, 0)];
            Scores const scores = scoresOf(inputs, image, row);
            if (scores.isDegenerate || scores.greatest == -INFINITY)
            {
                std::fill_n(outputs, value.channels, NAN);
                continue;
            }
            double const threshold = thresholdOf(scores);
            double const error = scoreError(testCase, scores, longest);
            double near = 0; // scores whose weight may be off
            double greatest = 0;
            for (int32_t j = 0; j < value.positions; ++j)
            {
                double const weight = scores.numbers[static_cast<size_t>(j)] - threshold;
                double const* const values = &value.numbers[value.index(image, j, 0)];
                bool const isNear = weight > -2 * error;
                near += isNear ? 1 : 0;
                for (int32_t c = 0; c < value.channels; ++c)
                {
                    outputs[c] += weight > 0 ? weight * values[c] : 0;
                    greatest = isNear && std::isfinite(values[c]) ? std::max(greatest, std::fabs(values[c])) : greatest;
                }
            }
            for (int32_t c = 0; c < value.channels; ++c)
            {
                reference.greatest = std::isfinite(outputs[c]) ? std::max(reference.greatest, std::fabs(outputs[c]))
                                                               : reference.greatest;
            }
            double const tolerance = (96 * kUNIT + 2 * error * near + denseError) * greatest;
            std::fill_n(&reference.tolerances[value.index(image, row, 0)], value.channels, tolerance);
        }
    }
    return reference;
}

} // namespace ptx
