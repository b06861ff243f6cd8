//! \file test_emulation.cpp
//! The emulation itself: it must run what is right and catch what is wrong.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <simt.h>

#include "check.h"

using namespace hspan::test;
using simt::emulation::LaneOrder;

namespace
{

constexpr int32_t kTHREADS{128};

struct Numbers
{
    float of[kTHREADS];
};

//! Every thread reads what its neighbor wrote.
HSPAN_KERNEL(kTHREADS) rotate(float* result, bool withBarrier)
{
    HSPAN_SHARED(Numbers, shared);
    int32_t const thread = simt::threadIndex();
    shared.of[thread] = static_cast<float>(thread);
    if (withBarrier)
    {
        simt::syncBlock();
    }
    result[thread] = shared.of[(thread + 1) % kTHREADS];
}

//! Every thread writes to its neighbor's place twice; without a barrier in between some read the second value.
HSPAN_KERNEL(kTHREADS) overwrite(float* result, bool withBarrier)
{
    HSPAN_SHARED(Numbers, shared);
    int32_t const thread = simt::threadIndex();
    shared.of[(thread + 1) % kTHREADS] = 1.0F;
    simt::syncBlock();
    result[thread] = shared.of[thread];
    if (withBarrier)
    {
        simt::syncBlock();
    }
    shared.of[(thread + 1) % kTHREADS] = 2.0F;
}

//! Lanes read what other lanes of their warp wrote.
HSPAN_KERNEL(kTHREADS) reverseInWarp(float* result, bool withBarrier)
{
    HSPAN_SHARED(Numbers, shared);
    int32_t const thread = simt::threadIndex();
    shared.of[thread] = static_cast<float>(thread);
    if (withBarrier)
    {
        simt::syncWarp();
    }
    result[thread] = shared.of[thread ^ 31];
}

//! A warp exchange stands where a barrier of the block should: enough inside a warp, not between warps.
HSPAN_KERNEL(kTHREADS) rotateAfterWarpBarrier(float* result)
{
    HSPAN_SHARED(Numbers, shared);
    int32_t const thread = simt::threadIndex();
    shared.of[thread] = static_cast<float>(thread);
    simt::syncWarp();
    result[thread] = shared.of[(thread + 32) % kTHREADS];
}

HSPAN_KERNEL(kTHREADS) exchange(int32_t* result)
{
    int32_t const lane = simt::laneIndex();
    int32_t sum = lane;
    for (int32_t mask = 16; mask > 0; mask /= 2)
    {
        sum += simt::shuffleXor(sum, mask);
    }
    int32_t const third = simt::shuffle(lane * 10, 3);
    uint32_t const odd = simt::ballot(lane % 2 == 1);
    bool const any = simt::anyInBlock(simt::threadIndex() == 77);
    bool const none = simt::anyInBlock(false);
    bool const right = sum == 496 && third == 30 && odd == 0xaaaaaaaaU && any && !none;
    result[simt::threadIndex()] = right ? 1 : 0;
}

HSPAN_KERNEL(kTHREADS) divergeAtBarrier(float* /*result*/)
{
    if (simt::threadIndex() != 5)
    {
        simt::syncBlock();
    }
}

HSPAN_KERNEL(kTHREADS) divergeInWarp(float* /*result*/)
{
    if (simt::laneIndex() < 16)
    {
        simt::syncWarp();
    }
    else
    {
        simt::ballot(true);
    }
}

HSPAN_KERNEL(kTHREADS) readPastShared(float* result)
{
    HSPAN_SHARED(Numbers, shared);
    result[simt::threadIndex()] = shared.of[simt::threadIndex()]; // nobody wrote it
}

struct alignas(16) Matrices
{
    simt::Half a[16][24];
    simt::Half b[8][24]; //!< transposed: b[n][k]
    simt::Half v[16][24];
};

//! d = a b by fragments, and the fragments of v transposed. One warp.
HSPAN_KERNEL(32) multiply(float const* a, float const* b, float* d, float* transposed)
{
    HSPAN_SHARED(Matrices, shared);
    int32_t const lane = simt::laneIndex();
    for (int32_t i = lane; i < 256; i += 32)
    {
        shared.a[i / 16][i % 16] = simt::fromFloat<simt::Half>(a[i]);
        shared.v[i / 16][i % 16] = shared.a[i / 16][i % 16];
        if (i < 128)
        {
            shared.b[i % 8][i / 8] = simt::fromFloat<simt::Half>(b[i]);
        }
    }
    simt::syncWarp();
    uint32_t fragment[4];
    uint32_t other[4];
    simt::loadMatrices(fragment, &shared.a[lane % 16][lane / 16 * 8]);
    simt::loadMatrices(other, &shared.b[lane % 8][lane / 8 % 2 * 8]);
    float sums[4] = {0.0F, 0.0F, 0.0F, 0.0F};
    simt::multiplyMatrices<simt::Half>(sums, fragment, other[0], other[1]);
    for (int32_t r = 0; r < 4; ++r)
    {
        d[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2] = sums[r];
    }
    simt::loadMatricesTransposedAt<0>(other, simt::sharedAddress(&shared.v[lane % 16][lane / 16 * 8]));
    for (int32_t r = 0; r < 4; ++r)
    {
        for (uint32_t half = 0; half < 2; ++half)
        {
            auto const bits = static_cast<uint16_t>(other[r] >> (16U * half));
            transposed[(lane * 4 + r) * 2 + static_cast<int32_t>(half)] = simt::toFloat(simt::Half{bits});
        }
    }
}

struct alignas(16) Copied
{
    float of[kTHREADS][4];
};

//! Every thread reads what its neighbor's copy brought.
HSPAN_KERNEL(kTHREADS) copyAndRotate(float* result, float const* source, bool waits, bool withBarrier)
{
    HSPAN_SHARED(Copied, shared);
    int32_t const thread = simt::threadIndex();
    simt::copyAsync(&shared.of[thread], source + 4 * thread, thread % 2 == 0);
    if (waits)
    {
        simt::waitForCopies();
    }
    if (withBarrier)
    {
        simt::syncBlock();
    }
    result[thread] = shared.of[(thread + 1) % kTHREADS][3];
}

//! A copy is started while others still read what it will replace.
HSPAN_KERNEL(kTHREADS) copyOverReaders(float* result, float const* source, bool withBarrier)
{
    HSPAN_SHARED(Copied, shared);
    int32_t const thread = simt::threadIndex();
    shared.of[thread][0] = static_cast<float>(thread);
    simt::syncBlock();
    result[thread] = shared.of[(thread + 1) % kTHREADS][0];
    if (withBarrier)
    {
        simt::syncBlock();
    }
    simt::copyAsync(&shared.of[thread], source + 4 * thread, true);
    simt::waitForCopies();
}

HSPAN_KERNEL(kTHREADS) copyMisaligned(float* result)
{
    HSPAN_SHARED(Copied, shared);
    simt::copyAsync(&shared.of[0][1], result, true);
    simt::waitForCopies();
}

HSPAN_KERNEL(kTHREADS) loadMisaligned(float* result)
{
    HSPAN_SHARED(Copied, shared);
    uint32_t fragment[4];
    simt::loadMatrices(fragment, &shared.of[simt::laneIndex()][2]);
    result[0] = static_cast<float>(fragment[0]);
}

HSPAN_KERNEL(kTHREADS) divergeAtProduct(float* result)
{
    float sums[4] = {};
    uint32_t const a[4] = {};
    if (simt::laneIndex() != 3)
    {
        simt::multiplyMatrices<simt::Half>(sums, a, 0, 0);
    }
    result[simt::threadIndex()] = sums[0];
}

void inOrder(LaneOrder order)
{
    simt::emulation::options() = {order, 12345};
}

//! Whether the kernel gives the expected result in every order.
template <typename Kernel, typename... Parameters>
bool isRightInEveryOrder(Kernel kernel, std::vector<float> const& expected, Parameters... parameters)
{
    bool right = true;
    for (LaneOrder const order : {LaneOrder::kFORWARD, LaneOrder::kREVERSE, LaneOrder::kSHUFFLED})
    {
        inOrder(order);
        std::vector<float> result(kTHREADS, -1.0F);
        cudaError_t const status = simt::launch(kernel, simt::Grid{}, kTHREADS, nullptr, result.data(), parameters...);
        right = right && status == cudaSuccess && result == expected;
    }
    return right;
}

template <typename Kernel>
std::string failureOf(Kernel kernel)
{
    inOrder(LaneOrder::kFORWARD);
    std::vector<float> result(kTHREADS);
    cudaError_t const status = simt::launch(kernel, simt::Grid{}, kTHREADS, nullptr, result.data());
    check(status == cudaErrorLaunchFailure, "the launch succeeded");
    return simt::emulation::lastError();
}

} // namespace

