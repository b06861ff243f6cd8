//! \file select.cuh
//! The threshold of every row, and the list of its support where it fits one.
//!
//! A block owns kWARPS * 16 rows of one image. One pass over the keys fills the rows' candidate lists. A full list is
//! tightened: its threshold rises and drops entries. If that frees too little space the whole tile takes the dense
//! route: Michelot's steps whose sums come from further passes over the scores, from the bounds reached so far. Both
//! routes end at the same bits (exact_threshold.cuh).
//!
//! Where scores are large enough for FP32's rounding to matter, both take refined scores (refined_score.cuh): for the
//! entries of the finished list, which the bound has let in with some slack, or in the passes of the dense route after
//! the first, which finds the greatest score.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "candidate_list.cuh"
#include "dense_threshold.cuh"
#include "exact_threshold.cuh"
#include "refined_list.cuh"
#include "tiled_arguments.cuh"

namespace hspan
{

//! Entries at which a list is first tightened, and the growth after which it is again.
constexpr int32_t kFIRST_TIGHTENING{128};
constexpr int32_t kGROWTH{4};

//! How far a row's list is.
struct ListState
{
    bool open;       //!< whether the row takes entries: it exists and has met neither NaN nor +inf
    float bound;     //!< scores at or below it are dropped
    int32_t count;   //!< entries
    int32_t trigger; //!< entries at which it is tightened
    float slack;     //!< between the list's threshold and the bound; 0 where the tile has no refined scores
};

//! Which keys of a tile pass in one row: bit i of word w is key 32 w + i.
template <int32_t kKEYS>
struct PassMask
{
    uint32_t word[(kKEYS + 31) / 32];
};

template <int32_t kKEYS>
HSPAN_DEVICE int32_t passCount(PassMask<kKEYS> const& mask)
{
    int32_t count = 0;
    HSPAN_UNROLL
    for (int32_t w = 0; w < (kKEYS + 31) / 32; ++w)
    {
        count += simt::bitCount(mask.word[w]);
    }
    return count;
}

//! The keys that pass in row g + 8 * half, gathered from the four lanes that hold the row. NaN passes.
template <int32_t kKEYS>
HSPAN_DEVICE PassMask<kKEYS> passMask(float const (&scores)[kKEYS / 8][4], ListState const& state, int32_t half)
{
    PassMask<kKEYS> mask = {};
    uint32_t const firstBit = static_cast<uint32_t>(simt::laneIndex()) % 4U * 2U;
    HSPAN_UNROLL
    for (int32_t i = 0; i < kKEYS / 8; ++i)
    {
        HSPAN_UNROLL
        for (int32_t j = 0; j < 2; ++j)
        {
            uint32_t const passes = state.open && !(scores[i][2 * half + j] <= state.bound) ? 1U : 0U;
            mask.word[i / 4] |= passes << (firstBit + static_cast<uint32_t>(i % 4 * 8 + j));
        }
    }
    HSPAN_UNROLL
    for (int32_t w = 0; w < (kKEYS + 31) / 32; ++w)
    {
        mask.word[w] |= simt::shuffleXor(mask.word[w], 1);
        mask.word[w] |= simt::shuffleXor(mask.word[w], 2);
    }
    return mask;
}

//! Where the lists of a warp's rows lie.
struct WarpLists
{
    float* scores;
    int32_t* keys;
    int32_t capacity;
};

//! Tightens the list of row `row` of the warp; the lanes that hold the row receive the result.
template <bool kHAS_REFINED>
HSPAN_DEVICE Tightened tightenRow(WarpLists const& lists, ListState (&state)[kROWS_OF_LANE], int32_t row)
{
    int32_t const count = simt::shuffle(row < 8 ? state[0].count : state[1].count, row % 8 * 4);
    int64_t const offset = static_cast<int64_t>(row) * lists.capacity;
    float const slack = kHAS_REFINED ? simt::shuffle(row < 8 ? state[0].slack : state[1].slack, row % 8 * 4) : 0.0F;
    return tighten(lists.scores + offset, lists.keys + offset, count, slack);
}

//! Appends the scores of a tile that pass. Returns whether a row of the warp has overflown.
template <int32_t kKEYS, bool kHAS_REFINED>
HSPAN_DEVICE bool appendTile(
    WarpLists const& lists, ListState (&state)[kROWS_OF_LANE], float const (&scores)[kKEYS / 8][4], int64_t firstKey)
{
    bool any = false;
    HSPAN_UNROLL
    for (int32_t i = 0; i < kKEYS / 8; ++i)
    {
        HSPAN_UNROLL
        for (int32_t j = 0; j < 4; ++j)
        {
            any = any || (state[j / 2].open && !(scores[i][j] <= state[j / 2].bound));
        }
    }
    if (simt::ballot(any) == 0)
    {
        return false;
    }
    int32_t const lane = simt::laneIndex();
    PassMask<kKEYS> mask[kROWS_OF_LANE] = {passMask<kKEYS>(scores, state[0], 0), passMask<kKEYS>(scores, state[1], 1)};
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        int32_t const count = state[half].count;
        bool const isFull = count > 0 && count + passCount<kKEYS>(mask[half]) > state[half].trigger;
        uint32_t full = simt::ballot(isFull && lane % 4 == 0);
        bool const tightened = full != 0;
        for (; full != 0; full &= full - 1)
        {
            int32_t const owner = simt::lowestBit(full);
            Tightened const list = tightenRow<kHAS_REFINED>(lists, state, owner / 4 + 8 * half);
            if (lane / 4 == owner / 4)
            {
                int32_t const trigger = kGROWTH * list.count + kFIRST_TIGHTENING;
                ListState& own = state[half];
                own.open
                    = list.maximum - list.maximum == 0.0F; // a row with NaN or +inf stays without a list from here on
                own.bound = list.bound;
                own.count = list.count;
                own.trigger = trigger < lists.capacity ? trigger : lists.capacity;
            }
        }
        if (tightened)
        {
            mask[half] = passMask<kKEYS>(scores, state[half], half);
        }
    }
    bool overflown = false;
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        ListState& own = state[half];
        int32_t const passing = passCount<kKEYS>(mask[half]);
        if (own.count + passing > lists.capacity)
        {
            overflown = true;
            continue;
        }
        int64_t const list = static_cast<int64_t>(lane / 4 + 8 * half) * lists.capacity;
        HSPAN_UNROLL
        for (int32_t i = 0; i < kKEYS / 8; ++i)
        {
            HSPAN_UNROLL
            for (int32_t j = 0; j < 2; ++j)
            {
                int32_t const key = 8 * i + lane % 4 * 2 + j;
                uint32_t const bit = 1U << static_cast<uint32_t>(key % 32);
                if ((mask[half].word[i / 4] & bit) != 0)
                {
                    int32_t before = simt::bitCount(mask[half].word[i / 4] & (bit - 1U));
                    HSPAN_UNROLL
                    for (int32_t w = 0; w < i / 4; ++w)
                    {
                        before += simt::bitCount(mask[half].word[w]);
                    }
                    lists.scores[list + own.count + before] = scores[i][2 * half + j];
                    lists.keys[list + own.count + before] = static_cast<int32_t>(firstKey) + key;
                }
            }
        }
        own.count += passing;
    }
    return overflown;
}

