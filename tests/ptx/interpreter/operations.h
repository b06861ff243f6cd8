//! \file operations.h
//! Instructions that are more than a function of each lane: memory, and what the lanes of a warp do together.
#pragma once

#include "machine.h"

namespace ptx
{

void doNothing(Warp& warp, Instruction const& instruction, uint32_t lanes);

//! \name Memory (memory_operations.cpp)
//! @{
void loadParameter(Warp& warp, Instruction const& instruction, uint32_t lanes);
void loadShared(Warp& warp, Instruction const& instruction, uint32_t lanes);
void storeShared(Warp& warp, Instruction const& instruction, uint32_t lanes);
void loadGlobal(Warp& warp, Instruction const& instruction, uint32_t lanes);
void storeGlobal(Warp& warp, Instruction const& instruction, uint32_t lanes);
void copyAsync(Warp& warp, Instruction const& instruction, uint32_t lanes);
void waitForCopies(Warp& warp, Instruction const& instruction, uint32_t lanes);
//! @}

//! \name Registers (register_operations.cpp)
//! @{
void pack16(Warp& warp, Instruction const& instruction, uint32_t lanes);
void unpack16(Warp& warp, Instruction const& instruction, uint32_t lanes);
void pack32(Warp& warp, Instruction const& instruction, uint32_t lanes);
void unpack32(Warp& warp, Instruction const& instruction, uint32_t lanes);
void shuffle(Warp& warp, Instruction const& instruction, uint32_t lanes);
void ballot(Warp& warp, Instruction const& instruction, uint32_t lanes);
void matchAny(Warp& warp, Instruction const& instruction, uint32_t lanes);
void addLanes(Warp& warp, Instruction const& instruction, uint32_t lanes);
//! An unrounded sum or difference of which one operand is an unrounded product: ptxas may make it one operation.
void addMaybeFused(Warp& warp, Instruction const& instruction, uint32_t lanes);
//! @}

//! Instruction::variant of shuffle().
enum ShuffleMode : uint8_t
{
    kUP,
    kDOWN,
    kXOR,
    kINDEX,
};

//! Bits of Instruction::variant of addMaybeFused(), whose operands are a, b and the factors of the product.
enum FusedBits : uint8_t
{
    kPRODUCT_IS_SECOND = 1,
    kIS_DIFFERENCE = 2,
};

//! \name Matrices (matrices.cpp)
//! @{
void loadMatrices(Warp& warp, Instruction const& instruction, uint32_t lanes);
void loadMatricesTransposed(Warp& warp, Instruction const& instruction, uint32_t lanes);
void multiplyHalfMatrices(Warp& warp, Instruction const& instruction, uint32_t lanes);
void multiplyBFloat16Matrices(Warp& warp, Instruction const& instruction, uint32_t lanes);
//! @}

} // namespace ptx
