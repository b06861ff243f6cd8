//! \file machine.h
//! What runs: warps of 32 lanes, blocks, and everything about them that real hardware leaves open.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernel.h"
#include "memory.h"

namespace ptx
{

constexpr int32_t kLANES{32};
constexpr uint32_t kALL_LANES{0xffffffffU};

enum class Order
{
    kASCENDING,
    kDESCENDING,
    kRANDOM,
};

//! How a tensor core may add up.
enum class MatrixSums
{
    kDOUBLE,    //!< rounded once
    kFP32,      //!< one product after the other
    kTRUNCATED, //!< groups of eight, aligned to the greatest and cut off
};

//! The choices of a run. No result may depend on the first six; with others a result keeps its bounds.
struct Options
{
    Order blocks{Order::kASCENDING};
    Order warps{Order::kASCENDING};
    Order lanes{Order::kASCENDING}; //!< of a diverged warp: least program counter first, greatest, or random
    int32_t turn{};                 //!< instructions, about, until another warp may take over; 0: only at barriers
    bool copiesLandAtOnce{};        //!< asynchronous copies; else when they are waited for
    bool isReciprocalGreater{};     //!< of rcp.approx, by a unit in the last place
    MatrixSums matrixSums{MatrixSums::kDOUBLE};
    bool isFused{}; //!< products into sums where ptxas may
    bool checkRaces{true};
    uint64_t seed{1};
};

//! Lanes of a warp that are at the same instruction.
struct LaneGroup
{
    int32_t pc;
    uint32_t lanes;
};

struct Block;

struct Warp
{
    uint8_t* registers{};
    Block* block{};
    int32_t index{};
    uint32_t live{};                //!< lanes that have not ended
    std::vector<LaneGroup> ready;   //!< diverged lanes
    std::vector<LaneGroup> waiting; //!< at a .sync instruction
    bool isAtBarrier{};
    int32_t barrierPc{};
    uint32_t orderedSince{}; //!< when memory was last ordered among the lanes

    template <typename T>
    T* lanes(Slot slot) const
    {
        return reinterpret_cast<T*>(registers + slot);
    }

    uint32_t& predicate(Slot slot) const
    {
        return *lanes<uint32_t>(slot);
    }

    uint64_t address(Address const& address, int32_t lane) const
    {
        uint64_t const base
            = address.isWide ? lanes<uint64_t>(address.base)[lane] : lanes<uint32_t>(address.base)[lane];
        uint64_t const sum = base + static_cast<uint64_t>(address.offset);
        return address.isWide ? sum : static_cast<uint32_t>(sum);
    }

    int32_t thread(int32_t lane) const
    {
        return index * kLANES + lane;
    }
};

//! An asynchronous copy of 16 bytes that has not been waited for.
struct PendingCopy
{
    uint32_t target; //!< in shared memory
    uint8_t const* source;
    uint32_t bytes; //!< from the source; zeros follow
};

struct Block
{
    Kernel* kernel{};
    uint32_t threads{};
    std::vector<Warp> warps;
    std::vector<uint8_t> registers;
    std::vector<uint8_t> parameters;
    Area shared;
    std::vector<uint16_t> inFlight; //!< per 16 bytes of shared memory: 1 + the thread whose copy is not complete
    std::vector<std::vector<PendingCopy>> copies; //!< per thread
    uint32_t index[3]{};
    uint32_t start{};   //!< when the block began
    uint32_t barrier{}; //!< when it last met
};

//! What was wrong at one place: how often, and the first time in words.
struct Finding
{
    uint64_t count{};
    std::string first;
};

//! What runs now, and what it has been noticed doing.
struct Machine
{
    Options options;
    std::map<std::string, Finding> findings; //!< by kind, kernel and instruction
    uint64_t reports{};                      //!< all of them
    uint64_t warpInstructions{};
    uint32_t clock{1}; //!< one step per meeting of lanes or warps
    uint32_t launch{}; //!< when the kernel was launched
    Kernel const* kernel{};
    Block* block{};
    Instruction const* instruction{};
    std::mt19937_64 random;
};

extern Machine machine;

//! Notes that the instruction at hand does something wrong. `warp` is nullptr where all of the block do.
void report(char const* kind, Warp const* warp, int32_t lane, std::string const& details);

//! Runs a kernel. false: it cannot go on, lanes of a warp wait for each other at different instructions, or all goes
//! wrong.
bool run(Kernel& kernel, uint32_t const (&grid)[3], uint32_t threads, void* const* arguments);

//! visit(lane) for every bit set.
template <typename Visit>
inline void forLanes(uint32_t lanes, Visit const& visit)
{
    for (; lanes != 0; lanes &= lanes - 1)
    {
        visit(__builtin_ctz(lanes));
    }
}

//! Writes results to the lanes whose bits are set.
template <typename T>
inline void put(Warp& warp, Slot slot, uint32_t lanes, T const (&results)[kLANES])
{
    T* const target = warp.lanes<T>(slot);
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        target[lane] = (lanes >> lane & 1U) != 0 ? results[lane] : target[lane];
    }
}

inline void putPredicate(Warp& warp, Slot slot, uint32_t lanes, uint32_t bits)
{
    uint32_t& target = warp.predicate(slot);
    target = (target & ~lanes) | (bits & lanes);
}

//! GPUs have one NaN.
inline float canonical(float number)
{
    uint32_t const bits = number != number ? 0x7fffffffU : __builtin_bit_cast(uint32_t, number);
    return __builtin_bit_cast(float, bits);
}

} // namespace ptx
