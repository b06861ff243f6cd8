//! \file scheduler.cpp
//! Which lanes run next. Lanes of a warp that diverge become groups with a program counter each and meet again where
//! two are at the same instruction; a .sync instruction runs once all lanes that it names are at it, and not before.
#include <algorithm>
#include <climits>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>

#include "machine.h"

namespace ptx
{

Machine machine;

namespace
{

//! Reports after which a launch ends: each takes a while.
constexpr uint64_t kMOST_REPORTS{10'000};

//! Why a launch cannot go on.
struct Stuck : std::runtime_error
{
    using std::runtime_error::runtime_error;
};

std::string readableName(std::string const& mangled)
{
    size_t const start = mangled.find("hspan");
    return start == std::string::npos ? mangled : mangled.substr(start + 5, 60);
}

size_t chosenGroup(std::vector<LaneGroup> const& ready)
{
    auto const isBefore = [](LaneGroup const& a, LaneGroup const& b) { return a.pc < b.pc; };
    switch (machine.options.lanes)
    {
    case Order::kASCENDING: return std::min_element(ready.begin(), ready.end(), isBefore) - ready.begin();
    case Order::kDESCENDING: return std::max_element(ready.begin(), ready.end(), isBefore) - ready.begin();
    case Order::kRANDOM: return machine.random() % ready.size();
    }
    return 0;
}

//! Takes the lanes of `groups` that are at `pc`.
uint32_t takeLanesAt(std::vector<LaneGroup>& groups, int32_t pc)
{
    uint32_t lanes = 0;
    auto const isHere = [&](LaneGroup const& group)
    {
        lanes |= group.pc == pc ? group.lanes : 0U;
        return group.pc == pc;
    };
    groups.erase(std::remove_if(groups.begin(), groups.end(), isHere), groups.end());
    return lanes;
}

//! The instruction at which lanes that run in ascending order give way to others.
int32_t nextMeeting(std::vector<LaneGroup> const& ready)
{
    int32_t pc = INT_MAX;
    if (machine.options.lanes == Order::kASCENDING)
    {
        for (LaneGroup const& group : ready)
        {
            pc = std::min(pc, group.pc);
        }
    }
    return pc;
}

[[noreturn]] void failStuck(Warp const& warp)
{
    std::string places;
    for (LaneGroup const& group : warp.waiting)
    {
        Instruction const& instruction = warp.block->kernel->code[static_cast<size_t>(group.pc)];
        places.append(" ").append(std::to_string(__builtin_popcount(group.lanes))).append(" lanes at line ");
        places.append(std::to_string(instruction.line)).append(": ").append(instruction.text).append(";");
    }
    throw Stuck("lanes of warp " + std::to_string(warp.index) + " wait for each other:" + places);
}

//! The lanes that a .sync instruction waits for. A barrier of the block waits for all.
uint32_t expectedLanes(Warp const& warp, Instruction const& instruction, uint32_t lanes)
{
    if (instruction.flow == Flow::kBLOCK_SYNC)
    {
        return warp.live;
    }
    uint32_t const* const members = warp.lanes<uint32_t>(instruction.members);
    uint32_t const first = members[__builtin_ctz(lanes)];
    forLanes(lanes,
        [&](int32_t lane)
        {
            if (members[lane] != first || (members[lane] >> lane & 1U) == 0)
            {
                report("MEMBER MASK", &warp, lane, "lanes name different members, or not themselves");
            }
        });
    return first & warp.live;
}

//! Lanes at a .sync instruction. Whether they go on at once: else they wait, or the warp is at the block's barrier.
bool synchronize(Warp& warp, Instruction const& instruction, int32_t pc, uint32_t& lanes)
{
    if (instruction.isGuarded)
    {
        throw Stuck("a guarded .sync instruction: " + instruction.text);
    }
    lanes |= takeLanesAt(warp.waiting, pc);
    if (lanes != expectedLanes(warp, instruction, lanes))
    {
        warp.waiting.push_back({pc, lanes});
        return false;
    }
    if (instruction.flow == Flow::kBLOCK_SYNC)
    {
        warp.isAtBarrier = true;
        warp.barrierPc = pc;
        warp.ready.push_back({pc + 1, lanes});
        return false;
    }
    instruction.operation(warp, instruction, lanes);
    ++machine.clock;
    if (instruction.ordersMemory && lanes == warp.live)
    {
        warp.orderedSince = machine.clock;
    }
    return true;
}

//! Runs one group of lanes until it diverges, waits, ends or is to give way.
void runGroup(Warp& warp, int64_t& budget)
{
    Kernel& kernel = *warp.block->kernel;
    int32_t pc = warp.ready[chosenGroup(warp.ready)].pc;
    uint32_t lanes = takeLanesAt(warp.ready, pc);
    int32_t const meeting = nextMeeting(warp.ready);
    bool const isInterrupted = machine.options.lanes == Order::kRANDOM && !warp.ready.empty();
    while (true)
    {
        if (pc >= meeting || --budget <= 0 || (isInterrupted && machine.random() % 8 == 0))
        {
            warp.ready.push_back({pc, lanes});
            return;
        }
        Instruction const& instruction = kernel.code[static_cast<size_t>(pc)];
        machine.instruction = &instruction;
        ++kernel.executed[static_cast<size_t>(pc)];
        ++machine.warpInstructions;
        uint32_t active = lanes;
        if (instruction.isGuarded)
        {
            uint32_t const bits = warp.predicate(instruction.guard);
            active &= instruction.isGuardNegated ? ~bits : bits;
        }
        switch (instruction.flow)
        {
        case Flow::kNEXT:
            if (active != 0)
            {
                instruction.operation(warp, instruction, active);
            }
            break;
        case Flow::kBRANCH:
            if (active == lanes)
            {
                pc = instruction.target - 1;
            }
            else if (active != 0)
            {
                warp.ready.push_back({instruction.target, active});
                warp.ready.push_back({pc + 1, lanes & ~active});
                return;
            }
            break;
        case Flow::kEXIT:
            warp.live &= ~active;
            lanes &= ~active;
            if (lanes == 0)
            {
                return;
            }
            break;
        case Flow::kWARP_SYNC:
        case Flow::kBLOCK_SYNC:
            if (!synchronize(warp, instruction, pc, lanes))
            {
                return;
            }
            break;
        }
        ++pc;
    }
}

//! Runs a warp until it is at the block's barrier, has ended or has run for about the turn of the options.
void runWarp(Warp& warp)
{
    int64_t const turn = machine.options.turn;
    int64_t budget
        = turn == 0 ? LLONG_MAX : 1 + static_cast<int64_t>(machine.random() % static_cast<uint64_t>(2 * turn));
    while (warp.live != 0 && !warp.isAtBarrier && budget > 0)
    {
        if (warp.ready.empty())
        {
            failStuck(warp);
        }
        runGroup(warp, budget);
    }
}

//! All warps that have not ended are at a barrier.
void passBarrier(Block& block)
{
    bool any = false;
    bool hasReduction = false;
    bool hasPlain = false;
    for (Warp const& warp : block.warps)
    {
        if (!warp.isAtBarrier)
        {
            report("BARRIER WITHOUT WARPS THAT HAVE ENDED", nullptr, 0, "");
            continue;
        }
        Instruction const& instruction = block.kernel->code[static_cast<size_t>(warp.barrierPc)];
        machine.instruction = &instruction;
        (instruction.isReduction ? hasReduction : hasPlain) = true;
        any = any || (instruction.isReduction && (warp.predicate(instruction.operands[0]) & warp.live) != 0);
    }
    if (hasReduction && hasPlain)
    {
        report("BARRIERS OF TWO KINDS MEET", nullptr, 0, "");
    }
    block.barrier = ++machine.clock;
    for (Warp& warp : block.warps)
    {
        if (!warp.isAtBarrier)
        {
            continue;
        }
        Instruction const& instruction = block.kernel->code[static_cast<size_t>(warp.barrierPc)];
        if (instruction.isReduction)
        {
            putPredicate(warp, instruction.result, warp.live, any ? kALL_LANES : 0U);
        }
        warp.isAtBarrier = false;
        warp.orderedSince = machine.clock;
    }
}

void arrange(std::vector<uint32_t>& turns, Order order)
{
    if (order == Order::kDESCENDING)
    {
        std::reverse(turns.begin(), turns.end());
    }
    if (order == Order::kRANDOM)
    {
        std::shuffle(turns.begin(), turns.end(), machine.random);
    }
}

template <typename T>
void fillSlot(Warp const& warp, Slot slot, T number)
{
    if (slot != 0)
    {
        std::fill_n(warp.lanes<T>(slot), kLANES, number);
    }
}

//! Shared memory and the lanes' state as a block finds them. Registers keep what an earlier block left.
void startBlock(Block& block)
{
    machine.block = &block;
    block.start = block.barrier = ++machine.clock;
    memset(block.shared.base, 0xff, block.shared.bytes);
    std::fill(block.shared.written.begin(), block.shared.written.end(), 0);
    std::fill(block.inFlight.begin(), block.inFlight.end(), 0);
    for (auto& copies : block.copies)
    {
        copies.clear();
    }
    for (Warp& warp : block.warps)
    {
        uint32_t const threads = block.threads - static_cast<uint32_t>(warp.index * kLANES);
        warp.live = threads < kLANES ? (1U << threads) - 1U : kALL_LANES;
        warp.ready.assign(1, {0, warp.live});
        warp.waiting.clear();
        warp.isAtBarrier = false;
        warp.orderedSince = machine.clock;
        for (int32_t d = 0; d < 3; ++d)
        {
            fillSlot(warp, block.kernel->special.blockIndex[d], block.index[d]);
        }
    }
}

void runBlock(Block& block)
{
    startBlock(block);
    std::vector<uint32_t> turns;
    while (true)
    {
        turns.clear();
        bool isAnyAtBarrier = false;
        for (Warp const& warp : block.warps)
        {
            isAnyAtBarrier = isAnyAtBarrier || warp.isAtBarrier;
            if (warp.live != 0 && !warp.isAtBarrier)
            {
                turns.push_back(static_cast<uint32_t>(warp.index));
            }
        }
        if (turns.empty() && !isAnyAtBarrier)
        {
            return;
        }
        if (turns.empty())
        {
            passBarrier(block);
        }
        arrange(turns, machine.options.warps);
        for (uint32_t const warp : turns)
        {
            runWarp(block.warps[warp]);
        }
    }
}

//! A block's memory, which all blocks of a kernel use one after the other.
std::unique_ptr<Block> makeBlock(Kernel& kernel, uint32_t threads)
{
    constexpr size_t kALIGNMENT{64};
    auto block = std::make_unique<Block>();
    uint32_t const warps = (threads + kLANES - 1) / kLANES;
    block->kernel = &kernel;
    block->threads = threads;
    block->registers.assign(size_t{warps} * kernel.registerBytes + kALIGNMENT, 0xdb);
    auto const start = reinterpret_cast<uint64_t>(block->registers.data());
    uint8_t* const aligned = block->registers.data() + (kALIGNMENT - start % kALIGNMENT) % kALIGNMENT;
    block->warps.resize(warps);
    for (uint32_t i = 0; i < warps; ++i)
    {
        Warp& warp = block->warps[i];
        warp.index = static_cast<int32_t>(i);
        warp.block = block.get();
        warp.registers = aligned + size_t{i} * kernel.registerBytes;
        for (Constant const& constant : kernel.constants)
        {
            if (constant.isWide)
            {
                fillSlot(warp, constant.slot, constant.bits);
            }
            else
            {
                fillSlot(warp, constant.slot, static_cast<uint32_t>(constant.bits));
            }
        }
        for (int32_t d = 0; d < 3; ++d)
        {
            fillSlot(warp, kernel.special.threadIndex[d], 0U);
            fillSlot(warp, kernel.special.blockSize[d], d == 0 ? threads : 1U);
        }
        for (uint32_t lane = 0; lane < kLANES; ++lane)
        {
            for (auto const& [slot, number] : {std::pair{kernel.special.threadIndex[0], i * kLANES + lane},
                     std::pair{kernel.special.lane, lane}, std::pair{kernel.special.lanesBefore, (1U << lane) - 1U}})
            {
                if (slot != 0)
                {
                    warp.lanes<uint32_t>(slot)[lane] = number;
                }
            }
        }
    }
    auto* const shared = static_cast<uint8_t*>(aligned_alloc(256, kernel.sharedBytes / 256 * 256 + 512));
    block->shared.reset(shared, kernel.sharedBytes); // lives as long as the kernel
    block->shared.name = "shared";
    block->shared.isShared = true;
    block->inFlight.resize(kernel.sharedBytes / 16 + 2);
    block->copies.resize(size_t{warps} * kLANES);
    return block;
}

} // namespace

void report(char const* kind, Warp const* warp, int32_t lane, std::string const& details)
{
    if (++machine.reports == kMOST_REPORTS)
    {
        throw Stuck("no end of findings");
    }
    std::string const where = readableName(machine.kernel->name);
    std::string const what = machine.instruction == nullptr
        ? ""
        : machine.instruction->text + " (line " + std::to_string(machine.instruction->line) + ")";
    Finding& finding = machine.findings[std::string(kind) + " | " + where + " | " + what];
    if (finding.count++ == 0)
    {
        uint32_t const(&index)[3] = machine.block->index;
        finding.first = "block " + std::to_string(index[0]) + "," + std::to_string(index[1]) + ","
            + std::to_string(index[2]) + (warp == nullptr ? "" : " thread " + std::to_string(warp->thread(lane))) + ": "
            + details;
    }
}

bool run(Kernel& kernel, uint32_t const (&grid)[3], uint32_t threads, void* const* arguments)
{
    static std::map<Kernel*, std::unique_ptr<Block>> blocks;
    auto& entry = blocks[&kernel];
    if (!entry || entry->threads != threads)
    {
        entry = makeBlock(kernel, threads);
    }
    Block& block = *entry;
    block.parameters.assign(kernel.parameterBytes, 0);
    for (size_t i = 0; i < kernel.parameters.size(); ++i)
    {
        memcpy(block.parameters.data() + kernel.parameters[i].offset, arguments[i], kernel.parameters[i].bytes);
    }
    for (Warp const& warp : block.warps)
    {
        for (int32_t d = 0; d < 3; ++d)
        {
            fillSlot(warp, kernel.special.gridSize[d], grid[d]);
        }
    }
    machine.kernel = &kernel;
    machine.block = &block;
    machine.launch = ++machine.clock;
    machine.random.seed(machine.options.seed);
    std::vector<uint32_t> turns(size_t{grid[0]} * grid[1] * grid[2]);
    for (size_t i = 0; i < turns.size(); ++i)
    {
        turns[i] = static_cast<uint32_t>(i);
    }
    arrange(turns, machine.options.blocks);
    try
    {
        for (uint32_t const turn : turns)
        {
            block.index[0] = turn % grid[0];
            block.index[1] = turn / grid[0] % grid[1];
            block.index[2] = turn / grid[0] / grid[1];
            runBlock(block);
        }
    }
    catch (Stuck const& stuck)
    {
        report("STUCK", nullptr, 0, stuck.what());
        return false;
    }
    return true;
}

} // namespace ptx
