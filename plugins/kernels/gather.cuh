//! \file gather.cuh
//! The output of rows whose support fits a list: a weighted sum of just those values.
//!
//! A warp takes a row, its lanes share the channels. Weights are FP32. Sums are chains of at most kCHAIN fused
//! multiply-adds in ascending key order whose results go into a two-float total: the error does not grow with the
//! support.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"
#include "tiled_arguments.cuh"
#include "two_float.cuh"

namespace hspan
{

constexpr int32_t kGATHER_WARPS{8};
constexpr int32_t kGATHER_ROWS{32};
constexpr int32_t kCHAIN{32};
constexpr int32_t kGATHER_PIECES{kMAX_VALUE_CHANNELS / (2 * simt::kWARP_SIZE)};

static_assert(kCHAIN == simt::kWARP_SIZE, "each lane reads one entry of a chain");

//! Outputs of a block's rows on their way to memory, and which of them are to be written.
struct GatherStage
{
    float output[kGATHER_ROWS][kMAX_VALUE_CHANNELS + 1];
    int32_t written[kGATHER_ROWS];
};

//! Sums of one lane: channels 64 p + 2 lane and the next, for every piece p.
struct GatherSums
{
    float partial[kGATHER_PIECES][2];
    TwoFloat total[kGATHER_PIECES][2];
};

//! The sum of one row, to shared memory.
template <typename T>
HSPAN_DEVICE void gatherRow(float (&output)[kMAX_VALUE_CHANNELS + 1], RowResult const& row, float const* scores,
    int32_t const* keys, T const* value, int64_t pitch, int32_t channels)
{
    int32_t const lane = simt::laneIndex();
    GatherSums sums = {};
    for (int32_t first = 0; first < row.count; first += kCHAIN)
    {
        int32_t const left = row.count - first;
        int32_t const length = left < kCHAIN ? left : kCHAIN;
        float const ownWeight = lane < length ? weightOf(row, scores[first + lane]) : 0.0F;
        int32_t const ownKey = lane < length ? keys[first + lane] : 0;
        HSPAN_UNROLL_BY(2)
        for (int32_t entry = 0; entry < length; ++entry)
        {
            float const weight = simt::shuffle(ownWeight, entry);
            T const* const source = value + simt::shuffle(ownKey, entry) * pitch + 2 * lane;
            HSPAN_UNROLL
            for (int32_t piece = 0; piece < kGATHER_PIECES; ++piece)
            {
                int32_t const channel = 2 * (piece * simt::kWARP_SIZE + lane);
                if (channel < channels)
                {
                    simt::Pair<T> const pair = simt::loadPair(source + piece * 2 * simt::kWARP_SIZE);
                    sums.partial[piece][0] = simt::multiplyAdd(weight, simt::toFloat(pair.x), sums.partial[piece][0]);
                    sums.partial[piece][1] = simt::multiplyAdd(weight, simt::toFloat(pair.y), sums.partial[piece][1]);
                }
            }
        }
        HSPAN_UNROLL
        for (int32_t piece = 0; piece < kGATHER_PIECES; ++piece)
        {
            HSPAN_UNROLL
            for (int32_t i = 0; i < 2; ++i)
            {
                addChain(sums.total[piece][i], sums.partial[piece][i]);
                sums.partial[piece][i] = 0.0F;
            }
        }
    }
    HSPAN_UNROLL
    for (int32_t piece = 0; piece < kGATHER_PIECES; ++piece)
    {
        int32_t const channel = 2 * (piece * simt::kWARP_SIZE + lane);
        bool const isDefined = row.anchor == row.anchor;
        output[channel] = isDefined ? valueOf(sums.total[piece][0]) : NAN;
        output[channel + 1] = isDefined ? valueOf(sums.total[piece][1]) : NAN;
    }
}

//! Writes the output of kGATHER_ROWS rows, except those on the dense route.
template <typename T>
HSPAN_KERNEL_FITTING(kGATHER_WARPS* simt::kWARP_SIZE, 3)
gatherKernel(TiledArguments<T> arguments)
{
    HSPAN_SHARED(GatherStage, stage);
    TilePlace const place = placeOf(arguments, kGATHER_ROWS);
    if (place.row >= arguments.positions)
    {
        return;
    }
    int32_t const channels = arguments.valueChannels;
    T const* const value = arguments.value + place.image * arguments.positions * arguments.valuePitch;
    for (int32_t r = simt::warpIndex(); r < kGATHER_ROWS; r += kGATHER_WARPS)
    {
        bool const exists = place.row + r < arguments.positions;
        RowResult const row = exists ? arguments.results[place.slot + r] : RowResult{};
        bool const isWritten = exists && row.count != kDENSE;
        if (isWritten)
        {
            int64_t const list = (place.slot + r) * arguments.capacity;
            gatherRow(stage.output[r], row, arguments.listScores + list, arguments.listKeys + list, value,
                arguments.valuePitch, channels);
        }
        if (simt::laneIndex() == 0)
        {
            stage.written[r] = isWritten ? 1 : 0;
        }
    }
    simt::syncBlock();
    bool const isLinear = arguments.outputPosition == 1;
    // Channels-last outputs are written up to their pitch, zeros past the last channel.
    int32_t const width = isLinear ? channels : static_cast<int32_t>(arguments.outputPosition);
    T* const output = arguments.output + place.image * arguments.outputBatch + place.row * arguments.outputPosition;
    for (int32_t i = simt::threadIndex(); i < kGATHER_ROWS * width; i += kGATHER_WARPS * simt::kWARP_SIZE)
    {
        int32_t const row = isLinear ? i % kGATHER_ROWS : i / width;
        int32_t const channel = isLinear ? i / kGATHER_ROWS : i % width;
        if (stage.written[row] != 0)
        {
            output[channel * arguments.outputChannel + row * arguments.outputPosition]
                = simt::fromFloat<T>(channel < channels ? stage.output[row][channel] : 0.0F);
        }
    }
}

} // namespace hspan
