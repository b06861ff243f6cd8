//! \file attention_routes.cpp
//! Lists, the dense route, tile shapes and workspaces.
#include <algorithm>
#include <array>

#include <simt.h>

#include "attention_cases.h"

namespace hspan::test
{

namespace
{

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

//! Whether a row took the dense route.
bool isDense(Problem const& problem, int32_t capacity)
{
    gVariant = {2, capacity, TensorLayout::kLINEAR};
    std::vector<float> const output = attention(ElementType::kHALF, problem);
    int64_t const products = hspanEmulatedProducts();
    compare(ElementType::kHALF, problem, output, Scores::kEXACT, 1);
    return products > 0;
}

} // namespace

void addRoutes(bool all)
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
    addTest("a row that overflows changes no other row",
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
            for (int64_t row = 0; row < 200; row += row == 8 ? 2 : 1) // all but row 9
            {
                for (int64_t d = 0; d < 24; ++d)
                {
                    auto const at = static_cast<size_t>(d * 200 + row);
                    check(after[at] == before[at], "row ", row, " changed");
                }
            }
        });
    addTest("splits of rows and keys agree bit by bit, whatever their lists hold",
        [=]
        {
            // Of 200 positions: one split, two of maxima, four and two, four of both.
            constexpr int32_t kMULTIPROCESSORS[] = {1, 8, 24, 132};
            constexpr Regime kOF[] = {Regime::kSPARSE, Regime::kDENSE, Regime::kTIES};
            constexpr int32_t kCAPACITIES[] = {0, 20, 120};
            // Types go round unless all combinations are run; each then meets every regime and every capacity.
            for (size_t turn = 0; turn < 9; ++turn)
            {
                for (size_t i = 0; i < (all ? 2 : 1); ++i)
                {
                    ElementType const type = (turn + i) % 2 == 0 ? ElementType::kHALF : ElementType::kBFLOAT16;
                    Problem const problem = problemOf(type, kOF[turn / 3], 1, 24, 40, 200);
                    std::vector<float> first;
                    for (int32_t const multiprocessors : kMULTIPROCESSORS)
                    {
                        gVariant = {
                            2, kCAPACITIES[turn % 3], static_cast<TensorLayout>(multiprocessors % 2), multiprocessors};
                        std::vector<float> const output = attention(type, problem);
                        check(first.empty() || output == first, multiprocessors, " multiprocessors differ");
                        first = output;
                    }
                    compare(type, problem, first, Scores::kEXACT, 1);
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
                // Copies of 2 (96 + 96 + 192) bytes per position, and 16384 rows with lists of 1728 entries, 576 maxima
                // and 32 lengths of shares.
                size_t const lists = 16384U * (32U + 8U + 1728U * 8U + 576U * 4U + 32U * 4U);
                check(bytes(1, 96, 192, 65536) <= 65536U * 768U + lists, "more than the README says");
            }
        });
    addTest("the workspace is at most twice that of plugin ABI 3, whose lists had 1,024 entries and no maxima",
        []
        {
            auto const padded = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
            for (ElementType const type : {ElementType::kFLOAT, ElementType::kHALF})
            {
                for (int64_t const l : {1, 2, 40, 128, 576, 1024, 1728, 9216, 65536, 1 << 20})
                {
                    for (auto const& [n, c, d] : {std::array<int64_t, 3>{1, 1, 1}, {1, 16, 32}, {4, 96, 192}})
                    {
                        int64_t const element = type == ElementType::kFLOAT ? 4 : 2;
                        int64_t const copies = padded(element * n * l * ((c + 7) / 8 * 8));
                        int64_t const rows = std::min<int64_t>(n * ((l + 127) / 128 * 128), 16384);
                        int64_t const keys = type == ElementType::kFLOAT ? 4 * n * ((l + 31) / 32) : 0;
                        int64_t const before = 2 * copies + padded(element * n * l * ((d + 7) / 8 * 8))
                            + padded(32 * rows) + padded(8 * rows * std::min<int64_t>(l, 1024)) + padded(keys);
                        size_t const now = attentionWorkspaceBytes({type, TensorLayout::kLINEAR, {n, c, d, l}}, 2);
                        check(now <= 2 * static_cast<size_t>(before), "N ", n, " C ", c, " L ", l, ": ", now,
                            " bytes instead of ", before);
                    }
                }
            }
        });
}

} // namespace hspan::test
