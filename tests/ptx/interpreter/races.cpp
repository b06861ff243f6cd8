//! \file races.cpp
//! Happens-before, per two bytes of memory. Within a block bar.sync and bar.red order accesses, within a warp also
//! bar.warp.sync; vote, shfl and mma do not order memory, though their lanes meet. Nothing orders two blocks of a
//! launch. Launches are ordered.
#include "machine.h"
#include "memory.h"

namespace ptx
{

namespace
{

// Access::reader, where it is more than one thread. Blocks have at most 1,024 threads.
constexpr uint16_t kTHREAD{0x3ff};
constexpr uint16_t kSEVERAL_LANES{0x400}; //!< beside the number of one of them
constexpr uint16_t kSEVERAL_WARPS{0x800};
constexpr uint16_t kSEVERAL_BLOCKS{0x8000};

//! Whether an earlier access within the block comes before what the warp does now.
bool isOrdered(Warp const& warp, uint32_t time, bool isOfSameWarp)
{
    return time < warp.block->barrier || (isOfSameWarp && time < warp.orderedSince);
}

//! Whether the last write conflicts with an access of thread `own`.
bool conflictsWithWrite(Access const& access, Area const& area, Warp const& warp, uint16_t own)
{
    if (access.writeTime < machine.launch)
    {
        return false;
    }
    if (access.writeTime < warp.block->start)
    {
        return !area.isShared; // another block's
    }
    return access.writer != own && !isOrdered(warp, access.writeTime, access.writer / kLANES == warp.index);
}

//! Whether the last reads conflict with a write of thread `own`.
bool conflictsWithReads(Access const& access, Area const& area, Warp const& warp, uint16_t own)
{
    if (access.readTime < machine.launch)
    {
        return false;
    }
    if (!area.isShared && (access.readTime < warp.block->start || (access.reader & kSEVERAL_BLOCKS) != 0))
    {
        return true;
    }
    if (access.readTime < warp.block->barrier)
    {
        return false;
    }
    uint16_t const reader = access.reader & kTHREAD;
    if ((access.reader & kSEVERAL_WARPS) != 0 || reader / kLANES != warp.index)
    {
        return true;
    }
    bool const hasOthers = reader != own || (access.reader & kSEVERAL_LANES) != 0;
    return hasOthers && !isOrdered(warp, access.readTime, true);
}

void rememberRead(Access& access, Warp const& warp, uint16_t own)
{
    uint16_t const blocks = access.reader & kSEVERAL_BLOCKS;
    uint16_t const reader = access.reader & kTHREAD;
    if (access.readTime < warp.block->start)
    {
        access.reader = access.readTime >= machine.launch ? own | kSEVERAL_BLOCKS : own;
    }
    else if (access.readTime < warp.block->barrier)
    {
        access.reader = own | blocks;
    }
    else if ((access.reader & kSEVERAL_WARPS) == 0)
    {
        if (reader / kLANES != warp.index)
        {
            access.reader = kSEVERAL_WARPS | blocks;
        }
        else if (access.readTime < warp.orderedSince)
        {
            access.reader = own | blocks;
        }
        else if (reader != own)
        {
            access.reader = kSEVERAL_LANES | reader | blocks;
        }
    }
    access.readTime = machine.clock;
}

} // namespace

void checkRead(Area& area, Warp& warp, int32_t lane, size_t offset, size_t bytes)
{
    auto const own = static_cast<uint16_t>(warp.thread(lane));
    for (size_t pair = offset / 2; pair < (offset + bytes + 1) / 2; ++pair)
    {
        Access& access = area.accesses[pair];
        if (conflictsWithWrite(access, area, warp, own))
        {
            report("RACE", &warp, lane,
                "reads what another thread has written, " + area.name + "+" + std::to_string(2 * pair));
        }
        rememberRead(access, warp, own);
    }
}

void checkWrite(Area& area, Warp& warp, int32_t lane, size_t offset, size_t bytes)
{
    auto const own = static_cast<uint16_t>(warp.thread(lane));
    for (size_t pair = offset / 2; pair < (offset + bytes + 1) / 2; ++pair)
    {
        Access& access = area.accesses[pair];
        bool const isOverwritten = conflictsWithWrite(access, area, warp, own);
        if (isOverwritten || conflictsWithReads(access, area, warp, own))
        {
            report("RACE", &warp, lane,
                std::string("writes what another thread has ") + (isOverwritten ? "written, " : "read, ") + area.name
                    + "+" + std::to_string(2 * pair));
        }
        access.writeTime = machine.clock;
        access.writer = own;
    }
}

} // namespace ptx
