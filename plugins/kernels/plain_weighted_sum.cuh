//! \file plain_weighted_sum.cuh
//! The output: for every row, the sum of weight times value over its support, weights from the finished thresholds.
//!
//! Only keys with a positive weight in some row of the warp are visited, and a row adds only its own positive weights:
//! a value outside the support never enters the arithmetic, so that 0 * inf cannot arise. Sums are chains of fewer
//! than kFLUSH_AFTER + 32 fused multiply-adds whose results go into a two-float total: the error does not grow with L.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "plain_score_tile.cuh"
#include "two_float.cuh"

namespace hspan
{

//! Visited keys after which the running sums are added to the totals.
constexpr int32_t kFLUSH_AFTER{32};

//! Weights of one 32-key group, per warp, and the values they meet. Padded against bank conflicts.
template <int32_t kCHANNELS>
struct alignas(16) ValueStage
{
    float weights[kWARPS_PER_BLOCK][simt::kWARP_SIZE][kROWS_PER_WARP + 4];
    float values[kCHANNELS][simt::kWARP_SIZE + 1];
};

//! The score stage and the value stage are never in use at once.
template <int32_t kCHANNELS>
union OutputStage
{
    ScoreStage scores;
    ValueStage<kCHANNELS> values;
};

//! Running sums of one lane: rows of the warp, channels lane, lane + 32, ... of the block's slice.
template <int32_t kCHANNELS>
struct OutputSums
{
    static constexpr int32_t kPER_LANE{kCHANNELS / simt::kWARP_SIZE};
    float partial[kROWS_PER_WARP][kPER_LANE];
    TwoFloat total[kROWS_PER_WARP][kPER_LANE];
    int32_t pending; //!< keys in the partial sums
};

template <int32_t kCHANNELS>
HSPAN_DEVICE void flush(OutputSums<kCHANNELS>& sums)
{
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < OutputSums<kCHANNELS>::kPER_LANE; ++i)
        {
            addChain(sums.total[r][i], sums.partial[r][i]);
            sums.partial[r][i] = 0.0F;
        }
    }
    sums.pending = 0;
}

//! Copies kCHANNELS x 32 values into shared memory; channels and keys past the end are left alone, nobody reads them.
template <int32_t kCHANNELS, typename T>
HSPAN_DEVICE void loadValues(ValueStage<kCHANNELS>& stage, T const* value, Strides const& strides, int32_t channels,
    int32_t positions, int64_t firstKey)
{
    int64_t const key = firstKey + simt::laneIndex();
    int32_t const count = channels < kCHANNELS ? channels : kCHANNELS;
    if (key < positions)
    {
        for (int32_t channel = simt::warpIndex(); channel < count; channel += kWARPS_PER_BLOCK)
        {
            stage.values[channel][simt::laneIndex()]
                = simt::toFloat(value[channel * strides.channel + key * strides.position]);
        }
    }
}

//! Adds weight times value for the keys named by the bits of `hits`.
template <int32_t kCHANNELS>
HSPAN_DEVICE void addValues(
    OutputSums<kCHANNELS>& sums, ValueStage<kCHANNELS> const& stage, uint32_t hits, int32_t channels)
{
    for (uint32_t left = hits; left != 0; left &= left - 1)
    {
        int32_t const key = simt::lowestBit(left);
        auto const* const weights = reinterpret_cast<simt::Float4 const*>(&stage.weights[simt::warpIndex()][key][0]);
        simt::Float4 const low = weights[0];
        simt::Float4 const high = weights[1];
        float const weight[kROWS_PER_WARP] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        HSPAN_UNROLL
        for (int32_t i = 0; i < OutputSums<kCHANNELS>::kPER_LANE; ++i)
        {
            if (i * simt::kWARP_SIZE >= channels)
            {
                break;
            }
            int32_t const channel = i * simt::kWARP_SIZE + simt::laneIndex();
            float const value = channel < channels ? stage.values[channel][key] : 0.0F;
            HSPAN_UNROLL
            for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
            {
                if (weight[r] > 0.0F)
                {
                    sums.partial[r][i] = simt::multiplyAdd(weight[r], value, sums.partial[r][i]);
                }
            }
        }
    }
    sums.pending += simt::bitCount(hits);
    if (sums.pending >= kFLUSH_AFTER)
    {
        flush(sums);
    }
}

