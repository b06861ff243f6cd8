//! \file plain_score_tile.cuh
//! Tiles of the score matrix: their geometry, and the one place where a score is computed.
//!
//! A block holds a tile of query rows; each of its warps owns kROWS_PER_WARP of them outright, so that everything a
//! row needs (maximum, threshold, sums) stays inside one warp. Keys stream past in tiles of kKEYS_PER_TILE. A lane
//! holds the scores of its warp's rows against the keys lane, lane + 32, ... of the tile: an 8 x 4 register tile.
//!
//! In a refined tile they are refined scores for the rows that have such (refined_score.cuh), and the same scores as
//! otherwise for the others. Sums of two parts take twice the registers, so it has half as many keys.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "launchers.h"
#include "refined_score.cuh"

namespace hspan
{

constexpr int32_t kROWS_PER_WARP{8};
constexpr int32_t kWARPS_PER_BLOCK{4};
constexpr int32_t kKEYS_PER_LANE{4};
constexpr int32_t kCHANNELS_PER_STAGE{32};

constexpr int32_t kTHREADS_PER_BLOCK{kWARPS_PER_BLOCK * simt::kWARP_SIZE};
constexpr int32_t kROWS_PER_TILE{kWARPS_PER_BLOCK * kROWS_PER_WARP};
constexpr int32_t kKEYS_PER_TILE{kKEYS_PER_LANE * simt::kWARP_SIZE};

static_assert(kROWS_PER_WARP == 8, "rows are read as two groups of four floats, and lanes mirror rows modulo 8");

//! A slice of channels of the query tile and of the key tile, in shared memory.
struct alignas(16) ScoreStage
{
    float query[kCHANNELS_PER_STAGE][kROWS_PER_TILE];
    float key[kCHANNELS_PER_STAGE][kKEYS_PER_TILE];
};

//! The scores one lane holds: [row of the warp][32-key group of the tile].
template <int32_t kGROUPS>
using ScoreTile = float[kROWS_PER_WARP][kGROUPS];

//! One batch of the problem, as the kernels see it.
template <typename T>
struct ScoreOperands
{
    T const* query;    //!< (C, L)
    T const* key;      //!< (C, L)
    Strides strides;   //!< of both
    int32_t channels;  //!< C
    int32_t positions; //!< L
    int32_t firstRow;  //!< first query row of the block's tile
};

//! The first kernel's result for a row, input of the second.
struct PlainRow
{
    TwoFloat threshold; //!< NaN for a row without one
    Refinement refinement;
};

//! Copies `count` channels of a (C, L) matrix, columns first ... first + kWIDTH - 1, into shared memory; columns past
//! the end become zero. Consecutive threads read consecutive columns.
template <int32_t kWIDTH, int32_t kPITCH, typename T>
HSPAN_DEVICE void loadColumns(float (&target)[kCHANNELS_PER_STAGE][kPITCH], T const* source, Strides const& strides,
    int32_t positions, int64_t first, int32_t count)
{
    for (int32_t element = simt::threadIndex(); element < count * kWIDTH; element += kTHREADS_PER_BLOCK)
    {
        int32_t const channel = element / kWIDTH;
        int32_t const column = element % kWIDTH;
        bool const inside = first + column < positions;
        target[channel][column]
            = inside ? simt::toFloat(source[channel * strides.channel + (first + column) * strides.position]) : 0.0F;
    }
}

//! Sums of products on their way to scores.
template <bool kREFINED>
struct ScoreSums
{
    static constexpr int32_t kGROUPS{kREFINED ? kKEYS_PER_LANE / 2 : kKEYS_PER_LANE};
    ScoreTile<kGROUPS> sum;
    float rest[kREFINED ? kROWS_PER_WARP : 1][kGROUPS];
};

//! \param own the refinement of row lane % 8 of the warp.
template <bool kREFINED>
HSPAN_DEVICE void startSums(ScoreSums<kREFINED>& sums, Refinement const& own)
{
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        float const grid = kREFINED ? simt::shuffle(own.grid, r) : 0.0F;
        HSPAN_UNROLL
        for (int32_t group = 0; group < sums.kGROUPS; ++group)
        {
            sums.sum[r][group] = grid;
            if constexpr (kREFINED)
            {
                sums.rest[r][group] = 0.0F;
            }
        }
    }
}

