//! \file reference.h
//! Sparsemax attention by its definition, dense and in double precision, and the error that the kernels may make.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace hspan::test
{

constexpr double kUNIT{0x1p-24}; //!< u, the rounding unit of FP32

//! One problem, values as the kernels read them: already rounded to the element type.
struct Problem
{
    int64_t batch{1};
    int64_t scoreChannels{1};
    int64_t valueChannels{1};
    int64_t positions{1};
    std::vector<float> query; //!< (N, C, L)
    std::vector<float> key;   //!< (N, C, L)
    std::vector<float> value; //!< (N, D, L)
};

//! tau with sum_j max(s_j - tau, 0) = 1, by sorting (Martins and Astudillo 2016, algorithm 1). NaN if there is none.
inline double thresholdReference(std::vector<double> scores)
{
    bool const defined = std::none_of(scores.begin(), scores.end(),
        [](double s) { return std::isnan(s) || s == std::numeric_limits<double>::infinity(); });
    std::sort(scores.begin(), scores.end(), std::greater<>{});
    if (!defined || !std::isfinite(scores.front()))
    {
        return std::nan("");
    }
    // Relative to the greatest score, so that huge scores cost no digits of the weights.
    double const greatest = scores.front();
    double sum = 0.0;
    double threshold = 0.0;
    for (size_t k = 0; k < scores.size(); ++k)
    {
        double const shifted = scores[k] - greatest;
        if (1.0 + static_cast<double>(k + 1) * shifted <= sum + shifted)
        {
            break;
        }
        sum += shifted;
        threshold = (sum - 1.0) / static_cast<double>(k + 1);
    }
    return greatest + threshold;
}

//! How the reference computes scores.
enum class Scores
{
    kEXACT,   //!< in double precision
    kREFINED, //!< the same, and the error of refined scores where there are such (FP32)
    kCHAIN,   //!< as the contract says: one FP32 chain of fused multiply-adds over ascending channels
};

//! Scores of row `row` of batch `n`.
inline std::vector<double> scoresReference(Problem const& problem, int64_t n, int64_t row, Scores kind)
{
    float const* const query = problem.query.data() + n * problem.scoreChannels * problem.positions;
    float const* const key = problem.key.data() + n * problem.scoreChannels * problem.positions;
    std::vector<double> scores;
    for (int64_t j = 0; j < problem.positions; ++j)
    {
        double exact = 0.0;
        float chain = 0.0F;
        for (int64_t c = 0; c < problem.scoreChannels; ++c)
        {
            float const q = query[c * problem.positions + row];
            float const k = key[c * problem.positions + j];
            exact += static_cast<double>(q) * k;
            chain = std::fma(q, k, chain);
        }
        scores.push_back(kind == Scores::kCHAIN ? static_cast<double>(chain) : exact);
    }
    return scores;
}

//! The output of one row, per channel, and how far from it the kernels' FP32 result may be.
struct RowReference
{
    std::vector<double> output;    //!< D values
    std::vector<double> tolerance; //!< D values
    int64_t support{0};
};

//! \brief Row `row` of batch `n`.
//!
//! The tolerance: 96 u max |v_j| over the support is the contract given the scores. Against exact scores there is
//! their error too: each score is off by at most delta, the threshold then moves by at most delta, each weight by at
//! most 2 delta, and the weights that move are those of scores above tau - 2 delta. delta is twice the bound of a chain
//! of C operations, C u max_j sum_c |q_c k_cj|. Refined scores (FP32, |q| max |k| at least 1) are rounded once at their
//! distance from the greatest, and their lesser part loses up to C^2 2^-46 |q| max |k|.
inline RowReference rowReference(Problem const& problem, int64_t n, int64_t row, Scores kind)
{
    int64_t const channels = problem.scoreChannels;
    int64_t const positions = problem.positions;
    float const* const query = problem.query.data() + n * channels * positions;
    float const* const key = problem.key.data() + n * channels * positions;
    float const* const value = problem.value.data() + n * problem.valueChannels * positions;
    std::vector<double> const scores = scoresReference(problem, n, row, kind);
    double greatestProducts = 0.0;
    double querySquares = 0.0;
    double keySquares = 0.0;
    for (int64_t j = 0; j < positions; ++j)
    {
        double products = 0.0;
        double squares = 0.0;
        for (int64_t c = 0; c < channels; ++c)
        {
            double const k = key[c * positions + j];
            products += std::fabs(query[c * positions + row] * k);
            squares += k * k;
        }
        greatestProducts = std::max(greatestProducts, products);
        keySquares = std::max(keySquares, squares);
    }
    for (int64_t c = 0; c < channels; ++c)
    {
        querySquares += static_cast<double>(query[c * positions + row]) * query[c * positions + row];
    }
    double const threshold = thresholdReference(scores);
    auto const count = static_cast<double>(channels);
    double const lengths = std::sqrt(querySquares * keySquares);
    double const chain = 2.0 * count * kUNIT * greatestProducts;
    double const refined = 2.0 * kUNIT * (1.0 + count * kUNIT * lengths) + count * count * 0x1p-46 * lengths;
    bool const isRefined = kind == Scores::kREFINED && lengths >= 1.0 && lengths < 0x1p59;
    double const delta = kind == Scores::kCHAIN ? 0.0 : isRefined ? refined : chain;
    RowReference result;
    for (int64_t d = 0; d < problem.valueChannels; ++d)
    {
        double sum = 0.0;
        double greatestValue = 0.0;
        double moving = 0.0;
        result.support = 0;
        for (int64_t j = 0; j < positions; ++j)
        {
            double const weight = scores[static_cast<size_t>(j)] - threshold;
            double const v = value[d * positions + j];
            if (weight > 0.0)
            {
                sum += weight * v;
                result.support += 1;
            }
            if (weight > -2.0 * delta - 1e-5)
            {
                greatestValue = std::max(greatestValue, std::fabs(v));
                moving += std::fabs(v);
            }
        }
        result.output.push_back(std::isnan(threshold) ? threshold : sum);
        result.tolerance.push_back(96.0 * kUNIT * greatestValue + 2.0 * delta * moving);
    }
    return result;
}

} // namespace hspan::test
