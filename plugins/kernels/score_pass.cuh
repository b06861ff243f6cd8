//! \file score_pass.cuh
//! A pass over the scores on tensor cores, as both looks make it, for FP16 and BF16. Owns how queries and keys reach
//! shared memory and registers, and which score a lane holds where.
//!
//! A warp owns kROW_SETS times 16 query rows, whose fragments stay in registers; key tiles stream past through two
//! buffers. Score channels are padded to kSTEPS times 16 with zeros, so that loops over them have no tail.
//!
//! On their way to shared memory the keys of a tile change places: key 16 t + 2 i + j goes to row 8 i + 2 t + j. As
//! lane (g, t) of a matrix product holds columns 2 t and 2 t + 1 (simt.h, fragment C), it then holds the scores of 16
//! neighboring keys, 16 t ... 16 t + 15, in ascending order: score [i][2 h + j] is that of its row g + 8 h and key
//! 16 t + 2 i + j.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

#include <simt.h>

#include "look_arguments.cuh"
#include "tensor_tile.cuh"

namespace hspan
{

//! Scores of a lane in one row and tile.
constexpr int32_t kSCORES_OF_LANE{kTILE_KEYS / 4};

//! Key tiles of a buffer: where channels are few, one barrier serves several.
template <int32_t kSTEPS>
constexpr int32_t kSTAGE_TILES{kSTEPS == 1 ? 4
        : kSTEPS == 2                      ? 2
                                           : 1};

//! Elements from one row to the next in shared memory: an odd multiple of 16 bytes, see kSCORE_PITCH.
template <int32_t kSTEPS>
constexpr int32_t kSTAGE_PITCH{kSTEPS * kSTEP + kPER_COPY};

template <typename T, int32_t kSTEPS>
struct alignas(16) ScoreStage
{
    static constexpr int32_t kKEYS{kSTAGE_TILES<kSTEPS> * kTILE_KEYS};
    static constexpr int32_t kBYTES{kKEYS * kSTAGE_PITCH<kSTEPS> * static_cast<int32_t>(sizeof(T))}; //!< of a buffer

    T rows[2 * kKEYS][kSTAGE_PITCH<kSTEPS>]; //!< two buffers; queries pass through them, too
};

//! A number that is known when the kernel is compiled.
template <int32_t kNUMBER>
struct Constant
{
    static constexpr int32_t kVALUE{kNUMBER};
};

template <typename Visit, int32_t... kNUMBERS>
HSPAN_DEVICE void forConstants(Visit const& visit, std::integer_sequence<int32_t, kNUMBERS...> /*numbers*/)
{
    (visit(Constant<kNUMBERS>{}), ...);
}

//! Calls visit(Constant<0>), ..., visit(Constant<kCOUNT - 1>).
template <int32_t kCOUNT, typename Visit>
HSPAN_DEVICE void forConstants(Visit const& visit)
{
    forConstants(visit, std::make_integer_sequence<int32_t, kCOUNT>{});
}

//! Where a key goes. Permutes the bits of its number within the tile, so that rowOfKey(a + b) = rowOfKey(a) +
//! rowOfKey(b) where a and b have no bit in common.
HSPAN_DEVICE constexpr int32_t rowOfKey(int32_t key)
{
    return key / 64 * 64 + key / 2 % 8 * 8 + key / 16 % 4 * 2 + key % 2;
}

//! Copies kROWS rows of an operand at a time, from one row on. A thread keeps to one 16-byte piece of the rows.
template <typename T, int32_t kSTEPS, int32_t kTHREADS, int32_t kROWS, bool kARE_KEYS>
class RowCopier
{
public:
    HSPAN_DEVICE RowCopier(TokenRows<T> const& source, ScoreStage<T, kSTEPS>& stage, int32_t firstRow)
    {
        int32_t const piece = simt::threadIndex() % kPIECES;
        int32_t const row = simt::threadIndex() / kPIECES;
        bool const hasChannels = piece < source.copies;
        int64_t const first = hasChannels ? (int64_t{firstRow} + row) * source.pitch + piece * kPER_COPY : 0;
        constexpr int64_t kBYTES{sizeof(T)};
        mWorks = piece < 2 * kSTEPS;
        mBytes = simt::kept(hasChannels ? static_cast<int32_t>(sizeof(T)) * kPER_COPY : 0);
        mSource = simt::kept(simt::globalAddress(source.data) + first * kBYTES);
        mStep = simt::kept(hasChannels ? kAT_ONCE * source.pitch * kBYTES : int64_t{0});
        mTarget = simt::kept(simt::sharedAddress(stage.rows[kARE_KEYS ? rowOfKey(row) : row] + piece * kPER_COPY));
        mLeft = simt::kept(source.positions - firstRow - row);
        mLeftInAll = source.positions - firstRow;
    }

