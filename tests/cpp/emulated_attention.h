//! \file emulated_attention.h
//! The launcher on emulated hardware, as C functions that Python calls through ctypes.
#pragma once

#include <cstdint>

extern "C"
{
    //! Runs the kernels on host memory. Inputs and output are copied to memory with inaccessible pages behind it.
    //!
    //! \param elementType 0 FP32, 1 FP16, 2 BF16. \param layout 0 linear, 1 channels-last. \param config see
    //! sparsemax_attention.h. \param capacity entries of the candidate lists, 0 for the usual. \param computeCapability
    //! the GPU's to pretend. \param laneOrder 0 forward, 1 reverse, 2 shuffled by `seed`.
    //! \return the launcher's status, 0 for success; hspanEmulatedError() tells more.
    int32_t hspanEmulatedAttention(int32_t elementType, int32_t layout, int32_t config, int32_t capacity,
        int32_t computeCapability, int64_t batch, int64_t scoreChannels, int64_t valueChannels, int64_t positions,
        void const* query, void const* key, void const* value, void* output, int32_t laneOrder, uint64_t seed);

    //! Multiprocessors of the emulated GPU, for later calls by this thread: they decide how the work is split.
    void hspanEmulatedMultiprocessors(int32_t count);

    //! What the emulation has to say about the last failure of this thread, such as threads that diverge at a barrier.
    char const* hspanEmulatedError();

    //! Matrix products of the last kernel, which of the tiled kernels is the dense route's: 0 if no tile took it.
    int64_t hspanEmulatedProducts();

    //! The emulation's own conversions, for comparison with another implementation. elementType 1 FP16, 2 BF16.
    uint16_t hspanEmulatedFromFloat(int32_t elementType, float value);
    float hspanEmulatedToFloat(int32_t elementType, uint16_t bits);
}