//! Adds one tile of keys to the sums. All threads of the block call it together.
template <int32_t kGROUPS, int32_t kCHANNELS, typename T>
HSPAN_DEVICE void addTile(OutputSums<kCHANNELS>& sums, ValueStage<kCHANNELS>& stage,
    float const (&scores)[kROWS_PER_WARP][kGROUPS], TwoFloat const (&thresholds)[kROWS_PER_WARP], T const* value,
    Strides const& strides, int32_t channels, int32_t positions, int64_t firstKey)
{
    HSPAN_UNROLL
    for (int32_t group = 0; group < kGROUPS; ++group)
    {
        float weight[kROWS_PER_WARP];
        bool positive = false;
        HSPAN_UNROLL
        for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
        {
            float const w = excess(scores[r][group], thresholds[r]);
            weight[r] = w > 0.0F ? w : 0.0F; // NaN thresholds, too, end as 0 here; the row is overwritten at the end
            positive = positive || weight[r] > 0.0F;
        }
        uint32_t const hits = simt::ballot(positive);
        if (!simt::anyInBlock(hits != 0)) // also: the readers of the stage are done
        {
            continue;
        }
        auto* const target = reinterpret_cast<simt::Float4*>(&stage.weights[simt::warpIndex()][simt::laneIndex()][0]);
        target[0] = {weight[0], weight[1], weight[2], weight[3]};
        target[1] = {weight[4], weight[5], weight[6], weight[7]};
        loadValues(stage, value, strides, channels, positions, firstKey + group * simt::kWARP_SIZE);
        simt::syncBlock(); // weights and values are complete
        addValues(sums, stage, hits, channels);
    }
}

//! Writes the output of one tile of rows and one slice of kCHANNELS channels.
//! Grid: x row tiles, y batches (strided), z channel slices.
template <typename T, int32_t kCHANNELS>
HSPAN_KERNEL_FITTING(kTHREADS_PER_BLOCK, 2)
weightedSumKernel(T const* query, T const* key, T const* value, PlainRow const* rows, T* output, Strides strides,
    Strides valueStrides, int64_t batch, int32_t scoreChannels, int32_t valueChannels, int32_t positions)
{
    HSPAN_SHARED(OutputStage<kCHANNELS>, stage);
    int32_t const lane = simt::laneIndex();
    auto const firstRow = static_cast<int32_t>(simt::blockX() * kROWS_PER_TILE);
    auto const firstChannel = static_cast<int32_t>(simt::blockZ() * kCHANNELS);
    int32_t const channels = valueChannels - firstChannel;
    int64_t const firstOwnRow = static_cast<int64_t>(firstRow) + simt::warpIndex() * kROWS_PER_WARP;
    for (int64_t n = simt::blockY(); n < batch; n += simt::gridY())
    {
        int64_t const valueOffset = n * valueStrides.batch + firstChannel * valueStrides.channel;
        T const* const slice = value + valueOffset;
        TwoFloat limits[kROWS_PER_WARP];
        HSPAN_UNROLL
        for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
        {
            int64_t const row = firstOwnRow + r;
            limits[r] = row < positions ? rows[n * positions + row].threshold : TwoFloat{NAN, NAN};
        }
        Refinement own = {};
        bool isRefined = false;
        if constexpr (kIS_REFINED_TYPE<T>)
        {
            int64_t const row = firstOwnRow + lane % kROWS_PER_WARP;
            own = row < positions ? rows[n * positions + row].refinement : Refinement{};
            isRefined = simt::anyInBlock(own.grid > 0.0F);
        }
        ScoreOperands<T> const operands
            = {query + n * strides.batch, key + n * strides.batch, strides, scoreChannels, positions, firstRow};
        OutputSums<kCHANNELS> sums = {};
        streamScores(stage.scores, operands, own, isRefined, true, [&](auto const& scores, int64_t firstKey)
            { addTile(sums, stage.values, scores, limits, slice, valueStrides, channels, positions, firstKey); });
        flush(sums);
        HSPAN_UNROLL
        for (int32_t i = 0; i < OutputSums<kCHANNELS>::kPER_LANE; ++i)
        {
            int64_t const channel = i * simt::kWARP_SIZE + lane;
            HSPAN_UNROLL
            for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
            {
                int64_t const row = firstOwnRow + r;
                if (row >= positions)
                {
                    continue;
                }
                int64_t const at = valueOffset + channel * valueStrides.channel + row * valueStrides.position;
                if (channel < channels)
                {
                    float const sum = limits[r].high == limits[r].high ? valueOf(sums.total[r][i]) : NAN;
                    output[at] = simt::fromFloat<T>(sum);
                }
                else if (valueStrides.channel == 1 && firstChannel + channel < valueStrides.position)
                {
                    output[at] = simt::fromFloat<T>(0.0F); // padding of a channels-last tensor
                }
            }
        }
    }
}

} // namespace hspan