    //! Starts copying the next rows, to the buffer at this offset in bytes. What lies past the last row or channel
    //! becomes zero.
    HSPAN_DEVICE void start(int32_t bufferOffset)
    {
        if (mWorks)
        {
            if (mLeftInAll >= kROWS)
            {
                startRows<true>(bufferOffset);
            }
            else
            {
                startRows<false>(bufferOffset);
            }
        }
        mLeft -= kROWS;
        mLeftInAll -= kROWS;
    }

private:
    static constexpr int32_t kPIECES{kSTEPS == 1 ? 2 : kSTEPS == 2 ? 4 : kSTEPS <= 4 ? 8 : 16};
    static constexpr int32_t kAT_ONCE{kTHREADS / kPIECES}; //!< rows
    static_assert(kROWS % kAT_ONCE == 0 && (!kARE_KEYS || kTILE_KEYS % kAT_ONCE == 0 || kAT_ONCE % kTILE_KEYS == 0),
        "whole rounds");

    template <bool kIS_WHOLE>
    HSPAN_DEVICE void startRows(int32_t bufferOffset)
    {
        simt::SharedAddress const target = mTarget + bufferOffset;
        forConstants<kROWS / kAT_ONCE>(
            [&](auto round)
            {
                constexpr int32_t kROW{decltype(round)::kVALUE * kAT_ONCE};
                constexpr int32_t kPLACE{kARE_KEYS ? rowOfKey(kROW) : kROW};
                constexpr int32_t kOFFSET{kPLACE * kSTAGE_PITCH<kSTEPS> * static_cast<int32_t>(sizeof(T))};
                simt::copyAsyncAt<kOFFSET, 0>(target, mSource, kIS_WHOLE || kROW < mLeft ? mBytes : 0);
                mSource += mStep;
            });
    }

    simt::GlobalAddress mSource; //!< of the thread's piece of the next row
    int64_t mStep;               //!< bytes to that of the next round
    simt::SharedAddress mTarget;
    int32_t mBytes;
    int32_t mLeft; //!< rows from the thread's first one of the next call on
    int32_t mLeftInAll;
    bool mWorks;
};

//! The query fragments of a warp.
template <int32_t kSTEPS, int32_t kROW_SETS>
struct RowFragments
{
    uint32_t of[kROW_SETS][kSTEPS][4];
};

//! Brings the queries of a block of kTHREADS threads to registers. All of them call it together.
template <int32_t kTHREADS, typename T, int32_t kSTEPS, int32_t kROW_SETS>
HSPAN_DEVICE void loadFragments(RowFragments<kSTEPS, kROW_SETS>& fragments, ScoreStage<T, kSTEPS>& stage,
    TokenRows<T> const& query, int32_t firstRow)
{
    constexpr int32_t kROWS_OF_THIS_WARP{kROW_SETS * kROWS_OF_WARP};
    constexpr int32_t kROWS{kTHREADS / simt::kWARP_SIZE * kROWS_OF_THIS_WARP};
    static_assert(kROWS <= 2 * ScoreStage<T, kSTEPS>::kKEYS, "the queries pass through the key buffers");
    RowCopier<T, kSTEPS, kTHREADS, kROWS, false> copier(query, stage, firstRow);
    copier.start(0);
    simt::waitForCopies();
    simt::syncBlock();
    HSPAN_UNROLL
    for (int32_t set = 0; set < kROW_SETS; ++set)
    {
        HSPAN_UNROLL
        for (int32_t step = 0; step < kSTEPS; ++step)
        {
            simt::loadMatrices(fragments.of[set][step],
                downThenRight<T, kSTAGE_PITCH<kSTEPS>>(
                    &stage.rows[simt::warpIndex() * kROWS_OF_THIS_WARP + set * kROWS_OF_WARP], step * kSTEP));
        }
    }
    simt::syncBlock(); // the buffers are free for keys
}

//! A lane's scores of one tile.
template <int32_t kROW_SETS>
struct TileScores
{
    float of[kROW_SETS][kTILE_KEYS / 8][4];

