//! \file test_coarse_scores.cpp
//! Coarse scores of FP32 operands lie within the error that is stated of them, which is no greater than it has to be.
#include <cmath>
#include <functional>
#include <random>

#include <simt.h>

#include "check.h"
#include "coarse_copies.cuh"
#include "two_looks.cuh"

using namespace hspan;
using namespace hspan::test;

namespace
{

constexpr int64_t kCHANNELS{24};
constexpr int64_t kPOSITIONS{70};
constexpr float kINFINITY{std::numeric_limits<float>::infinity()};

using Vectors = std::vector<float>; // (L, C)
using Element = std::function<float(int64_t position, int64_t channel)>;

Vectors vectorsOf(Element const& element)
{
    Vectors vectors;
    for (int64_t i = 0; i < kPOSITIONS; ++i)
    {
        for (int64_t c = 0; c < kCHANNELS; ++c)
        {
            vectors.push_back(element(i, c));
        }
    }
    return vectors;
}

Vectors randomVectors(uint32_t seed, std::function<float(int64_t, int64_t)> const& scale)
{
    std::mt19937 generator{seed};
    std::normal_distribution<float> normal;
    return vectorsOf([&](int64_t i, int64_t c) { return normal(generator) * scale(i, c); });
}

//! What the kernels make of queries and keys.
struct Copies
{
    Copies(Vectors const& query, Vectors const& key)
    {
        simt::emulation::options() = {simt::emulation::LaneOrder::kSHUFFLED, 1, 86, 1};
        LookCall call{};
        call.problem = {ElementType::kFLOAT, TensorLayout::kCHANNELS_LAST, {1, kCHANNELS, 4, kPOSITIONS}};
        call.workspace = tiledWorkspace(call.problem, 0);
        memory.resize(static_cast<size_t>(call.workspace.bytes) / sizeof(uint64_t));
        call.pointers = {query.data(), key.data(), nullptr, nullptr, memory.data()};
        cudaError_t const status
            = makeCoarseCopies(call, tiledArguments<float>(call.problem, call.workspace, call.pointers));
        check(status == cudaSuccess, simt::emulation::lastError());
        auto* const bytes = reinterpret_cast<unsigned char*>(memory.data());
        queries = reinterpret_cast<simt::Half const*>(bytes + call.workspace.coarseQuery);
        keys = reinterpret_cast<simt::Half const*>(bytes + call.workspace.coarseKey);
        rows = reinterpret_cast<CoarseRow const*>(bytes + call.workspace.coarseRows);
    }

    std::vector<uint64_t> memory;
    simt::Half const* queries;
    simt::Half const* keys;
    CoarseRow const* rows;
};

//! The greatest error of a coarse score, against exact ones and FP32's chains, as a share of what is stated.
double greatestShare(Vectors const& query, Vectors const& key)
{
    Copies const copies{query, key};
    double greatest = 0.0;
    for (int64_t i = 0; i < kPOSITIONS; ++i)
    {
        CoarseRow const& row = copies.rows[i];
        check(std::isfinite(row.error), "row ", i, " has no error");
        for (int64_t j = 0; j < kPOSITIONS; ++j)
        {
            double exact = 0.0;
            double coarse = 0.0;
            float chain = 0.0F;
            for (int64_t c = 0; c < kCHANNELS; ++c)
            {
                auto const q = static_cast<size_t>(i * kCHANNELS + c);
                auto const k = static_cast<size_t>(j * kCHANNELS + c);
                exact += static_cast<double>(query[q]) * key[k];
                coarse += static_cast<double>(simt::toFloat(copies.queries[q])) * simt::toFloat(copies.keys[k]);
                chain = std::fma(query[q], key[k], chain);
            }
            double const stated = row.error * static_cast<double>(row.toScore);
            double const score = coarse * row.toScore + row.shift;
            // Numbers below 2^-126 have fewer digits; the lists' bound has a margin for that.
            double const error = std::fmax(std::fabs(score - exact), std::fabs(score - chain) - 0x1p-140);
            check(error <= stated, "row ", i, ", key ", j, ": off by ", error, ", stated: ", stated);
            greatest = std::fmax(greatest, error / stated);
        }
    }
    return greatest;
}

bool isUnknown(CoarseRow const& row)
{
    return row.error == kINFINITY;
}

} // namespace

int main()
{
    addTest("where every element loses as much as it can, the error is what is stated, nearly",
        []
        {
            // Half a unit in the last place of FP16, less a little, so that it is rounded down.
            // Keys of both signs have the center 0.
            Vectors const up = vectorsOf([](int64_t, int64_t) { return 1.0F + 0x1p-11F - 0x1p-20F; });
            Vectors const both = vectorsOf([&](int64_t i, int64_t) { return i % 2 == 0 ? up[0] : -up[0]; });
            double const share = greatestShare(up, both);
            check(share > 0.9, "only ", share, " of it");
        });
    addTest("it covers vectors of every length and elements of every size beside each other",
        []
        {
            for (double const exponent : {-12.0, -6.0, 0.0, 6.0, 12.0})
            {
                auto const length = [=](int64_t i, int64_t) { return std::pow(10.0F, exponent * i / kPOSITIONS); };
                auto const spread
                    = [=](int64_t, int64_t c) { return std::pow(10.0F, exponent * (c / (kCHANNELS - 1.0) - 0.5)); };
                double const share = std::fmax(greatestShare(randomVectors(1, length), randomVectors(2, spread)),
                    greatestShare(randomVectors(3, spread), randomVectors(4, length)));
                check(share > 0.0, "nothing was lost");
            }
        });
    addTest("it covers vectors that are zero and such whose squares underflow",
        []
        {
            for (float const scale : {0.0F, 1e-44F, 1e-38F, 1e-24F, 1e-15F})
            {
                Vectors const tiny = randomVectors(5, [=](int64_t i, int64_t) { return i % 3 == 0 ? scale : 1e-20F; });
                greatestShare(tiny, randomVectors(6, [](int64_t, int64_t) { return 1.0F; }));
                greatestShare(tiny, randomVectors(6, [](int64_t, int64_t) { return 1e15F; }));
                greatestShare(randomVectors(6, [](int64_t, int64_t) { return 1.0F; }), tiny);
            }
        });
    addTest("nothing is known of a query that is not finite, and of no other row",
        []
        {
            Vectors const key = randomVectors(7, [](int64_t, int64_t) { return 1.0F; });
            for (float const number : {NAN, kINFINITY, -kINFINITY, 3e38F})
            {
                Vectors query = key;
                query[33 * kCHANNELS + 5] = number;
                Copies const copies{query, key};
                for (int64_t i = 0; i < kPOSITIONS; ++i)
                {
                    check(isUnknown(copies.rows[i]) == (i == 33), "row ", i, " with ", number);
                }
            }
        });
    addTest("nothing is known where a key is not finite or products may overflow",
        []
        {
            Vectors const query = randomVectors(8, [](int64_t, int64_t) { return 1e12F; });
            for (float const number : {NAN, kINFINITY, -kINFINITY, 3e38F, 1e18F})
            {
                Vectors key = query;
                key[33 * kCHANNELS + 5] = number;
                Copies const copies{query, key};
                for (int64_t i = 0; i < kPOSITIONS; ++i)
                {
                    check(isUnknown(copies.rows[i]), "row ", i, " with ", number);
                }
            }
        });
    return runAll();
}