int main()
{
    std::vector<float> rotated(kTHREADS);
    std::vector<float> rotatedByWarp(kTHREADS);
    std::vector<float> reversed(kTHREADS);
    for (int32_t i = 0; i < kTHREADS; ++i)
    {
        auto const at = static_cast<size_t>(i);
        rotated[at] = static_cast<float>((i + 1) % kTHREADS);
        rotatedByWarp[at] = static_cast<float>((i + 32) % kTHREADS);
        reversed[at] = static_cast<float>(i ^ 31);
    }
    std::vector<float> const ones(kTHREADS, 1.0F);

    addTest("threads see what others wrote before a barrier of the block",
        [&] { check(isRightInEveryOrder(&rotate, rotated, true), "wrong values"); });
    addTest("a missing barrier between writing and reading shows",
        [&] { check(!isRightInEveryOrder(&rotate, rotated, false), "nothing showed"); });
    addTest("a barrier between reading and overwriting keeps the values",
        [&] { check(isRightInEveryOrder(&overwrite, ones, true), "wrong values"); });
    addTest("a missing barrier between reading and overwriting shows",
        [&] { check(!isRightInEveryOrder(&overwrite, ones, false), "nothing showed"); });
    addTest("lanes see what others wrote before a barrier of the warp",
        [&] { check(isRightInEveryOrder(&reverseInWarp, reversed, true), "wrong values"); });
    addTest("a missing barrier of the warp shows",
        [&] { check(!isRightInEveryOrder(&reverseInWarp, reversed, false), "nothing showed"); });
    addTest("a barrier of the warp does not pass for one of the block",
        [&] { check(!isRightInEveryOrder(&rotateAfterWarpBarrier, rotatedByWarp), "nothing showed"); });
    addTest("shuffles, ballots and votes move the lanes' data",
        []
        {
            for (LaneOrder const order : {LaneOrder::kFORWARD, LaneOrder::kREVERSE, LaneOrder::kSHUFFLED})
            {
                inOrder(order);
                std::vector<int32_t> result(kTHREADS, 0);
                simt::launch(&exchange, simt::Grid{}, kTHREADS, nullptr, result.data());
                check(result == std::vector<int32_t>(kTHREADS, 1), "wrong data");
            }
        });
    addTest("a matrix product is made of fragments that come from other lanes",
        []
        {
            std::vector<float> a(256);
            std::vector<float> b(128);
            std::vector<float> expected(128, 0.0F);
            for (size_t i = 0; i < a.size(); ++i)
            {
                a[i] = static_cast<float>(i * 7 % 31) - 15.0F;
                b[i / 2] = static_cast<float>(i / 2 * 5 % 23) - 11.0F;
            }
            for (size_t i = 0; i < 16 * 8 * 16; ++i)
            {
                size_t const row = i / 128;
                size_t const column = i / 16 % 8;
                expected[row * 8 + column] += a[row * 16 + i % 16] * b[i % 16 * 8 + column];
            }
            for (LaneOrder const order : {LaneOrder::kFORWARD, LaneOrder::kREVERSE, LaneOrder::kSHUFFLED})
            {
                inOrder(order);
                std::vector<float> d(128);
                std::vector<float> transposed(256);
                cudaError_t const status = simt::launch<float const*, float const*, float*, float*>(
                    &multiply, simt::Grid{}, 32, nullptr, a.data(), b.data(), d.data(), transposed.data());
                check(status == cudaSuccess && d == expected, "wrong product");
                for (size_t lane = 0; lane < 32; ++lane)
                {
                    for (size_t r = 0; r < 4; ++r)
                    {
                        size_t const row = lane % 4 * 2 + r % 2 * 8; // matrix r: 8 r % 2 down, 8 r / 2 to the right
                        size_t const column = lane / 4 + r / 2 * 8;
                        check(transposed[(lane * 4 + r) * 2] == a[row * 16 + column]
                                && transposed[(lane * 4 + r) * 2 + 1] == a[(row + 1) * 16 + column],
                            "lane ", lane, " register ", r);
                    }
                }
            }
        });
    std::vector<float> source(4 * kTHREADS);
    std::vector<float> copied(kTHREADS);
    std::vector<float> rotatedOnce(kTHREADS);
    for (size_t i = 0; i < source.size(); ++i)
    {
        source[i] = static_cast<float>(i);
    }
    for (size_t i = 0; i < copied.size(); ++i)
    {
        size_t const neighbor = (i + 1) % kTHREADS;
        copied[i] = neighbor % 2 == 0 ? source[4 * neighbor + 3] : 0.0F;
    }
    float const* const from = source.data();
    addTest("asynchronous copies arrive after waiting and a barrier, zeros where there is nothing to read",
        [&] { check(isRightInEveryOrder(&copyAndRotate, copied, from, true, true), "wrong values"); });
    addTest("not waiting for asynchronous copies shows",
        [&] { check(!isRightInEveryOrder(&copyAndRotate, copied, from, false, true), "nothing showed"); });
    addTest("a missing barrier after waiting for asynchronous copies shows",
        [&] { check(!isRightInEveryOrder(&copyAndRotate, copied, from, true, false), "nothing showed"); });
    addTest("a missing barrier before an asynchronous copy overwrites shows",
        [&]
        {
            check(isRightInEveryOrder(&copyOverReaders, rotated, from, true), "wrong values");
            check(!isRightInEveryOrder(&copyOverReaders, rotated, from, false), "nothing showed");
        });
    addTest("misaligned copies and matrices, and lanes that miss a product, are reported",
        []
        {
            check(failureOf(&copyMisaligned).find("multiples of 16") != std::string::npos, "copy");
            check(failureOf(&loadMisaligned).find("ldmatrix") != std::string::npos, "matrices");
            check(failureOf(&divergeAtProduct).find("barrier divergence") != std::string::npos, "product");
        });
    addTest("a thread that leaves while others wait is reported",
        []
        {
            std::string const said = failureOf(&divergeAtBarrier);
            check(said.find("barrier divergence") != std::string::npos, said);
            check(said.find("exit") != std::string::npos, said);
        });
    addTest("lanes that wait at different exchanges are reported",
        []
        {
            std::string const said = failureOf(&divergeInWarp);
            check(said.find("barrier divergence") != std::string::npos, said);
        });
    addTest("shared memory starts as NaN in every block",
        []
        {
            inOrder(LaneOrder::kFORWARD);
            std::vector<float> result(kTHREADS, 0.0F);
            simt::launch(&readPastShared, simt::Grid{}, kTHREADS, nullptr, result.data());
            for (float const value : result)
            {
                check(std::isnan(value), "got ", value);
            }
        });
    addTest("grids beyond the limits are refused",
        []
        {
            std::vector<float> result(kTHREADS);
            simt::Grid const grid{1, simt::kMAX_GRID_Y + 1, 1};
            check(
                simt::launch(&readPastShared, grid, kTHREADS, nullptr, result.data()) == cudaErrorInvalidValue, "ran");
        });
    addTest("every FP16 number survives the way to FP32 and back",
        []
        {
            for (uint32_t bits = 0; bits <= 0xffffU; ++bits)
            {
                float const value = simt::toFloat(simt::Half{static_cast<uint16_t>(bits)});
                if (std::isnan(value))
                {
                    check((bits & 0x7fffU) > 0x7c00U, bits, " became NaN");
                    continue;
                }
                uint16_t const back = simt::fromFloat<simt::Half>(value).bits;
                check(back == bits, bits, " came back as ", back);
            }
        });
    addTest("FP32 rounds to the nearest FP16 and BF16 number, ties to even",
        []
        {
            // Between neighbors a and b: just below the middle a, at the middle the even one, just above b.
            for (uint32_t bits = 0; bits < 0x7bffU; ++bits)
            {
                float const a = simt::toFloat(simt::Half{static_cast<uint16_t>(bits)});
                float const b = simt::toFloat(simt::Half{static_cast<uint16_t>(bits + 1)});
                float const middle = (a + b) / 2.0F;
                uint32_t const even = bits % 2 == 0 ? bits : bits + 1;
                check(simt::fromFloat<simt::Half>(std::nextafter(middle, a)).bits == bits, bits, " below");
                check(simt::fromFloat<simt::Half>(middle).bits == even, bits, " middle");
                check(simt::fromFloat<simt::Half>(std::nextafter(middle, b)).bits == bits + 1, bits, " above");
            }
            for (uint32_t bits = 0; bits < 0x7f7fU; ++bits)
            {
                float const a = simt::toFloat(simt::BFloat16{static_cast<uint16_t>(bits)});
                float const middle = simt::floatFromBits(static_cast<int32_t>(bits << 16U | 0x8000U));
                uint32_t const even = bits % 2 == 0 ? bits : bits + 1;
                check(simt::fromFloat<simt::BFloat16>(a).bits == bits, bits, " itself");
                check(simt::fromFloat<simt::BFloat16>(std::nextafter(middle, 0.0F)).bits == bits, bits, " below");
                check(simt::fromFloat<simt::BFloat16>(middle).bits == even, bits, " middle");
            }
            check(simt::fromFloat<simt::Half>(65519.0F).bits == 0x7bffU, "65519 is the greatest FP16 number");
            check(simt::fromFloat<simt::Half>(65520.0F).bits == 0x7c00U, "65520 is infinite in FP16");
            check(std::isnan(simt::toFloat(simt::fromFloat<simt::BFloat16>(NAN))), "NaN stays NaN");
        });
    return runAll();
}