//! Writes the results of a tile's rows and, where they fit, the lists of their supports.
template <typename T, typename Tile>
HSPAN_KERNEL_FITTING(Tile::kWARPS* simt::kWARP_SIZE, Tile::kBLOCKS)
selectKernel(TiledArguments<T> arguments)
{
    constexpr int32_t kKEYS{Tile::kKEYS};
    constexpr int32_t kROWS{Tile::kWARPS * kROWS_OF_WARP};
    HSPAN_SHARED(typename Tile::Stage, stage);
    TilePlace const place = placeOf(arguments, kROWS);
    if (place.row >= arguments.positions)
    {
        return;
    }
    int32_t const lane = simt::laneIndex();
    int32_t const warpRow = simt::warpIndex() * kROWS_OF_WARP;
    int64_t const image = place.image * arguments.positions * arguments.scorePitch;
    auto const query = Tile::operand(arguments, arguments.query + image);
    auto const key = Tile::operand(arguments, arguments.key + image);
    typename Tile::Query fragments;
    Tile::loadQueries(fragments, stage, query, place.row);

    int64_t const firstList = (place.slot + warpRow) * arguments.capacity;
    WarpLists const lists = {arguments.listScores + firstList, arguments.listKeys + firstList, arguments.capacity};
    ListState state[kROWS_OF_LANE];
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        bool const exists = place.row + warpRow + lane / 4 + 8 * half < arguments.positions;
        int32_t const trigger = kFIRST_TIGHTENING < lists.capacity ? kFIRST_TIGHTENING : lists.capacity;
        state[half] = {exists, -INFINITY, 0, trigger, 0.0F};
    }
    Refinement refinements[kROWS_OF_LANE] = {};
    if constexpr (Tile::kHAS_REFINED)
    {
        findGrids(refinements, arguments, place.image, place.row + warpRow);
        state[0].slack = slackOf(refinements[0].grid, arguments.scoreChannels);
        state[1].slack = slackOf(refinements[1].grid, arguments.scoreChannels);
    }
    bool const isDense = Tile::stream(stage, fragments, query, key, place.row, true,
        [&lists, &state](float const(&scores)[kKEYS / 8][4], int64_t firstKey)
        { return appendTile<kKEYS, Tile::kHAS_REFINED>(lists, state, scores, firstKey); });

    DenseState dense[kROWS_OF_LANE] = {};
    for (int32_t row = 0; row < kROWS_OF_WARP; ++row)
    {
        Tightened list = tightenRow<Tile::kHAS_REFINED>(lists, state, row);
        if constexpr (Tile::kHAS_REFINED)
        {
            float const grid = simt::shuffle(row < 8 ? refinements[0].grid : refinements[1].grid, row % 8 * 4);
            if (!isDense && grid > 0.0F && list.count > 0)
            {
                int64_t const offset = static_cast<int64_t>(row) * lists.capacity;
                float const* const own = query.data + (place.row + warpRow + row) * query.pitch;
                refineList(lists.scores + offset, lists.keys + offset, list.count, own, key, {grid, list.maximum});
                list = tighten(lists.scores + offset, lists.keys + offset, list.count, 0.0F);
            }
        }
        if (lane / 4 == row % 8)
        {
            DenseState const own = {false, list.maximum, list.anchor, limitOf(list.threshold), list.threshold};
            if (row < 8)
            {
                dense[0] = own;
                state[0].count = list.count;
            }
            else
            {
                dense[1] = own;
                state[1].count = list.count;
            }
        }
    }
    if (isDense)
    {
        HSPAN_UNROLL
        for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
        {
            dense[half].active = place.row + warpRow + lane / 4 + 8 * half < arguments.positions;
            state[half].count = kDENSE;
        }
        bool isFirst = true;
        bool hasRefined = false; // whether this and the following passes take refined scores
        while (simt::anyInBlock(dense[0].active || dense[1].active))
        {
            bool const isActive = simt::ballot(dense[0].active || dense[1].active) != 0;
            DenseSums sums[kROWS_OF_LANE];
            HSPAN_UNROLL
            for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
            {
                sums[half] = {0, 0, INFINITY, -INFINITY};
            }
            auto const consume = [&dense, &sums](auto const& scores, int64_t /*firstKey*/)
            {
                addTile(sums[0], scores, dense[0], 0);
                addTile(sums[1], scores, dense[1], 1);
                return false;
            };
            if constexpr (Tile::kHAS_REFINED)
            {
                using Refined = typename Tile::Refined;
                if (hasRefined)
                {
                    typename Refined::Query const rows{{refinements[0], refinements[1]}};
                    Refined::stream(stage, rows, query, key, place.row, isActive, consume);
                }
                else
                {
                    Tile::stream(stage, fragments, query, key, place.row, isActive, consume);
                }
            }
            else
            {
                Tile::stream(stage, fragments, query, key, place.row, isActive, consume);
            }
            HSPAN_UNROLL
            for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
            {
                reduce(sums[half]);
                if (dense[half].active && isFirst && refinements[half].grid > 0.0F)
                {
                    startRefined(dense[half], refinements[half], sums[half].maximum, state[half].slack);
                }
                else if (dense[half].active)
                {
                    takeDenseStep(dense[half], sums[half]);
                }
            }
            if constexpr (Tile::kHAS_REFINED)
            {
                hasRefined
                    = hasRefined || simt::anyInBlock(isFirst && refinements[0].grid + refinements[1].grid > 0.0F);
            }
            isFirst = false;
        }
    }
    HSPAN_UNROLL
    for (int32_t half = 0; half < kROWS_OF_LANE; ++half)
    {
        int32_t const row = warpRow + lane / 4 + 8 * half;
        if (lane % 4 == 0 && place.row + row < arguments.positions)
        {
            DenseState const& own = dense[half];
            RowResult result = resultOf(
                own.maximum - own.maximum == 0.0F, own.maximum, own.anchor, own.threshold, state[half].count);
            result.refinement = refinements[half];
            arguments.results[place.slot + row] = result;
        }
    }
}

} // namespace hspan
