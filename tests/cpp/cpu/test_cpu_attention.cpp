//! \file test_cpu_attention.cpp
//! The CPU kernel against float64 with nothing but a C++ compiler: how other architectures are tested, under emulation.
//!
//! Queries and keys are small integers times a power of two, so that float scores are exact; what remains is the bound
//! of plugins/README.md, 96 u max |v|. Others have scores that lie together at 1e4, where floats are off by 5e-4, and
//! are held to 1e-5 max |v|. The full tests, for the machine at hand, are tests/ops/test_native_attention.py.
#include "hspan_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace
{

using Floats = std::vector<float>;

//! One row of sparsemax by sorting (Martins and Astudillo 2016, algorithm 1).
std::vector<double> sparsemaxReference(std::vector<double> const& scores)
{
    std::vector<double> sorted = scores;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double sum = 0;
    double tau = 0;
    for (size_t k = 0; k < sorted.size(); ++k)
    {
        sum += sorted[k];
        if (1 + (k + 1) * sorted[k] > sum)
        {
            tau = (sum - 1) / (k + 1);
        }
    }
    std::vector<double> weights;
    for (double score : scores)
    {
        weights.push_back(std::max(score - tau, 0.0));
    }
    return weights;
}

HspanCpuTensor tensor(Floats& data, int64_t channels, int64_t positions)
{
    return {data.data(), channels * positions, positions, 1};
}

//! The largest error of one problem, in units of u times the largest value.
//! \param factor of the scores; with a level, their range.
//! \param level where scores lie together; 0 where they are exact floats around 0.
double errorOf(
    int32_t instructionSet, int32_t route, int64_t positions, int64_t c, int64_t d, float factor, float level = 0.0F)
{
    std::mt19937 random(static_cast<uint32_t>(positions * 1000 + c * 10 + d));
    std::uniform_int_distribution<int> integer(-16, 16);
    std::normal_distribution<float> normal;
    Floats query(static_cast<size_t>(c * positions));
    Floats key(query.size());
    Floats value(static_cast<size_t>(d * positions));
    Floats output(value.size(), NAN);
    std::generate(query.begin(), query.end(), [&] { return factor * static_cast<float>(integer(random)); });
    std::generate(key.begin(), key.end(), [&] { return static_cast<float>(integer(random)); });
    if (level != 0.0F)
    {
        float const channel = std::sqrt(level / static_cast<float>(c));
        float const spread = factor / (8 * std::sqrt(level));
        std::fill(query.begin(), query.end(), channel);
        std::generate(key.begin(), key.end(), [&] { return channel + spread * normal(random); });
    }
    std::generate(value.begin(), value.end(), [&] { return normal(random); });
    HspanCpuAttention const attention{tensor(query, c, positions), tensor(key, c, positions),
        tensor(value, d, positions), tensor(output, d, positions), 1, c, d, positions, HSPAN_CPU_FLOAT, 2,
        instructionSet, route, 0, 0};
    if (hspanCpuAttention(&attention) != HSPAN_CPU_OK)
    {
        return INFINITY;
    }
    double largest = 0;
    double error = 0;
    for (float v : value)
    {
        largest = std::max(largest, std::abs(static_cast<double>(v)));
    }
    for (int64_t i = 0; i < positions; ++i)
    {
        std::vector<double> scores(static_cast<size_t>(positions));
        for (int64_t j = 0; j < positions; ++j)
        {
            for (int64_t k = 0; k < c; ++k)
            {
                scores[j] += static_cast<double>(query[k * positions + i]) * key[k * positions + j];
            }
        }
        std::vector<double> const weights = sparsemaxReference(scores);
        for (int64_t k = 0; k < d; ++k)
        {
            double expected = 0;
            for (int64_t j = 0; j < positions; ++j)
            {
                expected += weights[j] * value[k * positions + j];
            }
            double const difference = std::abs(output[k * positions + i] - expected);
            error = difference <= error ? error : difference; // NaN is kept
        }
    }
    return error / largest / 0x1p-24;
}

} // namespace

int main()
{
    if (hspanCpuAbiVersion() != HSPAN_CPU_ABI_VERSION)
    {
        std::printf("ABI version %d\n", hspanCpuAbiVersion());
        return EXIT_FAILURE;
    }
    int failures = 0;
    int problems = 0;
    for (int32_t set = 0; set < hspanCpuInstructionSetCount(); ++set)
    {
        if (hspanCpuInstructionSetRuns(set) == 0)
        {
            continue;
        }
        std::printf("instruction set %s\n", hspanCpuInstructionSetName(set));
        for (int64_t positions : {1, 2, 15, 16, 17, 63, 65, 129, 321})
        {
            for (int64_t c : {1, 3, 24, 96})
            {
                struct Scores
                {
                    float factor;
                    float level;
                    double bound;
                };
                constexpr double kUNITS = 1e-5 / 0x1p-24;
                for (Scores const scores : {Scores{0.25F, 0.0F, 96}, {0x1p-7F, 0.0F, 96}, {0x1p-12F, 0.0F, 96},
                         {0.0F, 0.0F, 96}, {0.01F, 1e4F, kUNITS}, {1.0F, 1e4F, kUNITS}})
                {
                    for (int32_t route : {HSPAN_CPU_ROUTE_AUTOMATIC, HSPAN_CPU_ROUTE_GATHER, HSPAN_CPU_ROUTE_DENSE})
                    {
                        int64_t const d = 1 + (positions + c) % 19;
                        double const error = errorOf(set, route, positions, c, d, scores.factor, scores.level);
                        ++problems;
                        if (!(error <= scores.bound))
                        {
                            std::printf("L %ld C %ld D %ld factor %g level %g route %d: %g u\n",
                                static_cast<long>(positions), static_cast<long>(c), static_cast<long>(d),
                                static_cast<double>(scores.factor), static_cast<double>(scores.level), route, error);
                            ++failures;
                        }
                    }
                }
            }
        }
    }
    std::printf("%d of %d problems failed\n", failures, problems);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
