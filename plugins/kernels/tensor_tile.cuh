//! \file tensor_tile.cuh
//! Score tiles on tensor cores, for FP16 and BF16. Owns the tile geometry, how tiles reach shared memory and the one
//! place where a score is computed.
//!
//! Operands are token-major: one row of channels per position. A warp owns 16 query rows, whose fragments it keeps in
//! registers; keys stream past in tiles of kKEYS, copied asynchronously into one of two buffers while the other is in
//! use. With g = lane / 4 and t = lane % 4, a lane holds the scores of its warp's rows g and g + 8 against the keys 8 i
//! + 2t and 8 i + 2t + 1 of the tile (simt.h, fragment C). Channels past the end are zeros in both operands.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "tiled_arguments.cuh"

namespace hspan
{

constexpr int32_t kMAX_SCORE_CHANNELS{128};
constexpr int32_t kSTEP{16};    //!< channels, or keys, that one matrix product sums over
constexpr int32_t kPER_COPY{8}; //!< 16-bit elements in 16 bytes
constexpr int32_t kROW_COPIES{kMAX_SCORE_CHANNELS / kPER_COPY};
constexpr int32_t kMAX_STEPS{kMAX_SCORE_CHANNELS / kSTEP};

//! Elements from one row to the next in shared memory: an odd multiple of 16 bytes, so that the eight rows of a matrix
//! lie in different banks.
constexpr int32_t kSCORE_PITCH{kMAX_SCORE_CHANNELS + kPER_COPY};

//! Two buffers of keys. The query tile passes through them on its way to registers.
template <typename T, int32_t kKEYS>
struct alignas(16) KeyStage
{
    T rows[2 * kKEYS][kSCORE_PITCH];
};

//! One image's queries or keys: (L, pitch), rows aligned to 16 bytes.
template <typename T>
struct TokenRows
{
    T const* data;
    int64_t pitch;
    int32_t positions; //!< L
    int32_t copies;    //!< 16-byte pieces of a row that hold channels
    int32_t steps;     //!< ceil(C / 16)
};

//! Starts copying kROWS rows from `first` on; what lies past the last row or channel becomes zero.
template <int32_t kROWS, int32_t kTHREADS, typename T>
HSPAN_DEVICE void startRows(T (*target)[kSCORE_PITCH], TokenRows<T> const& source, int64_t first)
{
    static_assert(kTHREADS % kROW_COPIES == 0, "a thread keeps to one column of copies");
    int32_t const piece = simt::threadIndex() % kROW_COPIES;
    if (piece >= 2 * source.steps)
    {
        return;
    }
    int32_t const channel = piece * kPER_COPY;
    HSPAN_UNROLL
    for (int32_t i = 0; i < (kROWS * kROW_COPIES + kTHREADS - 1) / kTHREADS; ++i)
    {
        int32_t const row = simt::threadIndex() / kROW_COPIES + i * (kTHREADS / kROW_COPIES);
        if (kROWS % (kTHREADS / kROW_COPIES) == 0 || row < kROWS)
        {
            bool const inside = first + row < source.positions && piece < source.copies;
            int64_t const at = inside ? (first + row) * source.pitch + channel : 0;
            simt::copyAsync(&target[row][channel], source.data + at, inside);
        }
    }
}

//! Address of this lane's row among four 8 x 8 matrices that make up 16 rows and 16 columns: matrices 1 and 3 lie below
//! 0 and 2. As loadMatrices() wants it for fragment A, and transposed for two fragments B.
template <typename T, int32_t kPITCH>
HSPAN_DEVICE T const* downThenRight(T const (*rows)[kPITCH], int32_t column)
{
    int32_t const lane = simt::laneIndex();
    return &rows[lane % 16][column + lane / 16 * 8];
}

//! The same with matrix 1 to the right of 0: two fragments B of eight rows each.
template <typename T, int32_t kPITCH>
HSPAN_DEVICE T const* rightThenDown(T const (*rows)[kPITCH], int32_t column)
{
    int32_t const lane = simt::laneIndex();
    return &rows[lane % 8 + lane / 16 * 8][column + lane / 8 % 2 * 8];
}

//! The query fragments of a warp's 16 rows, in registers.
struct QueryFragments
{
    uint32_t step[kMAX_STEPS][4];

    HSPAN_DEVICE void load(uint32_t (&a)[4], int32_t at) const
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < 4; ++i)
        {
            a[i] = step[at][i];
        }
    }
};

//! The same in shared memory, where registers are scarce.
template <typename T>
struct SharedQuery
{
    T const (*rows)[kSCORE_PITCH]; //!< of the warp

    HSPAN_DEVICE void load(uint32_t (&a)[4], int32_t at) const
    {
        simt::loadMatrices(a, downThenRight<T, kSCORE_PITCH>(rows, at * kSTEP));
    }
};

