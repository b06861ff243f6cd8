#include "emulated_attention.h"

#include <cstring>

#include <simt.h>

#include "guarded_buffer.h"
#include "launchers.h"
#include "sparsemax_attention.h"

int32_t hspanEmulatedAttention(int32_t elementType, int32_t layout, int32_t config, int32_t capacity,
    int32_t computeCapability, int64_t batch, int64_t scoreChannels, int64_t valueChannels, int64_t positions,
    void const* query, void const* key, void const* value, void* output, int32_t laneOrder, uint64_t seed)
{
    simt::emulation::options() = {static_cast<simt::emulation::LaneOrder>(laneOrder), seed, computeCapability,
        simt::emulation::options().multiprocessors};
    hspan::AttentionProblem const problem{static_cast<hspan::ElementType>(elementType),
        static_cast<hspan::TensorLayout>(layout), {batch, scoreChannels, valueChannels, positions}};
    size_t const elementBytes = elementType == 0 ? 4 : 2;
    bool const isLinear = problem.layout == hspan::TensorLayout::kLINEAR;
    auto const bytesOf = [&](int64_t channels)
    {
        int64_t const pitch = isLinear ? channels : hspan::channelPitch(problem.type, channels);
        return elementBytes * static_cast<size_t>(batch * pitch * positions);
    };
    hspan::test::GuardedBuffer const guardedQuery{query, bytesOf(scoreChannels)};
    hspan::test::GuardedBuffer const guardedKey{key, bytesOf(scoreChannels)};
    hspan::test::GuardedBuffer const guardedValue{value, bytesOf(valueChannels)};
    hspan::test::GuardedBuffer const guardedOutput{bytesOf(valueChannels)};
    // Lists of the usual capacity take as much as the plugin is told; others as much as they take.
    size_t const workspaceBytes = capacity == 0 ? hspan::attentionWorkspaceBytes(problem, config)
                                                : static_cast<size_t>(hspan::tiledWorkspace(problem, capacity).bytes);
    hspan::test::GuardedBuffer const workspace{workspaceBytes};
    cudaError_t const status = hspan::launchWithCapacity(problem, config, capacity,
        {guardedQuery.data(), guardedKey.data(), guardedValue.data(), guardedOutput.data(), workspace.data()}, nullptr);
    std::memcpy(output, guardedOutput.data(), bytesOf(valueChannels));
    return status;
}

void hspanEmulatedMultiprocessors(int32_t count)
{
    simt::emulation::options().multiprocessors = count;
}

char const* hspanEmulatedError()
{
    return simt::emulation::lastError().c_str();
}

int64_t hspanEmulatedProducts()
{
    return simt::emulation::productCount();
}

uint16_t hspanEmulatedFromFloat(int32_t elementType, float value)
{
    return elementType == 1 ? simt::fromFloat<simt::Half>(value).bits : simt::fromFloat<simt::BFloat16>(value).bits;
}

float hspanEmulatedToFloat(int32_t elementType, uint16_t bits)
{
    return elementType == 1 ? simt::toFloat(simt::Half{bits}) : simt::toFloat(simt::BFloat16{bits});
}
