//! \file mutation_probe.cpp
//! A short look at the tiled kernels, compiled against a copy of their source that has been broken on purpose: it must
//! fail then, and pass with the source as it is. tests/plugins/test_emulated_kernels.py breaks and compiles.
#include <random>

#include <simt.h>

#include "check.h"
#include "guarded_buffer.h"
#include "reference.h"

// Compiled here, these take the place of the library's.
#include "lower_bound_sm80.cu"
#include "sparsemax_attention.cpp"
#include "tiled_attention_half_sm80.cu"

using namespace hspan;
using namespace hspan::test;

namespace
{

std::vector<simt::Half> halves(std::vector<float>& values)
{
    std::vector<simt::Half> result;
    for (float& value : values)
    {
        result.push_back(simt::fromFloat<simt::Half>(value));
        value = simt::toFloat(result.back());
    }
    return result;
}

//! Queries of order 1, keys as they are given, values of order 1.
void checkProblem(std::vector<float> key, int64_t channels, int32_t capacity, simt::emulation::LaneOrder order)
{
    std::mt19937 generator{7};
    std::normal_distribution<float> normal;
    Problem problem{1, channels, 20, static_cast<int64_t>(key.size()) / channels, {}, std::move(key), {}};
    for (size_t i = 0; i < problem.key.size(); ++i)
    {
        problem.query.push_back(channels == 1 ? 1.0F : normal(generator));
    }
    for (int64_t i = 0; i < 20 * problem.positions; ++i)
    {
        problem.value.push_back(normal(generator));
    }
    std::vector<simt::Half> const q = halves(problem.query);
    std::vector<simt::Half> const k = halves(problem.key);
    std::vector<simt::Half> const v = halves(problem.value);
    std::vector<simt::Half> output(v.size(), simt::Half{0x7e00});
    AttentionProblem const attention{ElementType::kHALF, TensorLayout::kLINEAR, {1, channels, 20, problem.positions}};
    GuardedBuffer const workspace{static_cast<size_t>(tiledWorkspace(attention, capacity).bytes)};
    simt::emulation::options() = {order, 3, 86, capacity == 0 ? 1 : 8};
    cudaError_t const status = launchWithCapacity(
        attention, kTILED_CONFIG, capacity, {q.data(), k.data(), v.data(), output.data(), workspace.data()}, nullptr);
    check(status == cudaSuccess, simt::emulation::lastError());
    for (int64_t row = 0; row < problem.positions; ++row)
    {
        RowReference const expected = rowReference(problem, 0, row, Scores::kEXACT);
        for (int64_t d = 0; d < 20; ++d)
        {
            float const got = simt::toFloat(output[static_cast<size_t>(d * problem.positions + row)]);
            double const want = expected.output[static_cast<size_t>(d)];
            double const most = expected.tolerance[static_cast<size_t>(d)] + std::fabs(want) * 0x1p-11 + 0x1p-25;
            check(std::fabs(got - want) <= most, "row ", row, " channel ", d, ": got ", got, ", expected ", want);
        }
    }
}

} // namespace

int main()
{
    using simt::emulation::LaneOrder;
    for (LaneOrder const order : {LaneOrder::kFORWARD, LaneOrder::kREVERSE, LaneOrder::kSHUFFLED})
    {
        for (int32_t const capacity : {0, 100, 16})
        {
            std::string const suffix
                = ", lists of " + std::to_string(capacity) + ", order " + std::to_string(static_cast<int32_t>(order));
            addTest("scores of some spread" + suffix,
                [=]
                {
                    std::mt19937 generator{5};
                    std::normal_distribution<float> normal;
                    std::vector<float> key(24 * 150);
                    for (float& number : key)
                    {
                        number = 0.1F * normal(generator);
                    }
                    checkProblem(key, 24, capacity, order);
                });
            addTest("many equal scores" + suffix,
                [=]
                {
                    std::vector<float> key;
                    for (int32_t j = 0; j < 150; ++j)
                    {
                        key.push_back(static_cast<float>(j / 10 % 3) * 0.015625F);
                    }
                    checkProblem(key, 1, capacity, order);
                });
        }
    }
    return runAll();
}
