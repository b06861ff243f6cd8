//! \file finish.cuh
//! From lists to outputs: a warp takes a row, finds the exact threshold of its list (list_threshold.cuh) and adds up
//! the values of its support (weighted_values.cuh).
//!
//! A row with more candidates than a list has entries is left to the dense route.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "list_scores.cuh"
#include "list_threshold.cuh"
#include "look_arguments.cuh"
#include "weighted_floats.cuh"
#include "weighted_values.cuh"

namespace hspan
{

//! Rows of a warp, at most: then neighboring lanes write neighboring outputs.
constexpr int32_t kMOST_ROWS_OF_WARP{8};

//! Warps of a block: two buffers of values for each are to fit into its shared memory.
template <int32_t kPIECES>
constexpr int32_t kFINISH_WARPS{kPIECES <= 4 ? 4 : 2};

template <typename T, int32_t kPIECES>
struct FinishStage
{
    static constexpr int32_t kWARPS{kFINISH_WARPS<kPIECES>};
    static constexpr int32_t kROWS{kWARPS * kMOST_ROWS_OF_WARP};

    typename WeightedValues<T, kPIECES>::Stage values[kWARPS];
    T outputs[kROWS][kPIECES * kCHANNELS_OF_PRODUCT + 4 / sizeof(T)]; //!< padded to an odd number of words
    int32_t isWritten[kROWS];
};

//! Where the steps to a list's threshold begin. All entries of FP16 and BF16 are above their row's bound, which is
//! within 1 of the greatest. Of FP32 coarse scores have chosen them: what lies too far below for the sums is left out.
template <typename T>
HSPAN_DEVICE StepStart startOf(RelativeList const& list)
{
    StepStart start{-INFINITY, list.list.count};
    if constexpr (kIS_REFINED_TYPE<T>)
    {
        constexpr float kFAR{1.0625F}; // more than 1, whatever subtracting rounds
        start.limit = simt::subtract(list.greatest, kFAR);
        start.above = list.countAbove(start.limit);
    }
    return start;
}

//! The threshold of one row on a list, and its output, to shared memory.
template <typename T, int32_t kPIECES>
HSPAN_DEVICE RowResult finishRow(WeightedValues<T, kPIECES>& values, SplitList const& list, float maximum,
    T const* value, TiledArguments<T> const& tensors, T* output)
{
    RelativeList const relative(list, maximum);
    RowResult const row
        = resultOf(true, maximum, relative.anchor, exactThreshold(relative, startOf<T>(relative)), list.count);
    float const scale = simt::kept(weightScale<T>(row.largest));
    values.begin();
    auto const push
        = [&](float score, int32_t key) { values.push(score > row.limit, relativeWeight(row, score) * scale, key); };
    HSPAN_UNROLL
    for (int32_t i = 0; i < kHELD_ENTRIES; ++i)
    {
        if (i == 0 || i * simt::kWARP_SIZE < list.count)
        {
            push(relative.held[i], relative.heldKeys[i]);
        }
    }
    for (int32_t first = kHELD_BY_WARP; first < list.count; first += simt::kWARP_SIZE)
    {
        if (first % kHELD_BY_WARP == 0)
        {
            values.multiply(false);
        }
        ListEntry const entry = list.at(first + simt::laneIndex());
        push(simt::subtract(entry.score, relative.anchor), entry.key);
    }
    values.multiply(true);
    float const inverse = 1.0F / scale;
    bool const isSpecial
        = values.finish([&](int32_t channel, float sum) { output[channel] = simt::fromFloat<T>(sum * inverse); });
    if (isSpecial)
    {
        simt::syncWarp(); // the outputs are complete
        for (int32_t channel = 0; channel < tensors.valueChannels; ++channel)
        {
            float const known = simt::toFloat(output[channel]);
            if (!(known - known == 0.0F)) // the same in all lanes
            {
                float const sum = plainSum(relative, row, value + channel, tensors.valuePitch);
                simt::syncWarp(); // all lanes have read
                if (simt::laneIndex() == 0)
                {
                    output[channel] = simt::fromFloat<T>(sum);
                }
            }
        }
    }
    return row;
}

//! Copies a block's finished rows to the output. All threads call it together.
template <typename T, int32_t kPIECES>
HSPAN_DEVICE void writeRows(
    FinishStage<T, kPIECES> const& stage, TiledArguments<T> const& tensors, TilePlace const& place, int32_t rows)
{
    constexpr int32_t kTHREADS{FinishStage<T, kPIECES>::kWARPS * simt::kWARP_SIZE};
    T* const output = tensors.output + place.image * tensors.outputBatch + place.row * tensors.outputPosition;
    if (tensors.outputPosition == 1)
    {
        int32_t const row = simt::threadIndex() % rows;
        if (stage.isWritten[row] != 0)
        {
            int32_t const step = kTHREADS / rows;
            int32_t channel = simt::threadIndex() / rows;
            T* target = output + channel * tensors.outputChannel + row;
            int64_t const targetStep = step * tensors.outputChannel;
            for (; channel < tensors.valueChannels; channel += step, target += targetStep)
            {
                *target = stage.outputs[row][channel];
            }
        }
        return;
    }
    // Channels-last outputs are written up to their pitch, zeros past the last channel.
    for (int32_t row = simt::warpIndex(); row < rows; row += FinishStage<T, kPIECES>::kWARPS)
    {
        for (int32_t channel = simt::laneIndex(); stage.isWritten[row] != 0 && channel < tensors.outputPosition;
            channel += simt::kWARP_SIZE)
        {
            output[row * tensors.outputPosition + channel * tensors.outputChannel]
                = channel < tensors.valueChannels ? stage.outputs[row][channel] : simt::fromFloat<T>(0.0F);
        }
    }
}

//! Writes the outputs of rows on lists, and which rows take the dense route. Grid: x rows, `rowsOfWarp` a warp, a power
//! of two up to kMOST_ROWS_OF_WARP.
template <typename T, int32_t kPIECES>
HSPAN_KERNEL_FITTING(kFINISH_WARPS<kPIECES>* simt::kWARP_SIZE, 4)
finishKernel(LookArguments<T> arguments, int32_t rowsOfWarp)
{
    using Stage = FinishStage<T, kPIECES>;
    HSPAN_SHARED(Stage, stage);
    TiledArguments<T> const& tensors = arguments.tensors;
    int32_t const rows = Stage::kWARPS * rowsOfWarp;
    TilePlace const place = placeOf(tensors, rows);
    int32_t const lane = simt::laneIndex();
    int32_t const splits = arguments.listSplit.count;
    int64_t const rowsBefore = place.image * tensors.positions;
    T const* const value = tensors.value + rowsBefore * tensors.valuePitch;
    WeightedValues<T, kPIECES> values(
        stage.values[simt::warpIndex()], value, tensors.valuePitch, tensors.valueChannels);
    for (int32_t r = simt::warpIndex(); r < rows; r += Stage::kWARPS)
    {
        int64_t const slot = place.slot + r;
        bool isWritten = place.row + r < tensors.positions;
        if (isWritten)
        {
            int32_t const own = lane < splits ? arguments.counts[slot * splits + lane] : 0;
            int32_t const count = splits == 1 ? simt::shuffle(own, 0) : simt::sumOfWarp(own);
            isWritten = count <= tensors.capacity;
            RowResult row = resultOf(false, 0.0F, 0.0F, 0, isWritten ? 0 : kDENSE);
            auto const writeNan = [&]
            {
                for (int32_t channel = lane; channel < tensors.valueChannels; channel += simt::kWARP_SIZE)
                {
                    stage.outputs[r][channel] = simt::fromFloat<T>(NAN);
                }
            };
            if (count == 0) // a row without a threshold
            {
                writeNan();
            }
            else if (isWritten)
            {
                SplitList const list(arguments.lists + slot * tensors.capacity, count, own, arguments);
                if constexpr (kIS_REFINED_TYPE<T>)
                {
                    float const maximum = scoreList(list, arguments, rowsBefore, place.row + r);
                    if (maximum - maximum == 0.0F)
                    {
                        row = finishRow(values, list, maximum, value, tensors, stage.outputs[r]);
                    }
                    else
                    {
                        writeNan();
                    }
                }
                else
                {
                    row = finishRow(values, list, arguments.bounds[slot].maximum, value, tensors, stage.outputs[r]);
                }
            }
            if (lane == 0)
            {
                tensors.results[slot] = row;
            }
        }
        if (lane == 0)
        {
            stage.isWritten[r] = isWritten ? 1 : 0;
        }
    }
    simt::syncBlock();
    writeRows(stage, tensors, place, rows);
}

} // namespace hspan
