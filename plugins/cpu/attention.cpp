//! \file attention.cpp
//! The C functions: checks, choice of the instruction set, memory, threads. No arithmetic.
#include "hspan_cpu.h"
#include "problem.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#ifndef HSPAN_SOURCE_SHA256
#define HSPAN_SOURCE_SHA256 ""
#endif

namespace hspan::cpu
{
namespace
{

//! Readable in the file as well, so that it can be compared without loading the library.
constexpr char kMARKED_HASH[] = "hspan-cpu-source-sha256=" HSPAN_SOURCE_SHA256;
constexpr size_t kMARKER_LENGTH = sizeof "hspan-cpu-source-sha256=" - 1;

Kernel const* const kKERNELS[] = {
#if defined(HSPAN_CPU_X86)
    &kAVX512_KERNEL,
    &kAVX2_KERNEL,
#endif
    &kBASELINE_KERNEL,
};
constexpr int32_t kKERNEL_COUNT = sizeof kKERNELS / sizeof kKERNELS[0];

bool runsHere(int32_t index)
{
#if defined(HSPAN_CPU_X86)
    __builtin_cpu_init();
    if (index == 0)
    {
        return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0
            && __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
    }
    if (index == 1)
    {
        return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0
            && __builtin_cpu_supports("bmi") != 0;
    }
#endif
    return index >= 0 && index < kKERNEL_COUNT;
}

//! The kernel that the arguments ask for; null when this processor cannot run it.
Kernel const* chosenKernel(int32_t instructionSet)
{
    if (instructionSet >= 0)
    {
        return runsHere(instructionSet) ? kKERNELS[instructionSet] : nullptr;
    }
    int32_t index = 0;
    while (!runsHere(index))
    {
        ++index; // the baseline runs everywhere
    }
    return kKERNELS[index];
}

bool isValid(HspanCpuAttention const* a)
{
    constexpr int64_t kMOST = INT32_MAX;
    if (a == nullptr || a->batch < 1 || a->positions < 1 || a->scoreChannels < 1 || a->valueChannels < 1)
    {
        return false;
    }
    if (a->positions > kMOST || a->scoreChannels > kMOST || a->valueChannels > kMOST || a->threads < 1)
    {
        return false;
    }
    if (a->type < HSPAN_CPU_FLOAT || a->type > HSPAN_CPU_BFLOAT16 || a->tileRows < 0 || a->gatherLimit < 0)
    {
        return false;
    }
    if (a->route < HSPAN_CPU_ROUTE_AUTOMATIC || a->route > HSPAN_CPU_ROUTE_DENSE || a->instructionSet < -1)
    {
        return false;
    }
    return chosenKernel(a->instructionSet) != nullptr;
}

HspanCpuTensor imageOf(HspanCpuTensor tensor, int64_t image, int32_t type)
{
    int64_t const elementBytes = type == HSPAN_CPU_FLOAT ? 4 : 2;
    tensor.data = static_cast<char*>(tensor.data) + image * tensor.batchStride * elementBytes;
    return tensor;
}

Problem problemFrom(HspanCpuAttention const& a, Kernel const& kernel, int64_t image)
{
    Problem problem{};
    problem.query = imageOf(a.query, image, a.type);
    problem.key = imageOf(a.key, image, a.type);
    problem.value = imageOf(a.value, image, a.type);
    problem.output = imageOf(a.output, image, a.type);
    problem.scoreChannels = a.scoreChannels;
    problem.valueChannels = a.valueChannels;
    problem.positions = a.positions;
    problem.type = a.type;
    problem.route = a.route;
    int64_t const step = kernel.rowStep();
    problem.tileRows = a.tileRows == 0 ? kernel.tileRows(a.positions) : (a.tileRows + step - 1) / step * step;
    // Measured: gathering an eighth of the values costs as much as a matrix product with all of them.
    problem.gatherLimit
        = a.gatherLimit == 0 ? std::max<int64_t>(32, a.positions / 8) : std::min(a.gatherLimit, a.positions);
    return problem;
}

struct Free
{
    void operator()(void* memory) const
    {
        std::free(memory);
    }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocated(uint64_t bytes)
{
    constexpr uint64_t kALIGNMENT = 64;
    return Memory(std::aligned_alloc(kALIGNMENT, (bytes + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT));
}

//! Below this many multiply-adds a second thread costs more than it brings.
constexpr double kLEAST_WORK_PER_THREAD = 1e7;

int64_t threadsFor(HspanCpuAttention const& a, Problem const& problem)
{
    int64_t const tiles = (a.positions + problem.tileRows - 1) / problem.tileRows;
    double const work
        = static_cast<double>(a.positions) * static_cast<double>(a.positions) * static_cast<double>(a.scoreChannels);
    int64_t const worthwhile = static_cast<int64_t>(std::min(work / kLEAST_WORK_PER_THREAD, 1e6));
    return std::max<int64_t>(1, std::min({static_cast<int64_t>(a.threads), tiles, worthwhile}));
}

//! Runs fn(0) ... fn(count - 1) at the same time, fn(0) here. Where the system refuses a thread, the others do its
//! work.
template <typename Function>
void inParallel(int64_t count, Function const& function)
{
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(count));
    try
    {
        for (int64_t i = 1; i < count; ++i)
        {
            threads.emplace_back(function, i);
        }
    }
    catch (std::system_error const&)
    {
    }
    function(0);
    for (std::thread& thread : threads)
    {
        thread.join();
    }
}

int32_t attend(HspanCpuAttention const& a)
{
    Kernel const& kernel = *chosenKernel(a.instructionSet);
    Problem problem = problemFrom(a, kernel, 0);
    Memory packedKey;
    if (kernel.wantsPackedKey(problem))
    {
        packedKey = allocated(kernel.packedKeyBytes(problem));
        if (!packedKey)
        {
            return HSPAN_CPU_OUT_OF_MEMORY;
        }
        problem.packedKey = static_cast<float*>(packedKey.get());
    }
    std::vector<Memory> workspaces(static_cast<size_t>(threadsFor(a, problem)));
    for (Memory& workspace : workspaces)
    {
        workspace = allocated(kernel.workspaceBytes(problem));
        if (!workspace)
        {
            return HSPAN_CPU_OUT_OF_MEMORY;
        }
    }
    for (int64_t image = 0; image < a.batch; ++image)
    {
        problem = problemFrom(a, kernel, image);
        problem.packedKey = static_cast<float*>(packedKey.get());
        kernel.prepare(problem);
        // Threads take tiles until none is left and meet only at the end.
        inParallel(static_cast<int64_t>(workspaces.size()),
            [&](int64_t i) { kernel.run(problem, workspaces[static_cast<size_t>(i)].get()); });
    }
    return HSPAN_CPU_OK;
}

} // namespace
} // namespace hspan::cpu

using namespace hspan::cpu;

int32_t hspanCpuAbiVersion(void)
{
    return HSPAN_CPU_ABI_VERSION;
}

char const* hspanCpuSourceSha256(void)
{
    return kMARKED_HASH + kMARKER_LENGTH;
}

int32_t hspanCpuInstructionSetCount(void)
{
    return kKERNEL_COUNT;
}

char const* hspanCpuInstructionSetName(int32_t index)
{
    return index >= 0 && index < kKERNEL_COUNT ? kKERNELS[index]->name : nullptr;
}

int32_t hspanCpuInstructionSetRuns(int32_t index)
{
    return runsHere(index) ? 1 : 0;
}

uint64_t hspanCpuWorkspaceBytes(HspanCpuAttention const* attention)
{
    if (!isValid(attention))
    {
        return 0;
    }
    Kernel const& kernel = *chosenKernel(attention->instructionSet);
    Problem problem = problemFrom(*attention, kernel, 0);
    uint64_t const keys = kernel.wantsPackedKey(problem) ? kernel.packedKeyBytes(problem) : 0;
    // The address itself is never used: non-null means that threads need no panel of their own.
    problem.packedKey = keys == 0 ? nullptr : static_cast<float*>(attention->key.data);
    return keys + static_cast<uint64_t>(threadsFor(*attention, problem)) * kernel.workspaceBytes(problem);
}

int32_t hspanCpuAttention(HspanCpuAttention const* attention)
{
    if (!isValid(attention) || attention->query.data == nullptr || attention->key.data == nullptr
        || attention->value.data == nullptr || attention->output.data == nullptr)
    {
        return HSPAN_CPU_INVALID;
    }
    try
    {
        return attend(*attention);
    }
    catch (std::bad_alloc const&)
    {
        return HSPAN_CPU_OUT_OF_MEMORY;
    }
}
