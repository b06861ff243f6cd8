#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "machine.h"

namespace ptx
{

namespace
{

constexpr size_t kCOPY_BYTES{16};

std::vector<std::unique_ptr<Area>> areas;
std::vector<uint8_t*> allocations;
Area* lastArea{}; // accesses come in runs

uint64_t addressOf(void const* pointer)
{
    return reinterpret_cast<uint64_t>(pointer);
}

uint8_t* allocateRaw(size_t bytes)
{
    size_t const padded = (bytes + 255) / 256 * 256 + 512;
    auto* const memory = static_cast<uint8_t*>(aligned_alloc(256, padded));
    memset(memory, 0xff, padded);
    allocations.push_back(memory);
    return memory;
}

Area& addArea(uint8_t* base, size_t bytes, std::string name)
{
    areas.push_back(std::make_unique<Area>());
    areas.back()->name = std::move(name);
    areas.back()->reset(base, bytes);
    return *areas.back();
}

Area* areaAt(uint64_t address, size_t bytes)
{
    auto const contains = [&](Area const& area)
    {
        uint64_t const base = addressOf(area.base);
        return address >= base && address + bytes <= base + area.bytes;
    };
    if (lastArea != nullptr && contains(*lastArea))
    {
        return lastArea;
    }
    for (auto const& area : areas)
    {
        if (contains(*area))
        {
            return lastArea = area.get();
        }
    }
    return nullptr;
}

//! The area nearest below or around an address that is out of bounds.
std::string neighborhood(uint64_t address)
{
    for (auto const& area : areas)
    {
        auto const distance = static_cast<int64_t>(address - addressOf(area->base));
        if (distance > -4096 && distance < static_cast<int64_t>(area->bytes) + 4096)
        {
            return area->name + "+" + std::to_string(distance) + " of " + std::to_string(area->bytes);
        }
    }
    return "an address far from all tensors";
}

//! nullptr, and a report, where the bytes are not all in one area.
Area* globalArea(Warp& warp, int32_t lane, uint64_t address, size_t bytes, char const* verb)
{
    Area* const area = areaAt(address, bytes);
    if (area == nullptr)
    {
        report("OUT OF BOUNDS", &warp, lane,
            std::string(verb) + " " + std::to_string(bytes) + " bytes at " + neighborhood(address));
    }
    else if (address % bytes != 0)
    {
        report("MISALIGNED", &warp, lane, std::string(verb) + " " + std::to_string(bytes) + " bytes of " + area->name);
    }
    return area;
}

//! The same for shared memory, where the target of a copy in flight is out of bounds as well.
bool isSharedAccessible(Warp& warp, int32_t lane, uint32_t address, size_t bytes, char const* verb)
{
    Block const& block = *warp.block;
    if (address < kSHARED_BASE || address + bytes > kSHARED_BASE + block.shared.bytes)
    {
        auto const offset = static_cast<int64_t>(address) - kSHARED_BASE;
        report("OUT OF BOUNDS", &warp, lane,
            std::string(verb) + " shared+" + std::to_string(offset) + " of " + std::to_string(block.shared.bytes));
        return false;
    }
    if (address % bytes != 0)
    {
        report("MISALIGNED", &warp, lane, std::string(verb) + " shared memory");
    }
    size_t const offset = address - kSHARED_BASE;
    for (size_t piece = offset / kCOPY_BYTES; piece <= (offset + bytes - 1) / kCOPY_BYTES; ++piece)
    {
        if (block.inFlight[piece] != 0)
        {
            report("IN FLIGHT", &warp, lane,
                std::string(verb) + " the target of a copy that thread " + std::to_string(block.inFlight[piece] - 1)
                    + " has not waited for");
        }
    }
    return true;
}

void read(Area& area, Warp& warp, int32_t lane, size_t offset, size_t bytes)
{
    if (!area.isWritten(offset, bytes))
    {
        report("UNINITIALIZED", &warp, lane, "reads " + area.name + "+" + std::to_string(offset));
    }
    if (machine.options.checkRaces)
    {
        checkRead(area, warp, lane, offset, bytes);
    }
}

void write(Area& area, Warp& warp, int32_t lane, size_t offset, size_t bytes, void const* source)
{
    if (area.isReadOnly)
    {
        report("WRITES INPUT", &warp, lane, area.name);
    }
    if (machine.options.checkRaces)
    {
        checkWrite(area, warp, lane, offset, bytes);
    }
    memcpy(area.base + offset, source, bytes);
    memset(area.written.data() + offset, 1, bytes);
}

void land(Warp& warp, int32_t lane, PendingCopy const& copy)
{
    Block& block = *warp.block;
    size_t const offset = copy.target - kSHARED_BASE;
    uint8_t bytes[kCOPY_BYTES] = {};
    memcpy(bytes, copy.source, copy.bytes);
    block.inFlight[offset / kCOPY_BYTES] = 0;
    write(block.shared, warp, lane, offset, kCOPY_BYTES, bytes);
}

} // namespace

void Area::reset(uint8_t* memory, size_t count)
{
    base = memory;
    bytes = count;
    written.assign(count, 0);
    accesses.assign(count / 2 + 2, {});
}

bool Area::isWritten(size_t offset, size_t count) const
{
    static constexpr uint8_t kONES[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    uint8_t const* const flags = written.data() + offset;
    switch (count)
    {
    case 2: return memcmp(flags, kONES, 2) == 0;
    case 4: return memcmp(flags, kONES, 4) == 0;
    case 8: return memcmp(flags, kONES, 8) == 0;
    case 16: return memcmp(flags, kONES, 16) == 0;
    default: return memchr(flags, 0, count) == nullptr;
    }
}

void* allocate(size_t bytes, char const* name, bool isReadOnly)
{
    uint8_t* const base = allocateRaw(bytes) + 16;
    addArea(base, bytes, name).isReadOnly = isReadOnly;
    return base;
}

void* allocateParts(size_t bytes, std::vector<Part> const& parts)
{
    uint8_t* const base = allocateRaw(bytes);
    for (Part const& part : parts)
    {
        if (part.offset + part.bytes > bytes)
        {
            throw std::runtime_error("the workspace is too small for its " + part.name);
        }
        if (part.bytes > 0)
        {
            addArea(base + part.offset, part.bytes, part.name);
        }
    }
    return base;
}

void useHostMemory(void* memory, size_t bytes, char const* name, bool isReadOnly)
{
    addArea(static_cast<uint8_t*>(memory), bytes, name).isReadOnly = isReadOnly;
}

void freeAll()
{
    for (uint8_t* const memory : allocations)
    {
        free(memory);
    }
    allocations.clear();
    areas.clear();
    lastArea = nullptr;
}

bool isWritten(void const* address, size_t bytes)
{
    Area const* const area = areaAt(addressOf(address), bytes);
    return area != nullptr && area->isWritten(addressOf(address) - addressOf(area->base), bytes);
}

void markWritten(void const* address, size_t bytes)
{
    if (Area* const area = areaAt(addressOf(address), bytes))
    {
        memset(area->written.data() + (addressOf(address) - addressOf(area->base)), 1, bytes);
    }
}

void readGlobal(Warp& warp, int32_t lane, uint64_t address, size_t bytes, void* target)
{
    memset(target, 0xff, bytes);
    if (Area* const area = globalArea(warp, lane, address, bytes, "reads"))
    {
        size_t const offset = address - addressOf(area->base);
        read(*area, warp, lane, offset, bytes);
        memcpy(target, area->base + offset, bytes);
    }
}

void writeGlobal(Warp& warp, int32_t lane, uint64_t address, size_t bytes, void const* source)
{
    if (Area* const area = globalArea(warp, lane, address, bytes, "writes"))
    {
        write(*area, warp, lane, address - addressOf(area->base), bytes, source);
    }
}

void readShared(Warp& warp, int32_t lane, uint32_t address, size_t bytes, void* target)
{
    memset(target, 0xff, bytes);
    if (isSharedAccessible(warp, lane, address, bytes, "reads"))
    {
        size_t const offset = address - kSHARED_BASE;
        read(warp.block->shared, warp, lane, offset, bytes);
        memcpy(target, warp.block->shared.base + offset, bytes);
    }
}

void writeShared(Warp& warp, int32_t lane, uint32_t address, size_t bytes, void const* source)
{
    if (isSharedAccessible(warp, lane, address, bytes, "writes"))
    {
        write(warp.block->shared, warp, lane, address - kSHARED_BASE, bytes, source);
    }
}

void startCopy(Warp& warp, int32_t lane, uint32_t target, uint64_t source, uint32_t bytes)
{
    if (bytes != kCOPY_BYTES && bytes != 0)
    {
        report("ODD SOURCE SIZE", &warp, lane, std::to_string(bytes));
        return;
    }
    if (source % kCOPY_BYTES != 0)
    {
        report("MISALIGNED", &warp, lane, "asynchronous copy from global memory");
    }
    if (!isSharedAccessible(warp, lane, target, kCOPY_BYTES, "copies to"))
    {
        return;
    }
    if (bytes != 0)
    {
        Area* const area = globalArea(warp, lane, source, kCOPY_BYTES, "copies");
        if (area == nullptr)
        {
            return;
        }
        read(*area, warp, lane, source - addressOf(area->base), kCOPY_BYTES);
    }
    PendingCopy const copy{target, reinterpret_cast<uint8_t const*>(source), bytes};
    if (machine.options.copiesLandAtOnce)
    {
        land(warp, lane, copy);
        return;
    }
    // Until it is waited for, the target holds NaNs that nobody has written.
    Block& block = *warp.block;
    size_t const offset = target - kSHARED_BASE;
    if (machine.options.checkRaces)
    {
        checkWrite(block.shared, warp, lane, offset, kCOPY_BYTES);
    }
    memset(block.shared.base + offset, 0xff, kCOPY_BYTES);
    memset(block.shared.written.data() + offset, 0, kCOPY_BYTES);
    auto const thread = static_cast<size_t>(warp.thread(lane));
    block.inFlight[offset / kCOPY_BYTES] = static_cast<uint16_t>(thread + 1);
    block.copies[thread].push_back(copy);
}

void finishCopies(Warp& warp, int32_t lane)
{
    auto& copies = warp.block->copies[static_cast<size_t>(warp.thread(lane))];
    for (PendingCopy const& copy : copies)
    {
        land(warp, lane, copy);
    }
    copies.clear();
}

} // namespace ptx
