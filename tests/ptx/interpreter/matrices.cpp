//! \file matrices.cpp
//! ldmatrix and mma.m16n8k16, with the fragments of the PTX ISA: group = lane / 4, t = lane % 4, and
//!     A (16 x 16): row group, + 8 for elements 2, 3, 6, 7; column 2 t + i % 2, + 8 from element 4 on
//!     B (16 x 8):  row 2 t + i % 2, + 8 from element 2 on; column group
//!     C, D (16 x 8): row group, + 8 from element 2 on; column 2 t + i % 2
#include <algorithm>
#include <cmath>

#include "half.h"
#include "operations.h"

namespace ptx
{

namespace
{

constexpr int32_t kROWS{16};
constexpr int32_t kCOLUMNS{8};
constexpr int32_t kDEPTH{16};

struct Matrices
{
    float a[kROWS][kDEPTH];
    float b[kDEPTH][kCOLUMNS];
    float c[kROWS][kCOLUMNS];
};

bool haveAllLanes(Warp const& warp, uint32_t lanes)
{
    if (lanes != kALL_LANES)
    {
        report("ALIGNED INSTRUCTION WITHOUT ALL LANES", &warp, 0, "");
    }
    return lanes == kALL_LANES;
}

template <bool kIS_TRANSPOSED>
void load(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    if (!haveAllLanes(warp, lanes))
    {
        return;
    }
    uint16_t rows[kLANES][8]; // of four matrices
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        auto const address = static_cast<uint32_t>(warp.address(instruction.address, lane));
        readShared(warp, lane, address, sizeof rows[lane], rows[lane]);
    }
    for (int32_t matrix = 0; matrix < 4; ++matrix)
    {
        uint32_t* const target = warp.lanes<uint32_t>(instruction.group[matrix]);
        uint16_t const(*const own)[8] = rows + 8 * matrix;
        for (int32_t lane = 0; lane < kLANES; ++lane)
        {
            int32_t const near = lane / 4;
            int32_t const pair = lane % 4 * 2;
            uint32_t const low = kIS_TRANSPOSED ? own[pair][near] : own[near][pair];
            uint32_t const high = kIS_TRANSPOSED ? own[pair + 1][near] : own[near][pair + 1];
            target[lane] = high << 16U | low;
        }
    }
}

void addInDouble(Matrices& m)
{
    for (int32_t row = 0; row < kROWS; ++row)
    {
        double sums[kCOLUMNS];
        std::copy_n(m.c[row], kCOLUMNS, sums);
        for (int32_t k = 0; k < kDEPTH; ++k)
        {
            for (int32_t column = 0; column < kCOLUMNS; ++column)
            {
                sums[column] += static_cast<double>(m.a[row][k]) * static_cast<double>(m.b[k][column]);
            }
        }
        for (int32_t column = 0; column < kCOLUMNS; ++column)
        {
            m.c[row][column] = canonical(static_cast<float>(sums[column]));
        }
    }
}

void addInFp32(Matrices& m)
{
    for (int32_t row = 0; row < kROWS; ++row)
    {
        for (int32_t k = 0; k < kDEPTH; ++k)
        {
            for (int32_t column = 0; column < kCOLUMNS; ++column)
            {
                m.c[row][column] = canonical(m.c[row][column] + m.a[row][k] * m.b[k][column]);
            }
        }
    }
}

//! Eight products and a sum, aligned to the greatest, cut off two bits below FP32's last, the total rounded to zero.
//! So tensor cores have been found to work: M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021.
float truncatedSum(float sum, float const* row, float const (*columns)[kCOLUMNS], int32_t column)
{
    constexpr int32_t kGROUP{8};
    double terms[kGROUP + 1];
    for (int32_t k = 0; k < kGROUP; ++k)
    {
        terms[k] = static_cast<double>(row[k]) * static_cast<double>(columns[k][column]);
    }
    terms[kGROUP] = static_cast<double>(sum);
    double greatest = 0;
    double plain = 0;
    for (double const term : terms)
    {
        greatest = std::max(greatest, std::fabs(term));
        plain += term;
    }
    if (!std::isfinite(plain) || greatest == 0)
    {
        return canonical(static_cast<float>(plain));
    }
    double const quantum = std::ldexp(1.0, std::ilogb(greatest) - 23 - 2);
    double total = 0;
    for (double const term : terms)
    {
        total += std::trunc(term / quantum) * quantum;
    }
    auto const rounded = static_cast<float>(total);
    return std::fabs(static_cast<double>(rounded)) > std::fabs(total) ? std::nextafter(rounded, 0.0F) : rounded;
}

void addTruncated(Matrices& m)
{
    for (int32_t row = 0; row < kROWS; ++row)
    {
        for (int32_t column = 0; column < kCOLUMNS; ++column)
        {
            for (int32_t k = 0; k < kDEPTH; k += 8)
            {
                m.c[row][column] = truncatedSum(m.c[row][column], m.a[row] + k, m.b + k, column);
            }
        }
    }
}

template <float (*kTO_FLOAT)(uint32_t)>
void multiply(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    if (!haveAllLanes(warp, lanes))
    {
        return;
    }
    // The registers in the order of the instruction: four of D, four of A, two of B, four of C.
    Slot const* const d = instruction.group;
    Slot const* const a = instruction.group + 4;
    Slot const* const b = instruction.group + 8;
    Slot const* const c = instruction.group + 10;
    auto const element = [&](Slot const* registers, int32_t i, int32_t lane)
    { return kTO_FLOAT(warp.lanes<uint32_t>(registers[i / 2])[lane] >> (i % 2 * 16) & 0xffffU); };
    Matrices m;
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        int32_t const near = lane / 4;
        int32_t const pair = lane % 4 * 2;
        for (int32_t i = 0; i < 8; ++i)
        {
            m.a[near + i / 2 % 2 * 8][pair + i % 2 + i / 4 * 8] = element(a, i, lane);
        }
        for (int32_t i = 0; i < 4; ++i)
        {
            m.b[pair + i % 2 + i / 2 * 8][near] = element(b, i, lane);
            m.c[near + i / 2 * 8][pair + i % 2] = warp.lanes<float>(c[i])[lane];
        }
    }
    switch (machine.options.matrixSums)
    {
    case MatrixSums::kDOUBLE: addInDouble(m); break;
    case MatrixSums::kFP32: addInFp32(m); break;
    case MatrixSums::kTRUNCATED: addTruncated(m); break;
    }
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        for (int32_t i = 0; i < 4; ++i)
        {
            warp.lanes<float>(d[i])[lane] = m.c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
        }
    }
}

} // namespace

void loadMatrices(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    load<false>(warp, instruction, lanes);
}

void loadMatricesTransposed(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    load<true>(warp, instruction, lanes);
}

void multiplyHalfMatrices(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    multiply<floatFromHalf>(warp, instruction, lanes);
}

void multiplyBFloat16Matrices(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    multiply<floatFromBFloat16>(warp, instruction, lanes);
}

} // namespace ptx
