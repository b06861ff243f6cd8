//! \file attention_degenerate.cpp
//! Rows of NaN and infinities.
#include <algorithm>
#include <cmath>

#include "attention_cases.h"

namespace hspan::test
{

namespace
{

Problem small(ElementType type, int64_t positions = 70)
{
    return problemOf(type, Regime::kSPARSE, 2, 5, 3, positions);
}

bool rowIsNan(Problem const& problem, std::vector<float> const& output, int64_t n, int64_t row)
{
    bool all = true;
    bool any = false;
    for (int64_t d = 0; d < problem.valueChannels; ++d)
    {
        bool const nan
            = std::isnan(output[static_cast<size_t>((n * problem.valueChannels + d) * problem.positions + row)]);
        all = all && nan;
        any = any || nan;
    }
    check(all == any, "batch ", n, " row ", row, " is NaN in some channels only");
    return all;
}

} // namespace

void addDegenerateRows(ElementType type, Variant variant)
{
    auto const add = [variant, type](std::string const& name, std::function<void()> const& body)
    {
        addTest(name + ", " + kTYPE_NAMES[static_cast<size_t>(type)] + " " + attentionConfigName(variant.config)
                + ", lists of " + std::to_string(variant.capacity),
            [=]
            {
                gVariant = variant;
                body();
            });
    };
    add("a NaN in a query makes its row NaN and no other",
        [type]
        {
            Problem problem = small(type);
            problem.query[static_cast<size_t>(2 * problem.positions + 33)] = NAN;
            std::vector<float> const output = attention(type, problem);
            for (int64_t n = 0; n < problem.batch; ++n)
            {
                for (int64_t row = 0; row < problem.positions; ++row)
                {
                    check(rowIsNan(problem, output, n, row) == (n == 0 && row == 33), "batch ", n, " row ", row);
                }
            }
        });
    add("a NaN in a key makes all rows of its batch NaN and none of another",
        [type]
        {
            Problem problem = small(type);
            problem.key[static_cast<size_t>((5 + 1) * problem.positions + 69)] = NAN;
            std::vector<float> const output = attention(type, problem);
            for (int64_t n = 0; n < problem.batch; ++n)
            {
                for (int64_t row = 0; row < problem.positions; ++row)
                {
                    check(rowIsNan(problem, output, n, row) == (n == 1), "batch ", n, " row ", row);
                }
            }
        });
    add("a score of +inf makes its row NaN, a score of -inf has weight 0",
        [type]
        {
            Problem problem = small(type);
            for (int64_t c = 0; c < problem.scoreChannels; ++c)
            {
                problem.key[static_cast<size_t>(c * problem.positions + 12)] = c == 0 ? kINFINITY : 1.0F;
            }
            std::vector<float> const output = attention(type, problem);
            int64_t nanRows = 0;
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                bool const positive = problem.query[static_cast<size_t>(row)] > 0.0F; // channel 0 decides the sign
                check(rowIsNan(problem, output, 0, row) == positive, "row ", row);
                nanRows += positive ? 1 : 0;
            }
            check(nanRows > 0 && nanRows < problem.positions, "both kinds must occur");
            Problem without = problem;
            for (int64_t c = 0; c < problem.scoreChannels; ++c)
            {
                without.key[static_cast<size_t>(c * problem.positions + 12)] = c == 0 ? -3.0e38F : 0.0F;
            }
            std::vector<float> const same = attention(type, without);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                if (problem.query[static_cast<size_t>(row)] > 0.0F)
                {
                    auto const at = static_cast<size_t>(row);
                    check(!std::isnan(same[at]), "row ", row);
                }
            }
        });
    add("a row of scores that are all -inf is NaN",
        [type]
        {
            Problem problem = problemOf(type, Regime::kSPARSE, 1, 1, 2, 40);
            std::fill(problem.key.begin(), problem.key.end(), -kINFINITY);
            std::fill(problem.query.begin(), problem.query.end(), 1.0F);
            std::vector<float> const output = attention(type, problem);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                check(rowIsNan(problem, output, 0, row), "row ", row);
            }
        });
    add("values of weight 0 may be NaN or infinite, those of the support count",
        [type]
        {
            Problem problem = problemOf(type, Regime::kDOMINANT, 1, 3, 4, 70);
            std::vector<float> const before = attention(type, problem);
            for (int64_t j = 0; j < problem.positions; ++j)
            {
                for (int64_t d = 0; d < problem.valueChannels && j != problem.positions / 2; ++d)
                {
                    problem.value[static_cast<size_t>(d * problem.positions + j)] = j % 2 == 0 ? NAN : -kINFINITY;
                }
            }
            check(attention(type, problem) == before, "a value outside the support entered the sum");
            problem.value[static_cast<size_t>(problem.positions / 2)] = kINFINITY;
            std::vector<float> const infinite = attention(type, problem);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                check(infinite[static_cast<size_t>(row)] == kINFINITY, "row ", row);
            }
        });
    add("a NaN in a value reaches the rows that give it a weight and no others of their warp",
        [type]
        {
            Problem problem = small(type);
            for (float& q : problem.query)
            {
                q *= 0.1F; // supports of a few dozen keys
            }
            // weight[row][j], below zero outside the support
            std::vector<std::vector<double>> weights;
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                weights.push_back(scoresReference(problem, 0, row, Scores::kCHAIN));
                double const threshold = thresholdReference(weights.back());
                for (double& weight : weights.back())
                {
                    weight -= threshold;
                }
            }
            // The first warp must hold rows of both kinds.
            size_t bad = 0;
            auto const isMixed = [&weights](size_t j)
            { return weights[0][j] * weights[1][j] < 0.0 || weights[0][j] * weights[2][j] < 0.0; };
            while (!isMixed(bad))
            {
                bad += 1;
                check(bad < weights.size(), "no key has a weight in one of the rows 0 to 2 and none in another");
            }
            std::vector<float> const before = attention(type, problem);
            for (int64_t d = 0; d < problem.valueChannels; ++d)
            {
                problem.value[static_cast<size_t>(d * problem.positions) + bad] = NAN;
            }
            std::vector<float> const after = attention(type, problem);
            for (int64_t row = 0; row < problem.positions; ++row)
            {
                auto const at = static_cast<size_t>(row);
                double const weight = weights[at][bad];
                check(std::fabs(weight) > 1e-5, "row ", row, " is too close to call");
                check(rowIsNan(problem, after, 0, row) == (weight > 0.0), "row ", row, ": weight ", weight);
                check(weight > 0.0 || after[at] == before[at], "row ", row, " changed");
            }
        });
}

} // namespace hspan::test
