//! \file block.h
//! One block of GPU threads on the CPU: fibers that meet at barriers.
//!
//! The schedule is as hostile as the programming model allows. A warp runs ahead of the other warps until it waits at
//! a barrier of the block, and inside a warp a lane runs ahead of the other lanes until it waits at an exchange of the
//! warp, in an order that can be chosen: a result that relies on a barrier which is not there comes out wrong.
//! Shared memory starts as NaN and ends at an inaccessible page. Threads that wait at different barriers, or leave
//! while others wait, are reported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"

namespace simt::emulation
{

constexpr int32_t kLANES{32};

//! The order in which lanes of a warp, and warps of a block, get to run.
enum class LaneOrder : int32_t
{
    kFORWARD = 0,
    kREVERSE = 1,
    kSHUFFLED = 2, //!< another permutation each time
};

//! How the next launches of this operating system thread run.
struct Options
{
    LaneOrder order{LaneOrder::kFORWARD};
    uint64_t seed{1};
    int32_t computeCapability{86};
    int32_t multiprocessors{4};
};

//! Options of this operating system thread; may be changed between launches.
Options& options();

//! What the last launch that failed had to say; empty when the last launch succeeded.
std::string& lastError();

//! Barriers of a block that all its threads passed, summed over the blocks of the last launch.
int64_t& barrierCount();

//! Matrix products of the last launch, one per warp and instruction.
int64_t& productCount();

//! What a thread waits for.
enum class Wait : int32_t
{
    kNOTHING,
    kWARP,  //!< exchange among the lanes of a warp
    kBLOCK, //!< barrier of the block
    kEXIT,  //!< the thread has returned
};

class Block
{
public:
    Block(int32_t threads, std::function<void()> body);
    ~Block();
    Block(Block const&) = delete;
    Block& operator=(Block const&) = delete;

    //! Runs one block of the grid to its end. Throws std::runtime_error when its threads diverge at a barrier.
    void run(int64_t x, int64_t y, int64_t z, int64_t gridY);

    //! The block whose thread is running.
    static Block& current();

    int32_t thread() const
    {
        return mThread;
    }
    int64_t x() const
    {
        return mX;
    }
    int64_t y() const
    {
        return mY;
    }
    int64_t z() const
    {
        return mZ;
    }
    int64_t gridY() const
    {
        return mGridY;
    }

    //! Gives `value` to the warp, waits for all its lanes and returns what lane `lane` gave.
    uint32_t exchange(uint32_t value, int32_t lane, int32_t line);

    //! Gives a predicate to the warp and returns the predicates of all lanes, one bit each.
    uint32_t ballot(bool predicate, int32_t line);

    //! Waits for all lanes of the warp, then has `operation` work on what they brought: one pointer per lane, to
    //! objects that live on the lanes' stacks. Lanes that bring different operations count as diverged.
    void together(void (*operation)(Block& block, void* const* lanes), void* brought, int32_t line);

    //! Remembers a copy of 16 bytes that arrives when the thread waits for it. Until then the target holds NaN, as
    //! early as a copy could overwrite it.
    void startCopy(void* shared, void const* global, bool inside);

    //! Lets the copies of this thread arrive.
    void finishCopies();

    //! Reports a mistake of the kernel; the launch fails when the block is through.
    void report(std::string message);

    //! Whether 16 bytes at this address are an aligned part of the block's shared memory.
    bool isShared(void const* address) const;

    //! Waits for all threads of the block; returns whether the predicate holds in any of them.
    bool anyInBlock(bool predicate, int32_t line);

    //! The block's shared memory, NaN before the first use. Throws if a kernel asks for two different objects.
    void* sharedMemory(size_t bytes);

private:
    struct Copy
    {
        void* shared;
        void const* global;
        bool inside;
    };

    struct Thread
    {
        Fiber fiber;
        std::vector<Copy> copies;                         //!< started and not waited for
        void (*operation)(Block&, void* const*){nullptr}; //!< what the warp does together
        void* brought{nullptr};                           //!< this lane's part of it
        Wait wait{Wait::kNOTHING};
        int32_t line{0};       //!< source line of the barrier waited at
        uint32_t given{0};     //!< what the thread brought to it
        uint32_t exchanged{0}; //!< what it gave to the last exchange that completed
    };

    std::function<void()> mBody;
    std::vector<std::unique_ptr<Thread>> mThreads;
    std::vector<int32_t> mOrder;
    uint64_t mRandom{1};
    int32_t mThread{0};
    int64_t mX{0};
    int64_t mY{0};
    int64_t mZ{0};
    int64_t mGridY{1};
    bool mAny{false};
    unsigned char* mSharedPages{nullptr};
    size_t mSharedPagesBytes{0};
    size_t mSharedBytes{0};
    bool mSharedPoisoned{false};
    std::string mFailure; //!< what a thread found wrong; thrown by the scheduler, never across a fiber

    static void enter(void* block);
    void await(Wait wait, uint32_t given, int32_t line);
    std::vector<int32_t> const& order(int32_t count);
    void runWarp(int32_t firstThread);
    bool releaseWarp(int32_t firstThread);
    bool releaseBlock();
};

} // namespace simt::emulation
