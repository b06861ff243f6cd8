//! \file case.h
//! A case: one problem, its inputs, what must come out, and how far from it the kernels may be.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sparsemax_attention.h"

namespace ptx
{

struct Case
{
    int32_t config;
    hspan::ElementType type;
    hspan::TensorLayout layout;
    int32_t images;        //!< N
    int32_t scoreChannels; //!< C
    int32_t valueChannels; //!< D
    int32_t positions;     //!< L
    std::string regime;    //!< what the inputs are like, see fillInputs()
    int32_t capacity;      //!< entries of a list; 0 is the usual one

    bool isTiled() const
    {
        return config >= 2;
    }

    size_t elementBytes() const
    {
        return type == hspan::ElementType::kFLOAT ? 4 : 2;
    }

    hspan::AttentionProblem problem() const
    {
        return {type, layout, {images, scoreChannels, valueChannels, positions}};
    }

    std::string name() const;
};

//! A number as its type holds it.
uint32_t bitsFromFloat(hspan::ElementType type, float number);
float floatFromBits(hspan::ElementType type, uint32_t bits);

//! Numbers that the element type holds, (images, positions, channels).
struct Tensor
{
    int32_t images{};
    int32_t positions{};
    int32_t channels{};
    std::vector<double> numbers;

    Tensor(int32_t images, int32_t positions, int32_t channels);
    size_t index(int32_t image, int32_t position, int32_t channel) const;
    double& at(int32_t image, int32_t position, int32_t channel);
    double at(int32_t image, int32_t position, int32_t channel) const;
};

struct Inputs
{
    Tensor query;
    Tensor key;
    Tensor value;
};

//! Inputs of the regime of the case, the same for every configuration and layout.
Inputs inputsOf(Case const& testCase);

struct Reference
{
    std::vector<double> outputs;    //!< (images, positions, channels), NaN in degenerate rows
    std::vector<double> tolerances; //!< of FP32 arithmetic, without rounding to the element type
    double greatest;                //!< output
};

//! Sparsemax attention in double precision by its definition, and the bounds of plugins/README.md.
Reference referenceOf(Case const& testCase, Inputs const& inputs);

//! Elements from one element of a tensor in device memory to its neighbor.
struct Strides
{
    int64_t image;
    int64_t channel;
    int64_t position;
    int64_t total;
};

Strides stridesOf(Case const& testCase, int32_t channels);

//! What a case came to.
struct Outcome
{
    std::string verdict{"ok"};
    double ofBound{}; //!< the greatest error over its bound
    int32_t runs{};
    double seconds{};
    uint64_t warpInstructions{};
};

//! How many of the schedules and of the ways to add up a case is run in.
enum class Effort
{
    kONCE,
    kSCHEDULES, //!< three, which must give the same bits
    kALL,       //!< also with fused products and other sums of tensor cores, which must keep the bounds
};

Outcome runCase(Case const& testCase, Effort effort);

struct PlannedCase
{
    Case testCase;
    Effort effort;
};

//! The cases of a list by its name, for GPUs of a compute capability; empty: there is no such list.
std::vector<PlannedCase> casesOf(std::string const& list, int32_t computeCapability);

} // namespace ptx
