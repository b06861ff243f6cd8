#include "operations.h"

namespace ptx
{

void pack16(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint32_t const* const low = warp.lanes<uint32_t>(instruction.group[0]);
    uint32_t const* const high = warp.lanes<uint32_t>(instruction.group[1]);
    uint32_t results[kLANES];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        results[lane] = (low[lane] & 0xffffU) | high[lane] << 16U;
    }
    put(warp, instruction.result, lanes, results);
}

void unpack16(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint32_t const* const bits = warp.lanes<uint32_t>(instruction.operands[0]);
    uint32_t low[kLANES];
    uint32_t high[kLANES];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        low[lane] = bits[lane] & 0xffffU;
        high[lane] = bits[lane] >> 16U;
    }
    put(warp, instruction.group[0], lanes, low);
    put(warp, instruction.group[1], lanes, high);
}

void pack32(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint32_t const* const low = warp.lanes<uint32_t>(instruction.group[0]);
    uint32_t const* const high = warp.lanes<uint32_t>(instruction.group[1]);
    uint64_t results[kLANES];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        results[lane] = low[lane] | static_cast<uint64_t>(high[lane]) << 32U;
    }
    put(warp, instruction.result, lanes, results);
}

void unpack32(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint64_t const* const bits = warp.lanes<uint64_t>(instruction.operands[0]);
    uint32_t low[kLANES];
    uint32_t high[kLANES];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        low[lane] = static_cast<uint32_t>(bits[lane]);
        high[lane] = static_cast<uint32_t>(bits[lane] >> 32U);
    }
    put(warp, instruction.group[0], lanes, low);
    put(warp, instruction.group[1], lanes, high);
}

// PTX ISA, shfl.sync: the third operand holds the last lane, and the lanes of a segment in its upper half.
void shuffle(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint32_t const* const source = warp.lanes<uint32_t>(instruction.operands[0]);
    uint32_t const* const steps = warp.lanes<uint32_t>(instruction.operands[1]);
    uint32_t const* const limits = warp.lanes<uint32_t>(instruction.operands[2]);
    uint32_t results[kLANES] = {};
    uint32_t inRange = 0;
    forLanes(lanes,
        [&](int32_t lane)
        {
            auto const step = static_cast<int32_t>(steps[lane] & 31U);
            auto const segment = static_cast<int32_t>(limits[lane] >> 8U & 31U);
            int32_t const first = lane & segment;
            int32_t const limit = first | (static_cast<int32_t>(limits[lane] & 31U) & ~segment);
            int32_t from = lane;
            switch (instruction.variant)
            {
            case kUP: from = lane - step; break;
            case kDOWN: from = lane + step; break;
            case kXOR: from = lane ^ step; break;
            default: from = first | (step & ~segment); break;
            }
            bool const isInRange = instruction.variant == kUP ? from >= limit : from <= limit;
            from = isInRange ? from : lane;
            if ((lanes >> from & 1U) == 0)
            {
                report("SHUFFLE FROM AN INACTIVE LANE", &warp, lane, std::to_string(from));
            }
            results[lane] = source[from];
            inRange |= isInRange ? 1U << lane : 0U;
        });
    put(warp, instruction.result, lanes, results);
    if (instruction.secondResult != 0)
    {
        putPredicate(warp, instruction.secondResult, lanes, inRange);
    }
}

void ballot(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint32_t results[kLANES];
    for (uint32_t& result : results)
    {
        result = warp.predicate(instruction.operands[0]) & lanes;
    }
    put(warp, instruction.result, lanes, results);
}

void matchAny(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint32_t const* const numbers = warp.lanes<uint32_t>(instruction.operands[0]);
    uint32_t results[kLANES] = {};
    forLanes(lanes,
        [&](int32_t lane)
        {
            forLanes(
                lanes, [&](int32_t other) { results[lane] |= numbers[other] == numbers[lane] ? 1U << other : 0U; });
        });
    put(warp, instruction.result, lanes, results);
}

void addLanes(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    uint32_t const* const numbers = warp.lanes<uint32_t>(instruction.operands[0]);
    uint32_t sum = 0;
    forLanes(lanes, [&](int32_t lane) { sum += numbers[lane]; });
    uint32_t results[kLANES];
    for (uint32_t& result : results)
    {
        result = sum;
    }
    put(warp, instruction.result, lanes, results);
}

void addMaybeFused(Warp& warp, Instruction const& instruction, uint32_t lanes)
{
    float const* const a = warp.lanes<float>(instruction.operands[0]);
    float const* const b = warp.lanes<float>(instruction.operands[1]);
    float const* const x = warp.lanes<float>(instruction.operands[2]);
    float const* const y = warp.lanes<float>(instruction.operands[3]);
    float const signOfB = (instruction.variant & kIS_DIFFERENCE) != 0 ? -1.0F : 1.0F;
    bool const isSecond = (instruction.variant & kPRODUCT_IS_SECOND) != 0;
    float results[kLANES];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        float const sum = a[lane] + signOfB * b[lane];
        float const fused = isSecond ? __builtin_fmaf(signOfB * x[lane], y[lane], a[lane])
                                     : __builtin_fmaf(x[lane], y[lane], signOfB * b[lane]);
        results[lane] = canonical(machine.options.isFused ? fused : sum);
    }
    put(warp, instruction.result, lanes, results);
}

} // namespace ptx