//! Brings the block's query tile to registers. All threads of the block call it together.
template <int32_t kWARPS, typename T, int32_t kKEYS>
HSPAN_DEVICE void loadQueries(
    QueryFragments& fragments, KeyStage<T, kKEYS>& stage, TokenRows<T> const& query, int64_t firstRow)
{
    constexpr int32_t kROWS{kWARPS * kROWS_OF_WARP};
    static_assert(kROWS <= 2 * kKEYS, "the query tile passes through the key buffers");
    startRows<kROWS, kWARPS * simt::kWARP_SIZE>(stage.rows, query, firstRow);
    simt::waitForCopies();
    simt::syncBlock();
    HSPAN_UNROLL
    for (int32_t step = 0; step < kMAX_STEPS; ++step)
    {
        if (step < query.steps)
        {
            simt::loadMatrices(fragments.step[step],
                downThenRight<T, kSCORE_PITCH>(&stage.rows[simt::warpIndex() * kROWS_OF_WARP], step * kSTEP));
        }
    }
}

//! The scores of the warp's rows against the keys of one buffer; -inf past the last key.
template <int32_t kKEYS, typename T, typename Query>
HSPAN_DEVICE void computeScores(float (&scores)[kKEYS / 8][4], Query const& query, T const (*keys)[kSCORE_PITCH],
    TokenRows<T> const& key, int64_t firstKey)
{
    HSPAN_UNROLL
    for (int32_t i = 0; i < kKEYS / 8; ++i)
    {
        HSPAN_UNROLL
        for (int32_t j = 0; j < 4; ++j)
        {
            scores[i][j] = 0.0F;
        }
    }
    HSPAN_UNROLL
    for (int32_t step = 0; step < kMAX_STEPS; ++step)
    {
        if (step < key.steps)
        {
            uint32_t a[4];
            query.load(a, step);
            HSPAN_UNROLL
            for (int32_t i = 0; i < kKEYS / 8; i += 2)
            {
                uint32_t b[4];
                simt::loadMatrices(b, rightThenDown<T, kSCORE_PITCH>(&keys[8 * i], step * kSTEP));
                simt::multiplyMatrices<T>(scores[i], a, b[0], b[1]);
                simt::multiplyMatrices<T>(scores[i + 1], a, b[2], b[3]);
            }
        }
    }
    if (firstKey + kKEYS > key.positions)
    {
        int64_t const own = firstKey + simt::laneIndex() % 4 * 2;
        HSPAN_UNROLL
        for (int32_t i = 0; i < kKEYS / 8; ++i)
        {
            HSPAN_UNROLL
            for (int32_t j = 0; j < 4; ++j)
            {
                if (own + 8 * i + j % 2 >= key.positions)
                {
                    scores[i][j] = -INFINITY;
                }
            }
        }
    }
}

//! Streams the scores of the block's rows past `consume(scores, firstKey)`, tile by tile in ascending key order. All
//! threads call it together; a warp that passes isActive = false helps copying and is not called back.
template <int32_t kWARPS, int32_t kKEYS, typename T, typename Consume>
HSPAN_DEVICE void streamTiles(KeyStage<T, kKEYS>& stage, QueryFragments const& query, TokenRows<T> const& key,
    bool isActive, Consume const& consume)
{
    constexpr int32_t kTHREADS{kWARPS * simt::kWARP_SIZE};
    int32_t const tiles = (key.positions + kKEYS - 1) / kKEYS;
    simt::syncBlock(); // the buffers' last readers are done
    startRows<kKEYS, kTHREADS>(stage.rows, key, 0);
    for (int32_t tile = 0; tile < tiles; ++tile)
    {
        simt::waitForCopies();
        simt::syncBlock(); // the tile is complete, and the readers of the other buffer are done
        int64_t const firstKey = static_cast<int64_t>(tile) * kKEYS;
        int32_t const buffer = tile % 2 * kKEYS;
        if (tile + 1 < tiles)
        {
            startRows<kKEYS, kTHREADS>(stage.rows + (kKEYS - buffer), key, firstKey + kKEYS);
        }
        if (isActive)
        {
            float scores[kKEYS / 8][4];
            computeScores<kKEYS>(scores, query, stage.rows + buffer, key, firstKey);
            consume(scores, firstKey);
        }
    }
}

//! A tile of kWARPS_ * 16 rows and kKEYS_ keys on tensor cores, as the kernels take it.
template <typename T, int32_t kWARPS_, int32_t kKEYS_>
struct TensorTile
{
    static constexpr bool kHAS_REFINED{false};
    static constexpr int32_t kWARPS{kWARPS_};
    static constexpr int32_t kKEYS{kKEYS_};
    using Stage = KeyStage<T, kKEYS>;
    using Query = QueryFragments;

    HSPAN_DEVICE static TokenRows<T> operand(TiledArguments<T> const& arguments, T const* image)
    {
        int32_t const channels = arguments.scoreChannels;
        return {image, arguments.scorePitch, arguments.positions, (channels + kPER_COPY - 1) / kPER_COPY,
            (channels + kSTEP - 1) / kSTEP};
    }

    HSPAN_DEVICE static void loadQueries(Query& fragments, Stage& stage, TokenRows<T> const& query, int64_t firstRow)
    {
        hspan::loadQueries<kWARPS>(fragments, stage, query, firstRow);
    }

    template <typename Consume>
    HSPAN_DEVICE static void stream(Stage& stage, Query const& fragments, TokenRows<T> const& /*query*/,
        TokenRows<T> const& key, int64_t /*firstRow*/, bool isActive, Consume const& consume)
    {
        streamTiles<kWARPS, kKEYS>(stage, fragments, key, isActive, consume);
    }
};

} // namespace hspan
