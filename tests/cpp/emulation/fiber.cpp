#include "fiber.h"

#include <cstdint>
#include <cstring>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saving the callee-saved registers takes nanoseconds; ucontext makes a system call for the signal mask each time.
// Both ways are tested: HSPAN_FIBER_UCONTEXT chooses the portable one.
#if (defined(__x86_64__) || defined(__aarch64__)) && !defined(HSPAN_FIBER_UCONTEXT)
#define HSPAN_FIBER_REGISTERS 1
#else
#include <ucontext.h>
#endif

namespace simt::emulation
{

namespace
{
thread_local Fiber* gCurrent{nullptr};

//! Tells the address sanitizer which stack is in use; without it, nothing.
class StackSwitch
{
public:
#ifdef __SANITIZE_ADDRESS__
    //! Before the switch to a stack.
    void begin(void const* bottom, size_t bytes)
    {
        __sanitizer_start_switch_fiber(&mFakeStack, bottom, bytes);
    }

    //! After the switch back to the stack of the call of begin(), or, with `this` new, on a new stack.
    //! Tells what was left.
    void end(void const*& bottom, size_t& bytes)
    {
        __sanitizer_finish_switch_fiber(mFakeStack, &bottom, &bytes);
    }

    //! Forgets what is known of the variables of a stack that starts anew.
    static void forget(void const* bottom, size_t bytes)
    {
        __asan_unpoison_memory_region(bottom, bytes);
    }

private:
    void* mFakeStack{nullptr};
#else
    void begin(void const*, size_t)
    {
    }
    void end(void const*&, size_t&)
    {
    }
    static void forget(void const*, size_t)
    {
    }
#endif
};

//! The stack of the scheduler, as the running fiber saw it.
thread_local void const* gSchedulerBottom{nullptr};
thread_local size_t gSchedulerBytes{0};
} // namespace

#ifdef HSPAN_FIBER_REGISTERS

//! Saves the callee-saved registers and the stack pointer to *saved, and goes on where `next` was saved.
extern "C" void hspanSwitchStack(void** saved, void* next);

#ifdef __x86_64__

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

namespace
{
//! A stack on which hspanSwitchStack() finds zeros for the registers and the address to go on at. At a function's
//! entry the stack pointer is 8 below a multiple of 16; `ret` takes the address.
void* stackBefore(uintptr_t end, void (*function)())
{
    auto* const top = reinterpret_cast<uintptr_t*>(end);
    std::memset(top - 8, 0, 8 * sizeof *top);
    top[-2] = reinterpret_cast<uintptr_t>(function);
    return top - 8;
}
} // namespace

#else

// AAPCS64: x19 to x29, the link register x30, and the lower halves of v8 to v15.
asm(R"(
    .text
    .globl hspanSwitchStack
    .hidden hspanSwitchStack
    .type hspanSwitchStack, %function
hspanSwitchStack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size hspanSwitchStack, .-hspanSwitchStack
)");

namespace
{
//! A stack on which hspanSwitchStack() finds zeros for the registers and, for x30, the address to go on at.
void* stackBefore(uintptr_t end, void (*function)())
{
    auto* const top = reinterpret_cast<uintptr_t*>(end);
    std::memset(top - 20, 0, 20 * sizeof *top);
    top[-20 + 11] = reinterpret_cast<uintptr_t>(function);
    return top - 20;
}
} // namespace

#endif

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
    StackSwitch::forget(mPlatform->stack.get(), kSTACK_BYTES);
    auto const end = reinterpret_cast<uintptr_t>(mPlatform->stack.get() + kSTACK_BYTES) & ~uintptr_t{15};
    mPlatform->own = stackBefore(end, &Fiber::run);
}

void Fiber::resume()
{
    gCurrent = this;
    StackSwitch toFiber;
    toFiber.begin(mPlatform->stack.get(), kSTACK_BYTES);
    hspanSwitchStack(&mPlatform->scheduler, mPlatform->own);
    void const* bottom = nullptr;
    size_t bytes = 0;
    toFiber.end(bottom, bytes);
}

void Fiber::yield()
{
    Fiber* const self = gCurrent;
    StackSwitch toScheduler;
    toScheduler.begin(gSchedulerBottom, gSchedulerBytes);
    hspanSwitchStack(&self->mPlatform->own, self->mPlatform->scheduler);
    toScheduler.end(gSchedulerBottom, gSchedulerBytes);
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
    StackSwitch::forget(mPlatform->stack.get(), kSTACK_BYTES);
    getcontext(&mPlatform->own);
    mPlatform->own.uc_stack.ss_sp = mPlatform->stack.get();
    mPlatform->own.uc_stack.ss_size = kSTACK_BYTES;
    mPlatform->own.uc_link = nullptr;
    makecontext(&mPlatform->own, &Fiber::run, 0);
}

void Fiber::resume()
{
    gCurrent = this;
    StackSwitch toFiber;
    toFiber.begin(mPlatform->stack.get(), kSTACK_BYTES);
    swapcontext(&mPlatform->scheduler, &mPlatform->own);
    void const* bottom = nullptr;
    size_t bytes = 0;
    toFiber.end(bottom, bytes);
}

void Fiber::yield()
{
    Fiber* const self = gCurrent;
    StackSwitch toScheduler;
    toScheduler.begin(gSchedulerBottom, gSchedulerBytes);
    swapcontext(&self->mPlatform->own, &self->mPlatform->scheduler);
    toScheduler.end(gSchedulerBottom, gSchedulerBytes);
}

#endif

Fiber::Fiber()
    : mPlatform{std::make_unique<Platform>()}
{
}

Fiber::~Fiber() = default;

void Fiber::run()
{
    StackSwitch{}.end(gSchedulerBottom, gSchedulerBytes);
    Fiber* const self = gCurrent;
    self->mEntry(self->mArgument);
    for (;;)
    {
        yield(); // finished; the scheduler does not come back before prepare()
    }
}

} // namespace simt::emulation
