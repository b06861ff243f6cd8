//! \file prepare.cuh
//! Brings a tensor of any layout to token-major rows, aligned to 16 bytes and padded with zeros.
#pragma once

#include <cstdint>

#include <simt.h>

namespace hspan
{

constexpr int32_t kPREPARE_CHANNELS{64};
constexpr int32_t kPREPARE_POSITIONS{64};
constexpr int32_t kPREPARE_WARPS{4};
constexpr int32_t kPREPARE_THREADS{kPREPARE_WARPS * simt::kWARP_SIZE};

//! Rows on their way, an odd number of words apart.
template <typename T>
struct PrepareStage
{
    static constexpr int32_t kPITCH{kPREPARE_CHANNELS + (sizeof(T) == sizeof(float) ? 1 : 2)};

    alignas(4) T element[kPREPARE_POSITIONS][kPITCH];
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
    int32_t pitch; //!< a multiple of 16 bytes
    int32_t positions;
};

//! Reads what a block copies, zeros past the last channel; a lane keeps to two positions, so that neighboring lanes
//! read neighbors of a linear tensor.
template <typename T>
HSPAN_DEVICE void readLinear(
    PrepareStage<T>& stage, PrepareArguments<T> const& arguments, T const* source, int32_t channels, int32_t positions)
{
    int32_t const lane = simt::laneIndex();
    int32_t const warp = simt::warpIndex();
    T const* from = source + warp * arguments.sourceChannel + lane;
    int64_t const step = kPREPARE_WARPS * arguments.sourceChannel;
    HSPAN_UNROLL
    for (int32_t i = 0; i < kPREPARE_CHANNELS / kPREPARE_WARPS; ++i)
    {
        if (kPREPARE_WARPS * i >= arguments.pitch)
        {
            break;
        }
        int32_t const channel = warp + kPREPARE_WARPS * i;
        bool const exists = channel < channels;
        HSPAN_UNROLL
        for (int32_t position = 0; position < kPREPARE_POSITIONS; position += simt::kWARP_SIZE)
        {
            stage.element[lane + position][channel]
                = exists && lane + position < positions ? from[position] : simt::fromFloat<T>(0.0F);
        }
        from += step;
    }
}

//! The same where the channels of a position are neighbors.
template <typename T>
HSPAN_DEVICE void readStrided(
    PrepareStage<T>& stage, PrepareArguments<T> const& arguments, T const* source, int32_t channels, int32_t positions)
{
    for (int32_t i = simt::threadIndex(); i < kPREPARE_CHANNELS * kPREPARE_POSITIONS; i += kPREPARE_THREADS)
    {
        int32_t const channel = i % kPREPARE_CHANNELS;
        int32_t const position = i / kPREPARE_CHANNELS;
        stage.element[position][channel] = channel < channels && position < positions
            ? source[channel * arguments.sourceChannel + position * arguments.sourcePosition]
            : simt::fromFloat<T>(0.0F);
    }
}

//! Grid: x positions, y images (strided), z channels.
template <typename T>
HSPAN_KERNEL(kPREPARE_THREADS)
prepareKernel(PrepareArguments<T> arguments)
{
    HSPAN_SHARED(PrepareStage<T>, stage);
    constexpr int32_t kOF_PIECE{16 / static_cast<int32_t>(sizeof(T))};
    constexpr int32_t kPIECES{kPREPARE_CHANNELS / kOF_PIECE};
    int64_t const firstPosition = simt::blockX() * kPREPARE_POSITIONS;
    auto const firstChannel = static_cast<int32_t>(simt::blockZ() * kPREPARE_CHANNELS);
    int32_t const positions = arguments.positions - static_cast<int32_t>(firstPosition);
    for (int64_t image = simt::blockY(); image < arguments.batch; image += simt::gridY())
    {
        T const* const source = arguments.source + image * arguments.sourceBatch
            + firstChannel * arguments.sourceChannel + firstPosition * arguments.sourcePosition;
        simt::syncBlock(); // the readers of the previous image are done
        if (arguments.sourcePosition == 1)
        {
            readLinear(stage, arguments, source, arguments.channels - firstChannel, positions);
        }
        else
        {
            readStrided(stage, arguments, source, arguments.channels - firstChannel, positions);
        }
        simt::syncBlock();
        T* const target
            = arguments.target + (image * arguments.positions + firstPosition) * arguments.pitch + firstChannel;
        int32_t const piece = simt::threadIndex() % kPIECES;
        HSPAN_UNROLL
        for (int32_t i = 0; i < kPREPARE_POSITIONS * kPIECES / kPREPARE_THREADS; ++i)
        {
            int32_t const position = simt::threadIndex() / kPIECES + i * (kPREPARE_THREADS / kPIECES);
            if (firstChannel + piece * kOF_PIECE < arguments.pitch && position < positions)
            {
                simt::copyPiece(target + static_cast<int64_t>(position) * arguments.pitch + piece * kOF_PIECE,
                    &stage.element[position][piece * kOF_PIECE]);
            }
        }
    }
}

} // namespace hspan
