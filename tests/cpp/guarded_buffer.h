//! \file guarded_buffer.h
//! Memory that ends at an inaccessible page: reading or writing past the end stops the program.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>
#include <unistd.h>

namespace hspan::test
{

class GuardedBuffer
{
public:
    //! Memory of `bytes` bytes, filled with 0xff: NaN in every float type.
    explicit GuardedBuffer(size_t bytes)
    {
        auto const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        size_t const pages = (bytes + page - 1) / page * page;
        mMappedBytes = pages + page;
        void* const memory = mmap(nullptr, mMappedBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + pages, page, PROT_NONE) != 0)
        {
            std::abort();
        }
        mMapped = memory;
        mData = static_cast<char*>(memory) + pages - bytes;
        std::memset(mData, 0xff, bytes);
    }

    GuardedBuffer(void const* source, size_t bytes)
        : GuardedBuffer{bytes}
    {
        std::memcpy(mData, source, bytes);
    }

    GuardedBuffer(GuardedBuffer const&) = delete;
    GuardedBuffer& operator=(GuardedBuffer const&) = delete;

    ~GuardedBuffer()
    {
        munmap(mMapped, mMappedBytes);
    }

    void* data() const
    {
        return mData;
    }

private:
    void* mMapped{nullptr};
    size_t mMappedBytes{0};
    char* mData{nullptr};
};

} // namespace hspan::test
