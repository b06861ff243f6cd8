//! \file count.cpp
//! count CONFIG TYPE C D L QUERY KEY VALUE: runs the product's launcher on tensors of one image, (channels, L)
//! of the type with this number, and prints warp instructions by kernel and opcode.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

#include "machine.h"
#include "sparsemax_attention.h"

namespace
{

void* load(char const* file, size_t bytes, char const* name)
{
    void* const memory = ptx::allocate(bytes, name, true);
    std::ifstream stream(file, std::ios::binary);
    if (!stream.read(static_cast<char*>(memory), static_cast<std::streamsize>(bytes)))
    {
        fprintf(stderr, "%s: cannot read %zu bytes\n", file, bytes);
        exit(2);
    }
    ptx::markWritten(memory, bytes);
    return memory;
}

//! "name opcode count" for every opcode that ran.
void printCounts(ptx::Kernel const& kernel)
{
    std::map<std::string, uint64_t> counts;
    for (size_t i = 0; i < kernel.code.size(); ++i)
    {
        std::string const& text = kernel.code[i].text;
        size_t const start = text[0] == '@' ? text.find_first_not_of(" \t", text.find_first_of(" \t")) : 0;
        counts[text.substr(start, text.find_first_of(" \t", start) - start)] += kernel.executed[i];
    }
    for (auto const& [opcode, count] : counts)
    {
        if (count > 0)
        {
            printf("%s %s %llu\n", kernel.name.c_str(), opcode.c_str(), static_cast<unsigned long long>(count));
        }
    }
}

} // namespace

int main(int argumentCount, char** arguments)
{
    if (argumentCount != 9)
    {
        fprintf(stderr, "usage: count CONFIG TYPE C D L QUERY KEY VALUE\n");
        return 2;
    }
    int32_t const config = atoi(arguments[1]);
    auto const type = static_cast<hspan::ElementType>(atoi(arguments[2]));
    int64_t const scoreChannels = atoll(arguments[3]);
    int64_t const valueChannels = atoll(arguments[4]);
    int64_t const positions = atoll(arguments[5]);
    hspan::AttentionProblem const problem{
        type, hspan::TensorLayout::kLINEAR, {1, scoreChannels, valueChannels, positions}};
    size_t const elementBytes = type == hspan::ElementType::kFLOAT ? 4 : 2;
    auto const scoreBytes = static_cast<size_t>(scoreChannels * positions) * elementBytes;
    auto const valueBytes = static_cast<size_t>(valueChannels * positions) * elementBytes;
    void* const query = load(arguments[6], scoreBytes, "query");
    void* const key = load(arguments[7], scoreBytes, "key");
    void* const value = load(arguments[8], valueBytes, "value");
    void* const output = ptx::allocate(valueBytes, "output", false);
    size_t const workspaceBytes = hspan::attentionWorkspaceBytes(problem, config);
    void* const workspace = ptx::allocateParts(workspaceBytes, {{0, workspaceBytes, "workspace"}});
    ptx::machine.options.checkRaces = false;
    cudaError_t const status
        = hspan::launchSparsemaxAttention(problem, config, query, key, value, output, workspace, nullptr);
    for (auto const& [what, finding] : ptx::machine.findings)
    {
        fprintf(stderr, "%s: %s\n", what.c_str(), finding.first.c_str());
    }
    if (status != cudaSuccess || !ptx::machine.findings.empty())
    {
        fprintf(stderr, "the kernels have failed, error %d\n", static_cast<int32_t>(status));
        return 1;
    }
    for (ptx::Kernel const* const kernel : ptx::allKernels())
    {
        printCounts(*kernel);
    }
    return 0;
}
