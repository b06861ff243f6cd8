//! \file tactics.h
//! The kernels' configurations as TensorRT's tactics. A tactic is the configuration's number plus one: TensorRT keeps 0
//! for "the plugin chooses", and a plugin may not offer it. Tactics are stored in engines, so their meaning never
//! changes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels/sparsemax_attention.h"

namespace hspan
{

//! No configuration is asked for: the builder times what validTactics() finds worth it.
constexpr int32_t kANY_CONFIG{-1};

//! What the tactics of a layer depend on, apart from the GPU. -1: not determined, or not one number.
struct TacticProblem
{
    ElementType type{ElementType::kFLOAT};
    int64_t scoreChannels{-1};
    int64_t valueChannels{-1};
    int64_t positions{-1};
    int32_t config{kANY_CONFIG}; //!< that the node asks for
};

constexpr int32_t kDEFAULT_TACTIC{0};

//! Reads the attribute `configuration` of a node: "any", or a configuration's name.
//! \return false for any other text, with `config` untouched.
bool configChoiceFromText(char const* text, size_t length, int32_t& config) noexcept;

//! The attribute's text that stands for the choice.
char const* textFromConfigChoice(int32_t config) noexcept;

//! The compute capability to judge by: of the GPU at hand, or without one the lowest that the library has code for.
int32_t judgedArchitecture(int32_t computeCapability) noexcept;

//! Whether there is such a tactic, for some type and GPU.
bool isTactic(int32_t tactic) noexcept;

//! The configuration of a tactic.
int32_t configFromTactic(int32_t tactic) noexcept;

//! The tactics worth timing for the problem on GPUs of this compute capability, at most `capacity` of them: first the
//! one that chooses when it runs, which is right on every GPU (a builder that cannot time keeps the first one). The
//! tiled kernels follow only where all sizes are fixed: a builder times at one size and stores what won there, and for
//! the other sizes of a profile that choice is a guess. The plain kernels are never offered: where tiles serve they are
//! slower, and elsewhere the first tactic takes them. A configuration that the node asks for is its only tactic.
//! \param tactics where they go; null only counts.
//! \param computeCapability 0 for none at hand: then what every GPU of the library runs.
//! \return how many there are.
int32_t validTactics(
    TacticProblem const& problem, int32_t computeCapability, int32_t* tactics, int32_t capacity) noexcept;

//! The workspace that any tactic of the problem may need on any GPU.
size_t workspaceBytes(AttentionProblem const& problem) noexcept;

} // namespace hspan