    //! Number `k` of its 16 scores in row g + 8 half of a set.
    HSPAN_DEVICE float at(int32_t set, int32_t half, int32_t k) const
    {
        return of[set][k / 2][2 * half + k % 2];
    }
};

//! The scores against the tile whose rows begin at `lane`, which is this lane's address in it (firstMatrixOf()).
//! Products are added up in the order of computeScores() in tensor_tile.cuh; steps past the last channel add zeros.
template <typename T, int32_t kSTEPS, int32_t kROW_SETS>
HSPAN_DEVICE void computeScores(
    TileScores<kROW_SETS>& scores, RowFragments<kSTEPS, kROW_SETS> const& query, simt::SharedAddress lane)
{
    constexpr int32_t kPAIRS{kTILE_KEYS / 16};
    forConstants<kSTEPS * kPAIRS>(
        [&](auto turn)
        {
            constexpr int32_t kAT_STEP{decltype(turn)::kVALUE / kPAIRS};
            constexpr int32_t kGROUP{decltype(turn)::kVALUE % kPAIRS * 2};
            constexpr int32_t kOFFSET{
                (8 * kGROUP * kSTAGE_PITCH<kSTEPS> + kAT_STEP * kSTEP) * static_cast<int32_t>(sizeof(T))};
            uint32_t b[4];
            simt::loadMatricesAt<kOFFSET>(b, lane);
            HSPAN_UNROLL
            for (int32_t set = 0; set < kROW_SETS; ++set)
            {
                if constexpr (kAT_STEP == 0)
                {
                    simt::multiplyMatricesFirst<T>(scores.of[set][kGROUP], query.of[set][0], b[0], b[1]);
                    simt::multiplyMatricesFirst<T>(scores.of[set][kGROUP + 1], query.of[set][0], b[2], b[3]);
                }
                else
                {
                    simt::multiplyMatrices<T>(scores.of[set][kGROUP], query.of[set][kAT_STEP], b[0], b[1]);
                    simt::multiplyMatrices<T>(scores.of[set][kGROUP + 1], query.of[set][kAT_STEP], b[2], b[3]);
                }
            }
        });
}

//! This lane's address in the first buffer, as computeScores() takes it.
template <typename T, int32_t kSTEPS>
HSPAN_DEVICE simt::SharedAddress firstMatrixOf(ScoreStage<T, kSTEPS>& stage)
{
    return simt::sharedAddress(rightThenDown<T, kSTAGE_PITCH<kSTEPS>>(stage.rows, 0));
}

//! Scores past the last key become -inf; `left` keys of the tile exist.
template <int32_t kROW_SETS>
HSPAN_DEVICE void cutTail(TileScores<kROW_SETS>& scores, int32_t left)
{
    int32_t const own = left - simt::laneIndex() % 4 * kSCORES_OF_LANE;
    HSPAN_UNROLL
    for (int32_t set = 0; set < kROW_SETS; ++set)
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < kTILE_KEYS / 8; ++i)
        {
            HSPAN_UNROLL
            for (int32_t j = 0; j < 4; ++j)
            {
                scores.of[set][i][j] = 2 * i + j % 2 < own ? scores.of[set][i][j] : -INFINITY;
            }
        }
    }
}

//! Query or key rows of an image as the passes read them.
template <typename T>
HSPAN_DEVICE TokenRows<T> scoreRows(TiledArguments<T> const& arguments, T const* data, int64_t image)
{
    return {data + image * arguments.positions * arguments.scorePitch, arguments.scorePitch, arguments.positions,
        (arguments.scoreChannels + kPER_COPY - 1) / kPER_COPY, 0};
}

//! The tiles that a block of one split looks at.
struct TileRange
{
    int32_t first;
    int32_t end;
};

HSPAN_DEVICE TileRange tilesOfSplit(KeySplit const& split, int32_t tiles)
{
    int32_t const first = static_cast<int32_t>(simt::blockZ()) * split.tiles;
    int32_t const end = first + split.tiles;
    return {first, simt::kept(end < tiles ? end : tiles)};
}

} // namespace hspan
