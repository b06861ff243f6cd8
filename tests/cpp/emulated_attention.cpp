#include "emulated_attention.h"

#include <cstring>

#include <simt.h>

#include "guarded_buffer.h"
#include "sparsemax_attention.h"

int32_t hspanEmulatedAttention(int32_t elementType, int64_t batch, int64_t scoreChannels, int64_t valueChannels,
    int64_t positions, void const* query, void const* key, void const* value, void* output, int32_t laneOrder,
    uint64_t seed)
{
    simt::emulation::options() = {static_cast<simt::emulation::LaneOrder>(laneOrder), seed};
    hspan::AttentionShape const shape{batch, scoreChannels, valueChannels, positions};
    size_t const elementBytes = elementType == 0 ? 4 : 2;
    size_t const scoreBytes = elementBytes * static_cast<size_t>(batch * scoreChannels * positions);
    size_t const valueBytes = elementBytes * static_cast<size_t>(batch * valueChannels * positions);
    hspan::test::GuardedBuffer const guardedQuery{query, scoreBytes};
    hspan::test::GuardedBuffer const guardedKey{key, scoreBytes};
    hspan::test::GuardedBuffer const guardedValue{value, valueBytes};
    hspan::test::GuardedBuffer const guardedOutput{valueBytes};
    hspan::test::GuardedBuffer const workspace{hspan::sparsemaxAttentionWorkspaceBytes(shape)};
    cudaError_t const status = hspan::launchSparsemaxAttention(static_cast<hspan::ElementType>(elementType), shape,
        guardedQuery.data(), guardedKey.data(), guardedValue.data(), guardedOutput.data(), workspace.data(), nullptr);
    std::memcpy(output, guardedOutput.data(), valueBytes);
    return status;
}

char const* hspanEmulatedError()
{
    return simt::emulation::lastError().c_str();
}

uint64_t hspanEmulatedWorkspaceBytes(int64_t batch, int64_t scoreChannels, int64_t valueChannels, int64_t positions)
{
    return hspan::sparsemaxAttentionWorkspaceBytes({batch, scoreChannels, valueChannels, positions});
}

uint16_t hspanEmulatedFromFloat(int32_t elementType, float value)
{
    return elementType == 1 ? simt::fromFloat<simt::Half>(value).bits : simt::fromFloat<simt::BFloat16>(value).bits;
}

float hspanEmulatedToFloat(int32_t elementType, uint16_t bits)
{
    return elementType == 1 ? simt::toFloat(simt::Half{bits}) : simt::toFloat(simt::BFloat16{bits});
}
