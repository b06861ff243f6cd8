#include "block.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include <sys/mman.h>
#include <unistd.h>

namespace simt::emulation
{

namespace
{

thread_local Block* gBlock{nullptr};

constexpr size_t kCOPY_BYTES{16};

char const* nameOf(Wait wait)
{
    switch (wait)
    {
    case Wait::kNOTHING: return "nothing";
    case Wait::kWARP: return "a warp exchange";
    case Wait::kBLOCK: return "a block barrier";
    case Wait::kEXIT: return "exit";
    }
    return "?";
}

} // namespace

Options& options()
{
    static thread_local Options gOptions;
    return gOptions;
}

std::string& lastError()
{
    static thread_local std::string gError;
    return gError;
}

int64_t& barrierCount()
{
    static thread_local int64_t gCount{0};
    return gCount;
}

int64_t& productCount()
{
    static thread_local int64_t gCount{0};
    return gCount;
}

Block::Block(int32_t threads, std::function<void()> body)
    : mBody{std::move(body)}
    , mRandom{options().seed | 1U}
{
    if (threads <= 0 || threads % kLANES != 0)
    {
        throw std::runtime_error("the emulation runs whole warps only");
    }
    for (int32_t i = 0; i < threads; ++i)
    {
        mThreads.push_back(std::make_unique<Thread>());
    }
}

Block::~Block()
{
    if (mSharedPages != nullptr)
    {
        munmap(mSharedPages, mSharedPagesBytes);
    }
}

Block& Block::current()
{
    return *gBlock;
}

void Block::enter(void* block)
{
    auto& self = *static_cast<Block*>(block);
    self.mBody();
    self.await(Wait::kEXIT, 0, 0);
}

void Block::await(Wait wait, uint32_t given, int32_t line)
{
    Thread& self = *mThreads[static_cast<size_t>(mThread)];
    self.wait = wait;
    self.given = given;
    self.line = line;
    Fiber::yield();
}

uint32_t Block::exchange(uint32_t value, int32_t lane, int32_t line)
{
    int32_t const firstThread = mThread / kLANES * kLANES;
    await(Wait::kWARP, value, line);
    return mThreads[static_cast<size_t>(firstThread + lane)]->exchanged;
}

uint32_t Block::ballot(bool predicate, int32_t line)
{
    int32_t const firstThread = mThread / kLANES * kLANES;
    await(Wait::kWARP, predicate ? 1 : 0, line);
    uint32_t bits = 0;
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        bits |= mThreads[static_cast<size_t>(firstThread + lane)]->exchanged << static_cast<uint32_t>(lane);
    }
    return bits;
}

void Block::together(void (*operation)(Block& block, void* const* lanes), void* brought, int32_t line)
{
    Thread& self = *mThreads[static_cast<size_t>(mThread)];
    self.operation = operation;
    self.brought = brought;
    await(Wait::kWARP, 0, line);
}

void Block::startCopy(void* shared, void const* global, bool inside)
{
    if (!isShared(shared) || (inside && reinterpret_cast<uintptr_t>(global) % kCOPY_BYTES != 0))
    {
        report("an asynchronous copy whose addresses are not multiples of 16, or not to shared memory");
        return;
    }
    std::memset(shared, 0xff, kCOPY_BYTES);
    mThreads[static_cast<size_t>(mThread)]->copies.push_back({shared, global, inside});
}

void Block::finishCopies()
{
    std::vector<Copy>& copies = mThreads[static_cast<size_t>(mThread)]->copies;
    for (Copy const& copy : copies)
    {
        if (copy.inside)
        {
            std::memcpy(copy.shared, copy.global, kCOPY_BYTES);
        }
        else
        {
            std::memset(copy.shared, 0, kCOPY_BYTES);
        }
    }
    copies.clear();
}

void Block::report(std::string message)
{
    if (mFailure.empty())
    {
        mFailure = std::move(message);
    }
}

bool Block::isShared(void const* address) const
{
    auto const* const at = static_cast<unsigned char const*>(address);
    return mSharedPages != nullptr && at >= mSharedPages && at + kCOPY_BYTES <= mSharedPages + mSharedPagesBytes
        && reinterpret_cast<uintptr_t>(address) % kCOPY_BYTES == 0;
}

bool Block::anyInBlock(bool predicate, int32_t line)
{
    await(Wait::kBLOCK, predicate ? 1 : 0, line);
    return mAny;
}

