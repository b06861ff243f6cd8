#include "fiber.h"

#include <cstdint>
#include <cstdlib>

// Saving the six callee-saved registers takes nanoseconds; ucontext makes a system call for the signal mask each time.
// Both ways are tested: HSPAN_FIBER_UCONTEXT chooses the portable one.
#if defined(__x86_64__) && !defined(HSPAN_FIBER_UCONTEXT)
#define HSPAN_FIBER_REGISTERS 1
#else
#include <ucontext.h>
#endif

namespace simt::emulation
{

namespace
{
thread_local Fiber* gCurrent{nullptr};
} // namespace

#ifdef HSPAN_FIBER_REGISTERS

extern "C" void hspanSwitchStack(void** saved, void* next);

asm(R"(
    .text
    .globl hspanSwitchStack
    .hidden hspanSwitchStack
    .type hspanSwitchStack, @function
hspanSwitchStack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size hspanSwitchStack, .-hspanSwitchStack
)");

struct Fiber::Platform
{
    std::unique_ptr<unsigned char[]> stack{new unsigned char[kSTACK_BYTES]};
    void* own{nullptr};
    void* scheduler{nullptr};
};

void Fiber::prepare(void (*entry)(void*), void* argument)
{
    mEntry = entry;
    mArgument = argument;
    auto const end = reinterpret_cast<uintptr_t>(mPlatform->stack.get() + kSTACK_BYTES) & ~uintptr_t{15};
    // At a function's entry the stack pointer is 8 below a multiple of 16; `ret` takes the address of run().
    auto* const top = reinterpret_cast<uintptr_t*>(end);
    top[-1] = 0;
    top[-2] = reinterpret_cast<uintptr_t>(&Fiber::run);
    for (int32_t i = 3; i <= 8; ++i)
    {
        top[-i] = 0;
    }
    mPlatform->own = top - 8;
}

void Fiber::resume()
{
    gCurrent = this;
    hspanSwitchStack(&mPlatform->scheduler, mPlatform->own);
}

void Fiber::yield()
{
    Fiber* const self = gCurrent;
    hspanSwitchStack(&self->mPlatform->own, self->mPlatform->scheduler);
}

#else

struct Fiber::Platform
{
    std::unique_ptr<unsigned char[]> stack{new unsigned char[kSTACK_BYTES]};
    ucontext_t own{};
    ucontext_t scheduler{};
};

void Fiber::prepare(void (*entry)(void*), void* argument)
{
    mEntry = entry;
    mArgument = argument;
    getcontext(&mPlatform->own);
    mPlatform->own.uc_stack.ss_sp = mPlatform->stack.get();
    mPlatform->own.uc_stack.ss_size = kSTACK_BYTES;
    mPlatform->own.uc_link = nullptr;
    makecontext(&mPlatform->own, &Fiber::run, 0);
}

void Fiber::resume()
{
    gCurrent = this;
    swapcontext(&mPlatform->scheduler, &mPlatform->own);
}

void Fiber::yield()
{
    Fiber* const self = gCurrent;
    swapcontext(&self->mPlatform->own, &self->mPlatform->scheduler);
}

#endif

Fiber::Fiber()
    : mPlatform{std::make_unique<Platform>()}
{
}

Fiber::~Fiber() = default;

void Fiber::run()
{
    Fiber* const self = gCurrent;
    self->mEntry(self->mArgument);
    for (;;)
    {
        yield(); // finished; the scheduler does not come back before prepare()
    }
}

} // namespace simt::emulation
