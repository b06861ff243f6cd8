#include <cstring>

#include "operations.h"

namespace ptx
{

namespace
{

constexpr size_t kMOST_BYTES{32};

//! An element of memory as a register holds it, extended by its sign or by zeros.
uint64_t extended(uint8_t const* bytes, size_t count, bool isSigned)
{
    uint64_t bits = 0;
    memcpy(&bits, bytes, count);
    auto const unused = static_cast<uint32_t>(64 - 8 * count);
    return isSigned ? static_cast<uint64_t>(static_cast<int64_t>(bits << unused) >> unused) : bits;
}

void toRegisters(Warp& warp, Instruction const& instruction, int32_t lane, uint8_t const* bytes)
{
    size_t const count = instruction.elementBytes;
    for (size_t i = 0; i < instruction.elements; ++i)
    {
        uint64_t const bits = extended(bytes + i * count, count, instruction.isSigned);
        if (instruction.isWide)
        {
            warp.lanes<uint64_t>(instruction.group[i])[lane] = bits;
        }
        else
        {
            warp.lanes<uint32_t>(instruction.group[i])[lane] = static_cast<uint32_t>(bits);
        }
    }
}

void fromRegisters(Warp const& warp, Instruction const& instruction, int32_t lane, uint8_t* bytes)
{
    size_t const count = instruction.elementBytes;
    size_t const registerBytes = instruction.isWide ? 8 : 4;
    for (size_t i = 0; i < instruction.elements; ++i)
    {
        memcpy(bytes + i * count, warp.lanes<uint8_t>(instruction.group[i]) + static_cast<size_t>(lane) * registerBytes,
            count);
    }
}

size_t bytesOf(Instruction const& instruction)
{
    return size_t{instruction.elementBytes} * instruction.elements;
}

} // namespace

void doNothing(Warp& /*warp*/, Instruction const& /*instruction*/, uint32_t /*lanes*/)
{
}

void loadParameter(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    std::vector<uint8_t> const& parameters = warp.block->parameters;
    forLanes(lanes,
        [&](int32_t lane)
        {
            uint64_t const offset = warp.address(instruction.address, lane);
            if (offset + bytesOf(instruction) > parameters.size())
            {
                report("OUT OF BOUNDS", &warp, lane, "parameters");
                return;
            }
            toRegisters(warp, instruction, lane, parameters.data() + offset);
        });
}

void loadShared(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    forLanes(lanes,
        [&](int32_t lane)
        {
            uint8_t bytes[kMOST_BYTES];
            auto const address = static_cast<uint32_t>(warp.address(instruction.address, lane));
            readShared(warp, lane, address, bytesOf(instruction), bytes);
            toRegisters(warp, instruction, lane, bytes);
        });
}

void storeShared(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    forLanes(lanes,
        [&](int32_t lane)
        {
            uint8_t bytes[kMOST_BYTES];
            fromRegisters(warp, instruction, lane, bytes);
            auto const address = static_cast<uint32_t>(warp.address(instruction.address, lane));
            writeShared(warp, lane, address, bytesOf(instruction), bytes);
        });
}

void loadGlobal(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    forLanes(lanes,
        [&](int32_t lane)
        {
            uint8_t bytes[kMOST_BYTES];
            readGlobal(warp, lane, warp.address(instruction.address, lane), bytesOf(instruction), bytes);
            toRegisters(warp, instruction, lane, bytes);
        });
}

void storeGlobal(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    forLanes(lanes,
        [&](int32_t lane)
        {
            uint8_t bytes[kMOST_BYTES];
            fromRegisters(warp, instruction, lane, bytes);
            writeGlobal(warp, lane, warp.address(instruction.address, lane), bytesOf(instruction), bytes);
        });
}

void copyAsync(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    forLanes(lanes,
        [&](int32_t lane)
        {
            startCopy(warp, lane, static_cast<uint32_t>(warp.address(instruction.address, lane)),
                warp.address(instruction.source, lane), warp.lanes<uint32_t>(instruction.operands[0])[lane]);
        });
}

void waitForCopies(Warp& warp, Instruction const& /*instruction*/, uint32_t lanes)
{
    forLanes(lanes, [&](int32_t lane) { finishCopies(warp, lane); });
}

} // namespace ptx
