//! \file test_attention.cpp
//! The operator on emulated hardware against its definition, at sizes and inputs that invite mistakes.
//! Argument: the lane order, forward, reverse or shuffled.
#include <algorithm>
#include <cmath>
#include <string>

#include "attention_cases.h"

using namespace hspan;
using namespace hspan::test;

namespace
{

void addSizes(bool all)
{
    constexpr int64_t kLENGTHS[] = {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 577, 1025};
    constexpr int64_t kSCORE_CHANNELS[] = {1, 3, 16, 24, 96, 128};
    constexpr int64_t kVALUE_CHANNELS[] = {1, 5, 24, 64, 192};
    // Every length meets every regime; channels, batch and type go round so that all neighboring pairs occur.
    // The configurations that serve a type do too, as do layouts and capacities, those that overflow among them.
    constexpr int32_t kCAPACITIES[] = {0, 16, 0, 64, 100};
    constexpr int32_t kMULTIPROCESSORS[] = {1, 4, 16, 132};
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
            variant.multiprocessors = kMULTIPROCESSORS[turn % std::size(kMULTIPROCESSORS)];
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
            float number[64] = {}; // the launch with too many slices is refused after its first kernel
            auto const launch = [&](AttentionShape const& shape)
            {
                return launchSparsemaxAttention({ElementType::kFLOAT, TensorLayout::kLINEAR, shape}, kAUTOMATIC_CONFIG,
                    number, number, number, number, number, nullptr);
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
            check(launchSparsemaxAttention({unknown, TensorLayout::kLINEAR, {1, 1, 1, 1}}, kAUTOMATIC_CONFIG, number,
                      number, number, number, number, nullptr)
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

} // namespace

int main(int argc, char** argv)
{
    std::string const order = argc > 1 ? argv[1] : "forward";
    gLaneOrder = order == "reverse" ? 1 : order == "shuffled" ? 2 : 0;
    bool const all = order == "forward";
    addSizes(all);
    addDegenerateRows(ElementType::kFLOAT, {1, 0, TensorLayout::kLINEAR});
    addDegenerateRows(ElementType::kFLOAT, {});
    addDegenerateRows(ElementType::kFLOAT, {2, 16, TensorLayout::kCHANNELS_LAST});
    addDegenerateRows(ElementType::kHALF, {});
    addDegenerateRows(ElementType::kHALF, {2, 16, TensorLayout::kCHANNELS_LAST});
    addDegenerateRows(ElementType::kBFLOAT16, {2, 40, TensorLayout::kLINEAR, 40});
    addProperties();
    addRoutes(all);
    return runAll();
}
