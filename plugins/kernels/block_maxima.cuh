//! \file block_maxima.cuh
//! The first look: the greatest scores of blocks of keys, and nothing else.
//!
//! A lane takes the maxima of the scores that it holds anyway, so no lane has to ask another: in a row and tile
//! kPER_LANE = 2 of eight keys each, or 1 of sixteen. Where even that would be more than kMAX_MAXIMA in a row, several
//! tiles share their maxima.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "look_arguments.cuh"
#include "score_pass.cuh"

namespace hspan
{

//! B fragments are read once for both sets of rows: else reading them would take as long as multiplying.
constexpr int32_t kMAXIMA_ROW_SETS{2};

//! Blocks of this kernel that are to fit a multiprocessor.
template <int32_t kSTEPS, int32_t kWARPS>
constexpr int32_t kMAXIMA_BLOCKS{(kSTEPS <= 4 ? 12 : 8) / kWARPS};

//! The maximum of `kCOUNT` of the lane's scores in one row, from number kFIRST on.
template <int32_t kFIRST, int32_t kCOUNT>
HSPAN_DEVICE float greatestOf(TileScores<kMAXIMA_ROW_SETS> const& scores, int32_t set, int32_t half)
{
    float greatest = scores.at(set, half, kFIRST);
    HSPAN_UNROLL
    for (int32_t k = kFIRST + 1; k < kFIRST + kCOUNT; ++k)
    {
        greatest = simt::maximumOrNan(greatest, scores.at(set, half, k));
    }
    return greatest;
}

//! Writes the maxima of kWARPS times 32 rows in one split. Grid: x rows, z splits. In a row, group of tiles and part
//! the maxima of the four lanes that hold the row lie beside each other.
template <typename T, int32_t kSTEPS, int32_t kPER_LANE, int32_t kWARPS>
HSPAN_KERNEL_FITTING(kWARPS* simt::kWARP_SIZE, (kMAXIMA_BLOCKS<kSTEPS, kWARPS>))
blockMaximaKernel(LookArguments<T> arguments)
{
    using Stage = ScoreStage<T, kSTEPS>;
    constexpr int32_t kTHREADS{kWARPS * simt::kWARP_SIZE};
    constexpr int32_t kROWS_OF_THIS_WARP{kMAXIMA_ROW_SETS * kROWS_OF_WARP};
    HSPAN_SHARED(Stage, stage);
    TiledArguments<T> const& tensors = arguments.tensors;
    TilePlace const place = placeOf(tensors, kWARPS * kROWS_OF_THIS_WARP);
    TileRange const range = tilesOfSplit(arguments.maximaSplit, arguments.tiles);
    RowFragments<kSTEPS, kMAXIMA_ROW_SETS> query;
    loadFragments<kTHREADS>(
        query, stage, scoreRows(tensors, tensors.query, place.image), static_cast<int32_t>(place.row));
    RowCopier<T, kSTEPS, kTHREADS, Stage::kKEYS, true> copier(
        scoreRows(tensors, tensors.key, place.image), stage, range.first * kTILE_KEYS);
    simt::SharedAddress const matrices = firstMatrixOf(stage);
    int32_t const lane = simt::laneIndex();
    int32_t const positions = simt::kept(tensors.positions);
    int32_t const tilesOfGroup = simt::kept(arguments.tilesOfGroup);
    int64_t const eightRows = simt::kept(8 * static_cast<int64_t>(arguments.maximaOfRow));
    float* target = arguments.maxima
        + (place.slot + simt::warpIndex() * kROWS_OF_THIS_WARP + lane / 4) * arguments.maximaOfRow
        + (range.first / tilesOfGroup * 4 + lane % 4) * kPER_LANE;
    float groupMaxima[kMAXIMA_ROW_SETS][2]; // where kPER_LANE is 1: of the group's tiles so far
    auto const forRows = [&](auto const& visit)
    {
        HSPAN_UNROLL
        for (int32_t set = 0; set < kMAXIMA_ROW_SETS; ++set)
        {
            HSPAN_UNROLL
            for (int32_t half = 0; half < 2; ++half)
            {
                visit(groupMaxima[set][half], set, half);
            }
        }
    };
    forRows([](float& own, int32_t /*set*/, int32_t /*half*/) { own = -INFINITY; });
    int32_t inGroup = 0;
    int32_t buffer = 0; // its offset in bytes
    copier.start(buffer);
    for (int32_t tile = range.first; tile < range.end;)
    {
        simt::waitForCopies();
        simt::syncBlock(); // the buffer is complete, and the other one's readers are done
        if (tile + kSTAGE_TILES<kSTEPS> < range.end)
        {
            copier.start(Stage::kBYTES - buffer);
        }
        HSPAN_UNROLL
        for (int32_t n = 0; n < kSTAGE_TILES<kSTEPS>; ++n)
        {
            if (n > 0 && tile >= range.end)
            {
                break;
            }
            TileScores<kMAXIMA_ROW_SETS> scores;
            computeScores<T>(scores, query, matrices + (buffer + n * (Stage::kBYTES / kSTAGE_TILES<kSTEPS>)));
            if ((tile + 1) * kTILE_KEYS > positions)
            {
                cutTail(scores, positions - tile * kTILE_KEYS);
            }
            ++tile;
            if constexpr (kPER_LANE == 2) // a group is a tile
            {
                forRows(
                    [&](float& /*own*/, int32_t set, int32_t half)
                    {
                        constexpr int32_t kHALF{kSCORES_OF_LANE / 2};
                        simt::storePair(target + (2 * set + half) * eightRows,
                            simt::Pair<float>{
                                greatestOf<0, kHALF>(scores, set, half), greatestOf<kHALF, kHALF>(scores, set, half)});
                    });
                target += 4 * kPER_LANE;
            }
            else
            {
                forRows([&](float& own, int32_t set, int32_t half)
                    { own = simt::maximumOrNan(own, greatestOf<0, kSCORES_OF_LANE>(scores, set, half)); });
                if (++inGroup == tilesOfGroup || tile == range.end)
                {
                    forRows(
                        [&](float& own, int32_t set, int32_t half)
                        {
                            target[(2 * set + half) * eightRows] = own;
                            own = -INFINITY;
                        });
                    target += 4;
                    inGroup = 0;
                }
            }
        }
        buffer = Stage::kBYTES - buffer;
    }
}

} // namespace hspan
