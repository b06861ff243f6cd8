//! \file fiber.h
//! A thread of execution with its own stack that runs until it yields. One scheduler per operating system thread.
#pragma once

#include <cstddef>
#include <memory>

namespace simt::emulation
{

class Fiber
{
public:
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t kSTACK_BYTES{1024 * 1024}; // variables lie further apart
#else
    static constexpr size_t kSTACK_BYTES{128 * 1024};
#endif

    Fiber();
    ~Fiber();
    Fiber(Fiber const&) = delete;
    Fiber& operator=(Fiber const&) = delete;

    //! Arranges for the next resume() to call entry(argument). What ran on the stack before is dropped.
    void prepare(void (*entry)(void*), void* argument);

    //! Runs the fiber until it yields. Called by the scheduler only.
    void resume();

    //! Returns to the scheduler. Called inside the running fiber only.
    static void yield();

private:
    struct Platform;
    std::unique_ptr<Platform> mPlatform;
    void (*mEntry)(void*){nullptr};
    void* mArgument{nullptr};

    static void run();
};

} // namespace simt::emulation