//! Makes scores of sums, in place.
HSPAN_DEVICE void finishSums(ScoreSums<true>& sums, Refinement const& own)
{
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
    {
        Refinement const row = {simt::shuffle(own.grid, r), simt::shuffle(own.shift, r)};
        HSPAN_UNROLL
        for (int32_t group = 0; group < sums.kGROUPS; ++group)
        {
            sums.sum[r][group] = scoreOf(sums.sum[r][group], sums.rest[r][group], row);
        }
    }
}

//! Adds the products of the staged channels, in ascending channel order.
template <bool kREFINED>
HSPAN_DEVICE void accumulateScores(ScoreSums<kREFINED>& sums, ScoreStage const& stage, int32_t channels)
{
    int32_t const row = simt::warpIndex() * kROWS_PER_WARP;
    int32_t const lane = simt::laneIndex();
    HSPAN_UNROLL_BY(kREFINED ? 1 : 4)
    for (int32_t channel = 0; channel < channels; ++channel)
    {
        auto const* const queries = reinterpret_cast<simt::Float4 const*>(&stage.query[channel][row]);
        simt::Float4 const low = queries[0];
        simt::Float4 const high = queries[1];
        float const query[kROWS_PER_WARP] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        HSPAN_UNROLL
        for (int32_t group = 0; group < sums.kGROUPS; ++group)
        {
            float const key = stage.key[channel][group * simt::kWARP_SIZE + lane];
            HSPAN_UNROLL
            for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
            {
                if constexpr (kREFINED)
                {
                    addProduct(sums.sum[r][group], sums.rest[r][group], query[r], key);
                }
                else
                {
                    sums.sum[r][group] = simt::multiplyAdd(query[r], key, sums.sum[r][group]);
                }
            }
        }
    }
}

//! Streams all scores of the block's rows past `consume(scores, firstKey)`, tile by tile in ascending key order.
//! Scores of keys past the end are -inf. `own` is the refinement of row lane % 8 of the warp, for a refined tile.
//!
//! All threads of the block must call it together. A warp that passes isActive = false helps loading, computes nothing
//! and is not called back; `consume` may contain barriers of the block only if all warps pass true.
template <bool kREFINED, typename T, typename Consume>
HSPAN_DEVICE void streamScores(
    ScoreStage& stage, ScoreOperands<T> const& operands, Refinement const& own, bool isActive, Consume const& consume)
{
    constexpr int32_t kKEYS{ScoreSums<kREFINED>::kGROUPS * simt::kWARP_SIZE};
    int32_t const positions = operands.positions;
    for (int64_t firstKey = 0; firstKey < positions; firstKey += kKEYS)
    {
        ScoreSums<kREFINED> sums;
        startSums(sums, own);
        for (int32_t firstChannel = 0; firstChannel < operands.channels; firstChannel += kCHANNELS_PER_STAGE)
        {
            int32_t const left = operands.channels - firstChannel;
            int32_t const count = left < kCHANNELS_PER_STAGE ? left : kCHANNELS_PER_STAGE;
            int64_t const offset = firstChannel * operands.strides.channel;
            simt::syncBlock(); // the readers of the previous slice are done
            loadColumns<kROWS_PER_TILE>(
                stage.query, operands.query + offset, operands.strides, positions, operands.firstRow, count);
            loadColumns<kKEYS>(stage.key, operands.key + offset, operands.strides, positions, firstKey, count);
            simt::syncBlock(); // the slice is complete
            if (isActive)
            {
                accumulateScores(sums, stage, count);
            }
        }
        if (isActive)
        {
            if constexpr (kREFINED)
            {
                finishSums(sums, own);
            }
            HSPAN_UNROLL
            for (int32_t group = 0; group < sums.kGROUPS; ++group)
            {
                if (firstKey + group * simt::kWARP_SIZE + simt::laneIndex() >= positions)
                {
                    HSPAN_UNROLL
                    for (int32_t r = 0; r < kROWS_PER_WARP; ++r)
                    {
                        sums.sum[r][group] = -INFINITY;
                    }
                }
            }
            consume(sums.sum, firstKey);
        }
    }
}

//! The same with a tile that is refined or not, as all threads of the block agree.
template <typename T, typename Consume>
HSPAN_DEVICE void streamScores(ScoreStage& stage, ScoreOperands<T> const& operands, Refinement const& own,
    bool isRefined, bool isActive, Consume const& consume)
{
    if constexpr (kIS_REFINED_TYPE<T>)
    {
        if (isRefined)
        {
            streamScores<true>(stage, operands, own, isActive, consume);
            return;
        }
    }
    streamScores<false>(stage, operands, own, isActive, consume);
}

} // namespace hspan
