//! \file refinement.h
//! Scores in double, for rows where the rounding of float scores would show in the output.
//!
//! Subtracting a constant from a row changes no weight. Of a row that is refined, the scores that can matter are
//! computed again in double from the tensors, where products are exact, and what is kept as a float is their distance
//! from one of the greatest. Only scores within 1 of the maximum matter, so that rounds by less than u, however large
//! the scores are. README.md derives when a row is refined and why no score of the support is lost.
#pragma once

#include "threshold.h"
#include "workspace.h"

namespace hspan::cpu
{
namespace
{

//! A row is refined when sqrt(C) |q| max |k|, its scores' likely error in units of u, is greater.
constexpr double likelyErrorAllowed(float)
{
    return 16;
}

constexpr double likelyErrorAllowed(Half)
{
    return 0x1p24 * 0x1p-11 / 32; // the output's own unit of rounding is 2^-11
}

constexpr double likelyErrorAllowed(BFloat16)
{
    return 0x1p24 * 0x1p-8 / 32;
}

//! The greatest Euclidean norm among the positions that contain neither an infinity nor a NaN.
template <typename T>
double largestNorm(Tensor<T> tensor, int64_t channels, int64_t positions)
{
    constexpr int64_t kBLOCK = 64;
    double largest = 0;
    for (int64_t first = 0; first < positions; first += kBLOCK)
    {
        int64_t const count = lesser(kBLOCK, positions - first);
        double sum[kBLOCK] = {};
        if (tensor.positionStride == 1)
        {
            for (int64_t c = 0; c < channels; ++c)
            {
                T const* source = tensor.at(c, first);
                for (int64_t i = 0; i < count; ++i)
                {
                    double const x = widened(source[i]);
                    sum[i] += x * x;
                }
            }
        }
        else
        {
            for (int64_t i = 0; i < count; ++i)
            {
                T const* source = tensor.at(0, first + i);
                for (int64_t c = 0; c < channels; ++c)
                {
                    double const x = widened(source[c * tensor.channelStride]);
                    sum[i] += x * x;
                }
            }
        }
        for (int64_t i = 0; i < count; ++i)
        {
            largest = sum[i] > largest && sum[i] < __builtin_inf() ? sum[i] : largest;
        }
    }
    return __builtin_sqrt(largest);
}

//! A row's query in the packed tile; one channel to the next is kROWS away.
HSPAN_INLINE float const* packedQuery(Problem const& problem, Workspace const& w, int64_t r)
{
    return w.query + r / kROWS * kROWS * problem.scoreChannels + r % kROWS;
}

//! Euclidean norms of the queries of kROWS rows of the tile, from row `start` on.
void queryNorms(Problem const& problem, Workspace const& w, int64_t start, double (&norms)[kROWS])
{
    float const* query = packedQuery(problem, w, start);
    double sum[kROWS] = {};
    for (int64_t c = 0; c < problem.scoreChannels; ++c)
    {
        for (int64_t i = 0; i < kROWS; ++i)
        {
            double const x = query[c * kROWS + i];
            sum[i] += x * x;
        }
    }
    for (int64_t i = 0; i < kROWS; ++i)
    {
        norms[i] = __builtin_sqrt(sum[i]);
    }
}

//! The first key with the row's greatest score.
int64_t firstLargest(Workspace const& w, int64_t r)
{
    float const* scores = w.scores + r * w.stride;
    float const* maxima = w.maxima + r * w.groups * kLANES;
    Vec maximum = load(maxima);
    for (int64_t g = 1; g < w.groups; ++g)
    {
        maximum = larger(load(maxima + g * kLANES), maximum);
    }
    float const largest = largestLane(maximum);
    int64_t group = 0;
    while (largestLane(load(maxima + group * kLANES)) < largest)
    {
        ++group;
    }
    int64_t j = group * kGROUP * kWIDTH;
    while (scores[j] < largest)
    {
        ++j;
    }
    return j;
}

//! Whether and how row `r` of the tile is refined. Depends on the row and the image's keys, on nothing else.
//! \param norm of its query.
//! \param bound not above the threshold of the float scores; lowered here so that every score above it that matters,
//!     as exact scores have it, has a float score above it too.
template <typename T>
Refinement refinementOf(Problem const& problem, Workspace const& w, int64_t r, double norm, double& bound)
{
    double const channels = static_cast<double>(problem.scoreChannels);
    double const product = norm * problem.largestKeyNorm;
    if (!(__builtin_sqrt(channels) * product > likelyErrorAllowed(T{})))
    {
        return {};
    }
    // Cauchy-Schwarz on the bound of a chain of C sums: no score is further from its float than this.
    double const relative = (channels + 3) * kROUNDING;
    double const largestError = product * (relative < 0.5 ? relative / (1 - relative) : 1);
    bound -= 2 * largestError;
    Tensor<T> const key(problem.key);
    int64_t const j = firstLargest(w, r);
    float const* query = packedQuery(problem, w, r);
    double shift = 0;
    for (int64_t c = 0; c < problem.scoreChannels; ++c)
    {
        shift += static_cast<double>(query[c * kROWS]) * widened(*key.at(c, j));
    }
    // Rounding the shifted scores to float moves their threshold, too.
    return {true, floatBelow(bound - shift - 4 * kROUNDING * (1 + 2 * largestError)), shift};
}

//! The threshold of a row of shifted scores, from which their maximum is subtracted first.
//! \param bound as in Refinement.
Split refinedThreshold(float* scores, int64_t vectors, float bound)
{
    Vec maximum = load(scores);
    for (int64_t v = 1; v < vectors; ++v)
    {
        maximum = larger(load(scores + v * kLANES), maximum);
    }
    float const largest = largestLane(maximum);
    for (int64_t v = 0; v < vectors; ++v)
    {
        store(scores + v * kLANES, load(scores + v * kLANES) - broadcast(largest));
    }
    double const below = static_cast<double>(bound) - largest;
    return threshold(scores, vectors, below > -1 ? below : -1);
}

//! Exact scores of the listed rows that wait for them, less the row's shift, in the place of the float scores.
//! Keys are packed for all rows together, as many as fit into a cache.
template <typename T>
void refineListed(Problem const& problem, Workspace& w)
{
    Tensor<T> const query(problem.query);
    Tensor<T> const key(problem.key);
    for (int64_t c = problem.scoreChannels; c < w.slices * kLANES; ++c)
    {
        w.queryRow[c] = 0;
    }
    for (int64_t first = 0; first < problem.positions; first += w.span)
    {
        int64_t const last = lesser(first + w.span, problem.positions);
        for (int64_t s = 0; s < w.slices; ++s)
        {
            packChannels<kLANES>(
                key, s * kLANES, problem.scoreChannels, first, last - first, w.slab + s * w.span * kLANES);
        }
        for (ListedRow* row = w.rows; row < w.rows + w.rowsUsed; ++row)
        {
            // Keys of a row ascend.
            int32_t const* index = w.index + row->begin;
            int32_t e = row->refined;
            if (e < 0 || e == row->count || index[e] >= last)
            {
                continue;
            }
            for (int64_t c = 0; c < problem.scoreChannels; ++c)
            {
                w.queryRow[c] = widened(*query.at(c, row->row));
            }
            for (; e < row->count && index[e] < last; ++e)
            {
                float const* keyRow = w.slab + (index[e] - first) * kLANES;
                Doubles sum[2] = {};
                for (int64_t s = 0; s < w.slices; ++s)
                {
                    double const* factors = w.queryRow + s * kLANES;
                    float const* numbers = keyRow + s * w.span * kLANES;
                    sum[0] += load(factors) * loadWidened(numbers);
                    sum[1] += load(factors + kDOUBLES) * loadWidened(numbers + kDOUBLES);
                }
                w.listed[row->begin + e] = static_cast<float>(sumOfLanes(sum[0] + sum[1]) - row->shift);
            }
            row->refined = e;
        }
    }
}

//! result[i] = over the channels of the row's query times key i of a panel. A function of its own: the compiler then
//! keeps the sums in registers.
__attribute__((noinline)) void multiplyExactly(
    float const* query, float const* panel, int64_t channels, double (&result)[kWIDTH])
{
    constexpr int64_t kPARTS = kWIDTH / kDOUBLES;
    Doubles sum[kPARTS] = {};
    for (int64_t c = 0; c < channels; ++c)
    {
        Doubles const factor = static_cast<double>(query[c * kROWS]) - Doubles{};
#pragma GCC unroll 4
        for (int64_t i = 0; i < kPARTS; ++i)
        {
            sum[i] += factor * loadWidened(panel + c * kWIDTH + i * kDOUBLES);
        }
    }
    for (int64_t i = 0; i < kPARTS; ++i)
    {
        store(result + i * kDOUBLES, sum[i]);
    }
}

//! Exact scores of the tile's dense rows that need them, less the row's shift, in the place of the float scores.
//! What is -inf as a float stays that.
template <typename T>
void refineDense(Problem const& problem, Workspace& w, int64_t denseRows)
{
    bool isNeeded = false;
    for (int64_t i = 0; i < denseRows; ++i)
    {
        isNeeded |= w.dense[i].refinement.isNeeded;
    }
    float const lowest = -__builtin_inff();
    for (int64_t p = 0; isNeeded && p < w.panels; ++p)
    {
        float const* panel = panelOfKeys<T>(problem, w, p);
        for (DenseRow const* row = w.dense; row < w.dense + denseRows; ++row)
        {
            if (!row->refinement.isNeeded)
            {
                continue;
            }
            double exact[kWIDTH];
            multiplyExactly(packedQuery(problem, w, row->row), panel, problem.scoreChannels, exact);
            float* scores = w.scores + row->row * w.stride + p * kWIDTH;
            for (int64_t i = 0; i < kWIDTH; ++i)
            {
                float const shifted = static_cast<float>(exact[i] - row->refinement.shift);
                scores[i] = scores[i] > lowest ? shifted : lowest;
            }
        }
    }
}

} // namespace
} // namespace hspan::cpu
