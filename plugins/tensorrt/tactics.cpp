#include "tactics.h"

#include <cstring>

#include "../kernels/launchers.h"

namespace hspan
{

namespace
{

//! The lowest compute capability that the library contains code for.
constexpr int32_t kLEAST_ARCHITECTURE{HSPAN_LEAST_ARCHITECTURE};

bool isPlain(int32_t config) noexcept
{
    return std::strncmp(attentionConfigName(config), "plain", 5) == 0;
}

bool isWorthTiming(int32_t config, TacticProblem const& problem, int32_t gpu) noexcept
{
    return !isPlain(config) && problem.positions >= 0 && problem.positions <= kMAX_TILED_POSITIONS
        && isAttentionConfigSupported(config, problem.type, problem.scoreChannels, problem.valueChannels, gpu);
}

} // namespace

bool configChoiceFromText(char const* text, size_t length, int32_t& config) noexcept
{
    length = length > 0 && text[length - 1] == '\0' ? length - 1 : length;
    for (int32_t each = kANY_CONFIG; each < attentionConfigCount(); ++each)
    {
        char const* const name = textFromConfigChoice(each);
        if (std::strlen(name) == length && std::strncmp(name, text, length) == 0)
        {
            config = each;
            return true;
        }
    }
    return false;
}

char const* textFromConfigChoice(int32_t config) noexcept
{
    return config == kANY_CONFIG ? "any" : attentionConfigName(config);
}

int32_t judgedArchitecture(int32_t computeCapability) noexcept
{
    return computeCapability > 0 ? computeCapability : kLEAST_ARCHITECTURE;
}

bool isTactic(int32_t tactic) noexcept
{
    return tactic >= 0 && tactic <= attentionConfigCount();
}

int32_t configFromTactic(int32_t tactic) noexcept
{
    return tactic == kDEFAULT_TACTIC ? kAUTOMATIC_CONFIG : tactic - 1;
}

int32_t validTactics(
    TacticProblem const& problem, int32_t computeCapability, int32_t* tactics, int32_t capacity) noexcept
{
    static_assert(kAUTOMATIC_CONFIG == 0, "the configuration that chooses is offered first");
    int32_t const gpu = judgedArchitecture(computeCapability);
    int32_t count = 0;
    for (int32_t config = 0; config < attentionConfigCount(); ++config)
    {
        bool const isOffered = problem.config == kANY_CONFIG
            ? config == kAUTOMATIC_CONFIG || isWorthTiming(config, problem, gpu)
            : config == problem.config;
        if (isOffered && (tactics == nullptr || count < capacity))
        {
            if (tactics != nullptr)
            {
                tactics[count] = config + 1;
            }
            count += 1;
        }
    }
    return count;
}

size_t workspaceBytes(AttentionProblem const& problem) noexcept
{
    size_t bytes = 0;
    for (int32_t config = 0; config < attentionConfigCount(); ++config)
    {
        size_t const needed = attentionWorkspaceBytes(problem, config);
        bytes = needed > bytes ? needed : bytes;
    }
    return bytes;
}

} // namespace hspan
