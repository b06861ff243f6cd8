//! \file test_large_strides.cpp
//! Tensors whose elements lie further apart than 32 bits can count: few rows, 2^26 elements from one to the next. The
//! memory is mapped and not reserved, so that only the pages that are touched exist.
#include <algorithm>
#include <random>

#include <simt.h>

#include <sys/mman.h>

#include "check.h"
#include "coarse_copies.cuh"
#include "reference.h"
#include "two_looks.cuh"

using namespace hspan;
using namespace hspan::test;

namespace
{

constexpr int64_t kPITCH{(int64_t{1} << 26) + 8};
constexpr int64_t kPOSITIONS{70}; // of which all from 32 on lie beyond 2^31 elements, from 64 on beyond 2^32
constexpr int32_t kCHANNELS{72};  // likewise
//! For lists of FP16, which find a value by the bytes from key 0 in 32 bits: the rows of the greatest tensor, of 2^20
//! positions with 256 channels, end at an eighth of them.
constexpr int64_t kLIST_VALUE_PITCH{(int64_t{1} << 31) / kPOSITIONS / 8 * 8};

//! Room for `bytes` bytes of zeros that cost nothing before they are written.
class SparseMemory
{
public:
    explicit SparseMemory(size_t bytes)
        : mBytes{bytes}
        , mData{mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)}
    {
        check(mData != MAP_FAILED, "no room for ", bytes, " bytes of addresses");
        madvise(mData, bytes, MADV_NOHUGEPAGE); // a large page for each row would be half a gigabyte
    }

    SparseMemory(SparseMemory const&) = delete;
    SparseMemory& operator=(SparseMemory const&) = delete;

    ~SparseMemory()
    {
        munmap(mData, mBytes);
    }

    template <typename T>
    T* as() const
    {
        return static_cast<T*>(mData);
    }

private:
    size_t mBytes;
    void* mData;
};

//! Rows of a tensor at `pitch` elements from each other, and what they hold as (C, L).
template <typename T>
std::vector<float> fill(T* rows, uint32_t seed, float scale, int64_t pitch = kPITCH)
{
    std::mt19937 generator{seed};
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(kCHANNELS * kPOSITIONS));
    for (int64_t row = 0; row < kPOSITIONS; ++row)
    {
        for (int64_t channel = 0; channel < kCHANNELS; ++channel)
        {
            T const element = simt::fromFloat<T>(scale * normal(generator));
            rows[row * pitch + channel] = element;
            values[static_cast<size_t>(channel * kPOSITIONS + row)] = simt::toFloat(element);
        }
    }
    return values;
}

void succeeds(cudaError_t status)
{
    check(status == cudaSuccess, simt::emulation::lastError());
}

//! Launches the two looks. Of FP32 they see copies in FP16, made of the tensors.
template <typename T>
void launchKernels(LookCall const& call, TiledArguments<T> const& tensors)
{
    LookArguments<simt::Half> looks = lookArguments<simt::Half>(call);
    LookArguments<T> arguments = lookArguments<T>(call);
    arguments.tensors = tensors;
    if constexpr (sizeof(T) == sizeof(float))
    {
        succeeds(makeCoarseCopies(call, tensors));
    }
    else
    {
        looks.tensors = tensors;
    }
    succeeds(findMaxima(call, looks));
    succeeds(launchLowerBounds(call));
    succeeds(collectLists(call, looks, false));
    succeeds(finishLists(call, arguments));
    succeeds(findDenseThresholds(call, arguments));
    succeeds(sumDense(call, arguments));
}

//! \brief Launches the kernels on such tensors.
//!
//! Lists of `capacity` entries decide the route. Of the output the channels lie far apart if it is not channels-last.
template <typename T>
void checkKernels(int32_t capacity, bool isChannelsLast)
{
    simt::emulation::options() = {simt::emulation::LaneOrder::kSHUFFLED, 1, 86, 1};
    size_t const bytes = static_cast<size_t>(kPITCH * std::max<int64_t>(kPOSITIONS, kCHANNELS)) * sizeof(T);
    SparseMemory const query{bytes};
    SparseMemory const key{bytes};
    SparseMemory const value{bytes};
    SparseMemory const output{bytes};
    bool const isDense = capacity < kPOSITIONS;
    int64_t const valuePitch = sizeof(T) == 2 && !isDense ? kLIST_VALUE_PITCH : kPITCH;
    Problem const problem{1, kCHANNELS, kCHANNELS, kPOSITIONS, fill(query.as<T>(), 1, 0.1F), fill(key.as<T>(), 2, 0.1F),
        fill(value.as<T>(), 3, 1.0F, valuePitch)};
    AttentionProblem const attention{sizeof(T) == 2 ? ElementType::kHALF : ElementType::kFLOAT,
        TensorLayout::kCHANNELS_LAST, {1, kCHANNELS, kCHANNELS, kPOSITIONS}};
    TiledWorkspace const workspace = tiledWorkspace(attention, capacity);
    std::vector<uint64_t> memory(static_cast<size_t>(workspace.bytes) / sizeof(uint64_t));
    LookCall const call{attention, workspace, lookPlan(workspace, kPOSITIONS, 1),
        {query.as<T>(), key.as<T>(), value.as<T>(), output.as<T>(), memory.data()}, nullptr, 0, kSLOT_ALIGNMENT};
    TiledArguments<T> arguments = tiledArguments<T>(attention, workspace, call.pointers);
    arguments.scorePitch = kPITCH;
    arguments.valuePitch = valuePitch;
    arguments.outputChannel = isChannelsLast ? 1 : kPITCH;
    arguments.outputPosition = isChannelsLast ? kCHANNELS : 1; // written up to the pitch, padding included
    launchKernels(call, arguments);
    for (int64_t row = 0; row < kPOSITIONS; ++row)
    {
        check((arguments.results[row].count == kDENSE) == isDense, "row ", row, " took another route");
        RowReference const expected = rowReference(problem, 0, row, Scores::kEXACT);
        for (int64_t d = 0; d < kCHANNELS; ++d)
        {
            float const got
                = simt::toFloat(arguments.output[d * arguments.outputChannel + row * arguments.outputPosition]);
            double const want = expected.output[static_cast<size_t>(d)];
            double const most = expected.tolerance[static_cast<size_t>(d)]
                + (sizeof(T) == 2 ? std::fabs(want) * 0x1p-11 + 0x1p-25 : 0.0);
            check(std::fabs(got - want) <= most, "row ", row, " channel ", d, ": got ", got, ", expected ", want);
        }
    }
}

} // namespace

int main()
{
    for (int32_t const capacity : {static_cast<int32_t>(kPOSITIONS), 1})
    {
        std::string const suffix = capacity == 1 ? ", on the dense route" : ", on lists";
        for (bool const isChannelsLast : {true, false})
        {
            std::string const what = isChannelsLast ? "rows" : "output channels";
            addTest(what + " that lie 2^26 elements apart, FP16" + suffix,
                [=] { checkKernels<simt::Half>(capacity, isChannelsLast); });
            addTest(what + " that lie 2^26 elements apart, FP32" + suffix,
                [=] { checkKernels<float>(capacity, isChannelsLast); });
        }
    }
    return runAll();
}