void* Block::sharedMemory(size_t bytes)
{
    auto const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (mSharedPages == nullptr)
    {
        size_t const pages = (bytes + page - 1) / page * page;
        mSharedPagesBytes = pages + page;
        void* const memory
            = mmap(nullptr, mSharedPagesBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(static_cast<unsigned char*>(memory) + pages, page, PROT_NONE) != 0)
        {
            std::abort(); // no memory for a test: nothing sensible is left to do
        }
        mSharedPages = static_cast<unsigned char*>(memory);
        mSharedBytes = bytes;
    }
    if (bytes != mSharedBytes)
    {
        mFailure = "a kernel declares two shared objects; the emulation allows one";
    }
    unsigned char* const start = mSharedPages + mSharedPagesBytes - page - mSharedBytes;
    if (!mSharedPoisoned)
    {
        std::memset(start, 0xff, mSharedBytes); // every float a NaN
        mSharedPoisoned = true;
    }
    return start;
}

std::vector<int32_t> const& Block::order(int32_t count)
{
    mOrder.resize(static_cast<size_t>(count));
    std::iota(mOrder.begin(), mOrder.end(), 0);
    switch (options().order)
    {
    case LaneOrder::kFORWARD: break;
    case LaneOrder::kREVERSE: std::reverse(mOrder.begin(), mOrder.end()); break;
    case LaneOrder::kSHUFFLED:
        for (size_t i = mOrder.size(); i > 1; --i)
        {
            mRandom ^= mRandom << 13U; // xorshift64, Marsaglia 2003
            mRandom ^= mRandom >> 7U;
            mRandom ^= mRandom << 17U;
            std::swap(mOrder[i - 1], mOrder[mRandom % i]);
        }
        break;
    }
    return mOrder;
}

bool Block::releaseWarp(int32_t firstThread)
{
    Thread const& first = *mThreads[static_cast<size_t>(firstThread)];
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        Thread const& thread = *mThreads[static_cast<size_t>(firstThread + lane)];
        if (thread.wait != Wait::kWARP || thread.line != first.line || thread.operation != first.operation)
        {
            return false;
        }
    }
    if (first.operation != nullptr)
    {
        void* brought[kLANES];
        for (int32_t lane = 0; lane < kLANES; ++lane)
        {
            brought[lane] = mThreads[static_cast<size_t>(firstThread + lane)]->brought;
        }
        first.operation(*this, brought);
    }
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        Thread& thread = *mThreads[static_cast<size_t>(firstThread + lane)];
        thread.exchanged = thread.given;
        thread.operation = nullptr;
        thread.wait = Wait::kNOTHING;
    }
    return true;
}

bool Block::releaseBlock()
{
    Thread const& first = *mThreads.front();
    bool any = false;
    for (auto const& thread : mThreads)
    {
        if (thread->wait != Wait::kBLOCK || thread->line != first.line)
        {
            return false;
        }
        any = any || thread->given != 0;
    }
    mAny = any;
    barrierCount() += 1;
    for (auto const& thread : mThreads)
    {
        thread->wait = Wait::kNOTHING;
    }
    return true;
}

void Block::runWarp(int32_t firstThread)
{
    do
    {
        for (int32_t const lane : std::vector<int32_t>{order(kLANES)})
        {
            mThread = firstThread + lane;
            Thread& thread = *mThreads[static_cast<size_t>(mThread)];
            if (thread.wait == Wait::kNOTHING)
            {
                thread.fiber.resume();
            }
        }
    } while (releaseWarp(firstThread));
}

void Block::run(int64_t x, int64_t y, int64_t z, int64_t gridY)
{
    gBlock = this;
    mX = x;
    mY = y;
    mZ = z;
    mGridY = gridY;
    mSharedPoisoned = false;
    mFailure.clear();
    for (auto const& thread : mThreads)
    {
        thread->wait = Wait::kNOTHING;
        thread->copies.clear();
        thread->operation = nullptr;
        thread->fiber.prepare(&Block::enter, this);
    }
    auto const warps = static_cast<int32_t>(mThreads.size()) / kLANES;
    do
    {
        for (int32_t const warp : std::vector<int32_t>{order(warps)})
        {
            runWarp(warp * kLANES);
        }
    } while (mFailure.empty() && releaseBlock());
    gBlock = nullptr;
    if (!mFailure.empty())
    {
        throw std::runtime_error(mFailure);
    }
    for (size_t i = 0; i < mThreads.size(); ++i)
    {
        Thread const& thread = *mThreads[i];
        if (thread.wait == Wait::kEXIT)
        {
            continue;
        }
        auto const isElsewhere = [&thread](std::unique_ptr<Thread> const& other)
        { return other->wait != thread.wait || other->line != thread.line; };
        Thread const& other = **std::find_if(mThreads.begin(), mThreads.end(), isElsewhere);
        throw std::runtime_error("barrier divergence: thread " + std::to_string(i) + " waits at " + nameOf(thread.wait)
            + " (line " + std::to_string(thread.line) + ") while another waits at " + nameOf(other.wait) + " (line "
            + std::to_string(other.line) + ")");
    }
}

} // namespace simt::emulation
