//! \file prepare.cuh
//! Brings a tensor of any layout to token-major rows, aligned to 16 bytes and padded with zeros.
#pragma once

#include <cstdint>

#include <simt.h>

namespace hspan
{

constexpr int32_t kPREPARE_CHANNELS{32};
constexpr int32_t kPREPARE_POSITIONS{64};
constexpr int32_t kPREPARE_THREADS{256};

template <typename T>
struct PrepareStage
{
    T element[kPREPARE_CHANNELS][kPREPARE_POSITIONS + 2];
};

//! What is copied: elements (image, channel, position) to (image, position, channel).
template <typename T>
struct PrepareArguments
{
    T const* source;
    T* target;             //!< (N, L, pitch)
    int64_t sourceBatch;   //!< elements from one image to the next
    int64_t sourceChannel; //!< from one channel to the next
    int64_t sourcePosition;
    int64_t batch;
    int32_t channels;
    int32_t pitch;
    int32_t positions;
};

//! Grid: x positions, y images (strided), z channels.
template <typename T>
HSPAN_KERNEL(kPREPARE_THREADS)
prepareKernel(PrepareArguments<T> arguments)
{
    HSPAN_SHARED(PrepareStage<T>, stage);
    int64_t const firstPosition = simt::blockX() * kPREPARE_POSITIONS;
    auto const firstChannel = static_cast<int32_t>(simt::blockZ() * kPREPARE_CHANNELS);
    constexpr int32_t kELEMENTS{kPREPARE_CHANNELS * kPREPARE_POSITIONS};
    bool const isLinear = arguments.sourcePosition == 1;
    for (int64_t image = simt::blockY(); image < arguments.batch; image += simt::gridY())
    {
        T const* const source = arguments.source + image * arguments.sourceBatch;
        simt::syncBlock(); // the readers of the previous image are done
        for (int32_t i = simt::threadIndex(); i < kELEMENTS; i += kPREPARE_THREADS)
        {
            // Neighboring threads read neighboring elements.
            int32_t const channel = isLinear ? i / kPREPARE_POSITIONS : i % kPREPARE_CHANNELS;
            int32_t const position = isLinear ? i % kPREPARE_POSITIONS : i / kPREPARE_CHANNELS;
            bool const inside
                = firstChannel + channel < arguments.channels && firstPosition + position < arguments.positions;
            stage.element[channel][position] = inside ? source[(firstChannel + channel) * arguments.sourceChannel
                                                            + (firstPosition + position) * arguments.sourcePosition]
                                                      : simt::fromFloat<T>(0.0F);
        }
        simt::syncBlock();
        for (int32_t i = simt::threadIndex(); i < kELEMENTS; i += kPREPARE_THREADS)
        {
            int32_t const channel = i % kPREPARE_CHANNELS;
            int64_t const position = firstPosition + i / kPREPARE_CHANNELS;
            if (firstChannel + channel < arguments.pitch && position < arguments.positions)
            {
                arguments.target[(image * arguments.positions + position) * arguments.pitch + firstChannel + channel]
                    = stage.element[channel][i / kPREPARE_CHANNELS];
            }
        }
    }
}

} // namespace hspan
