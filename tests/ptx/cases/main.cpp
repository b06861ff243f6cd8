//! \file main.cpp
//! run_cases CAPABILITY LIST... [--config N] [--stop]: prints a line per case and the coverage of the kernels'
//! instructions. The exit code is 1 where a case has failed; --stop ends there.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "case.h"
#include "fake_cuda.h"
#include "machine.h"

namespace
{

void printCoverage()
{
    puts("instructions run at least once:");
    for (ptx::Kernel const* const kernel : ptx::allKernels())
    {
        size_t count = 0;
        for (uint64_t const executed : kernel->executed)
        {
            count += executed > 0 ? 1 : 0;
        }
        if (count > 0)
        {
            double const share = 100.0 * static_cast<double>(count) / static_cast<double>(kernel->code.size());
            printf("  %5.1f %% of %5zu  %s\n", share, kernel->code.size(), kernel->name.substr(0, 90).c_str());
        }
    }
}

} // namespace

int main(int argumentCount, char** arguments)
{
    if (argumentCount < 3)
    {
        fprintf(stderr, "usage: run_cases CAPABILITY LIST... [--config N] [--stop]\n");
        return 2;
    }
    ptx::computeCapability = atoi(arguments[1]);
    std::vector<ptx::PlannedCase> cases;
    int32_t config = 0;
    bool stops = false;
    for (int32_t i = 2; i < argumentCount; ++i)
    {
        if (strcmp(arguments[i], "--config") == 0 && i + 1 < argumentCount)
        {
            config = atoi(arguments[++i]);
            continue;
        }
        if (strcmp(arguments[i], "--stop") == 0)
        {
            stops = true;
            continue;
        }
        std::vector<ptx::PlannedCase> const more = ptx::casesOf(arguments[i], ptx::computeCapability);
        if (more.empty())
        {
            fprintf(stderr, "%s: there is no such list, or this GPU runs none of it\n", arguments[i]);
            return 2;
        }
        cases.insert(cases.end(), more.begin(), more.end());
    }
    int32_t count = 0;
    int32_t failures = 0;
    double seconds = 0;
    for (auto const& [testCase, effort] : cases)
    {
        if ((config != 0 && testCase.config != config) || (stops && failures > 0))
        {
            continue;
        }
        ptx::Outcome const outcome = ptx::runCase(testCase, effort);
        ++count;
        failures += outcome.verdict == "ok" ? 0 : 1;
        seconds += outcome.seconds;
        printf("%s runs %d  of bound %.3f  %5.2f s %6.1f M  %s\n", testCase.name().c_str(), outcome.runs,
            outcome.ofBound, outcome.seconds, static_cast<double>(outcome.warpInstructions) / 1e6,
            outcome.verdict.c_str());
        fflush(stdout);
    }
    printf("%d cases, %d failed; %.0f s, %.0f M warp instructions\n", count, failures, seconds,
        static_cast<double>(ptx::machine.warpInstructions) / 1e6);
    printCoverage();
    return failures == 0 && count > 0 ? 0 : 1;
}
