//! \file attention_cases.h
//! What the tests of the whole operator share: problems, the variants of the kernels that solve them, and the
//! comparison with the definition.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "emulated_attention.h"
#include "reference.h"
#include "sparsemax_attention.h"

namespace hspan::test
{

//! 0 forward, 1 reverse, 2 shuffled; of all tests of the program.
extern int32_t gLaneOrder;

//! By which kernels, from which layout.
struct Variant
{
    int32_t config{kAUTOMATIC_CONFIG};
    int32_t capacity{0}; //!< of the candidate lists; 0 is the usual
    TensorLayout layout{TensorLayout::kLINEAR};
    int32_t multiprocessors{4};
};

//! Of the tests that run at the moment.
extern Variant gVariant;

constexpr float kINFINITY{std::numeric_limits<float>::infinity()};

//! What the scores look like.
enum class Regime
{
    kSPARSE,   //!< spread of about 10: a few keys per row
    kDENSE,    //!< range of about 0.01: all keys
    kFLAT,     //!< all equal
    kTIES,     //!< few distinct values
    kDOMINANT, //!< one key far above the others
    kHUGE,     //!< of order 1e4
    kNEGATIVE, //!< all below zero
    kZERO,     //!< all zero
};

constexpr Regime kREGIMES[] = {Regime::kSPARSE, Regime::kDENSE, Regime::kFLAT, Regime::kTIES, Regime::kDOMINANT,
    Regime::kHUGE, Regime::kNEGATIVE, Regime::kZERO};
constexpr char const* kREGIME_NAMES[] = {"sparse", "dense", "flat", "ties", "dominant", "huge", "negative", "zero"};

constexpr char const* kTYPE_NAMES[] = {"FP32", "FP16", "BF16"};

Problem problemOf(ElementType type, Regime regime, int64_t batch, int64_t channels, int64_t values, int64_t positions);

//! The output of the kernels that the variant names.
std::vector<float> attention(ElementType type, Problem const& problem, uint64_t seed = 1);

//! Fails where a row of the output, every rowStep-th, lies further from the definition than it may.
void compare(ElementType type, Problem const& problem, std::vector<float> const& output, Scores kind, int64_t rowStep);

//! Against the definition, given the scores and from exact scores. Long problems are sampled in rows.
void checkAgainstReference(ElementType type, Problem const& problem);

//! \name The groups of tests
//! @{

//! Rows of NaN and infinities.
void addDegenerateRows(ElementType type, Variant variant);

//! Lists, the dense route, tile shapes and workspaces; `all` combinations, or those that every pair needs.
void addRoutes(bool all);

//! @}

} // namespace hspan::test
