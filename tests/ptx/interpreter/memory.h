//! \file memory.h
//! Device and shared memory: which bytes exist, which have been written, by which thread and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ptx
{

struct Warp;

//! Who last accessed two bytes of memory, for the detection of races.
struct Access
{
    uint32_t writeTime{};
    uint32_t readTime{};
    uint16_t writer{}; //!< thread of its block
    uint16_t reader{}; //!< the same, or flags of races.cpp
};

//! Memory whose bounds are checked: a tensor, a part of the workspace, a block's shared memory.
struct Area
{
    uint8_t* base{};
    size_t bytes{};
    std::string name;
    bool isReadOnly{};
    bool isShared{};
    std::vector<uint8_t> written; //!< per byte
    std::vector<Access> accesses; //!< per two bytes

    //! All bytes are there, none is written.
    void reset(uint8_t* memory, size_t count);
    bool isWritten(size_t offset, size_t count) const;
};

//! Device memory of exactly `bytes`, aligned to 16 bytes and to no more: what the launcher requires. Every byte is
//! 0xff, a NaN of all element types.
void* allocate(size_t bytes, char const* name, bool isReadOnly);

//! A part of a larger allocation.
struct Part
{
    size_t offset;
    size_t bytes;
    std::string name;
};

//! Device memory, aligned to 256 bytes, of which only the parts may be accessed.
void* allocateParts(size_t bytes, std::vector<Part> const& parts);

//! Memory of the host that stands in for device memory until freeAll(), which leaves it alone.
void useHostMemory(void* memory, size_t bytes, char const* name, bool isReadOnly);

void freeAll();

//! Whether the device, or markWritten(), has written all these bytes.
bool isWritten(void const* address, size_t bytes);
void markWritten(void const* address, size_t bytes);

//! \name Accesses of one lane, checked: bounds, alignment, written before it is read, copies in flight, races
//! @{
void readGlobal(Warp& warp, int32_t lane, uint64_t address, size_t bytes, void* target);
void writeGlobal(Warp& warp, int32_t lane, uint64_t address, size_t bytes, void const* source);
void readShared(Warp& warp, int32_t lane, uint32_t address, size_t bytes, void* target);
void writeShared(Warp& warp, int32_t lane, uint32_t address, size_t bytes, void const* source);
//! Starts an asynchronous copy of 16 bytes, of zeros where `bytes` is 0.
void startCopy(Warp& warp, int32_t lane, uint32_t target, uint64_t source, uint32_t bytes);
void finishCopies(Warp& warp, int32_t lane);
//! @}

//! \name Races (races.cpp): reports an access that nothing orders after an earlier one, and remembers it
//! @{
void checkRead(Area& area, Warp& warp, int32_t lane, size_t offset, size_t bytes);
void checkWrite(Area& area, Warp& warp, int32_t lane, size_t offset, size_t bytes);
//! @}

} // namespace ptx
