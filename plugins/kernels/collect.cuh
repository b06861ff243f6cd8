//! \file collect.cuh
//! The second look: a list, for every row, of the scores above its bound.
//!
//! A lane's scores of a row and tile are a block of 16 neighboring keys, of which the first look has left the maximum.
//! Tiles in which no block of the warp's rows exceeds its row's bound are skipped. Blocks that do are few among those
//! of a tile, so they are gathered in a queue, and once there are 32 every lane takes one: it counts its candidates,
//! learns from the lanes before it with the same row where they go, and appends them. A row's blocks stand in the queue
//! by ascending keys, and so its list is in the order of keys.
//!
//! A split appends to its own share of a row's list. Where that is full it counts on, up to the capacity of the whole
//! list: if all of a row's candidates would fit, only badly divided, a second launch collects them without splits
//! (kAGAIN); if not, the row takes the dense route. So it does not depend on the splits which route a row takes.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "look_arguments.cuh"
#include "score_pass.cuh"

namespace hspan
{

//! Blocks of scores on their way to the lists of a warp's rows.
struct alignas(16) BlockQueue
{
    static constexpr int32_t kPLACES{simt::kWARP_SIZE};

    struct Row
    {
        float bound;   //!< infinite for a row that takes no more
        int32_t count; //!< candidates so far
    };

    float scores[kPLACES][kSCORES_OF_LANE + 4]; //!< padded, so that neighboring lanes meet other banks
    int32_t places[kPLACES];                    //!< first key + row of the warp
    alignas(8) Row rows[kROWS_OF_WARP];
};

//! Where the lists of a warp's rows lie, and how much they take.
struct ListPlace
{
    simt::GlobalAddress first; //!< of the first row's share
    int64_t pitch;             //!< bytes from row to row
    int32_t share;             //!< entries in this split's share
    int32_t capacity;          //!< entries of a whole list
};

//! Appends the candidates of `queued` blocks. The warp calls it together.
HSPAN_DEVICE void appendBlocks(BlockQueue& queue, int32_t queued, ListPlace const& lists, uint32_t lanesBefore)
{
    static_assert(kSCORES_OF_LANE == kROWS_OF_WARP, "the row of a block takes the place of its lowest key bits");
    int32_t const lane = simt::laneIndex();
    simt::syncWarp(); // the blocks are complete
    if (queued == 0)
    {
        return;
    }
    bool const hasBlock = lane < queued;
    int32_t const from = hasBlock ? lane : 0;
    int32_t const place = queue.places[from];
    int32_t const row = place & (kROWS_OF_WARP - 1);
    BlockQueue::Row const known = queue.rows[row];
    float bound = hasBlock ? known.bound : INFINITY;
    float scores[kSCORES_OF_LANE];
    HSPAN_UNROLL
    for (int32_t quad = 0; quad < kSCORES_OF_LANE / 4; ++quad)
    {
        auto const four = reinterpret_cast<simt::Float4 const*>(queue.scores[from])[quad];
        scores[4 * quad] = four.x;
        scores[4 * quad + 1] = four.y;
        scores[4 * quad + 2] = four.z;
        scores[4 * quad + 3] = four.w;
    }
    int32_t own = 0;
    HSPAN_UNROLL
    for (float const score : scores)
    {
        simt::countIfGreater(own, score, bound);
    }
    // Candidates of the lanes before this one in the same row, added up bit by bit of their counts, at most 16.
    uint32_t const alike = simt::lanesWithSame(row);
    uint32_t const before = alike & lanesBefore;
    int32_t first = known.count;
    auto const addBit = [&](int32_t bit)
    {
        uint32_t const having = simt::ballot((own >> bit & 1) != 0);
        first += simt::bitCount(having & before) << bit;
    };
    addBit(0);
    addBit(1);
    addBit(2);
    if (simt::ballot(own > 7) != 0)
    {
        addBit(3);
        addBit(4);
    }
    int32_t const end = first + own;
    bound = end > lists.share ? INFINITY : bound;
    simt::syncWarp(); // all lanes have read what the row's last one writes
    if (alike >> static_cast<uint32_t>(lane) == 1U)
    {
        queue.rows[row] = {end > lists.capacity ? INFINITY : known.bound, end};
    }
    simt::GlobalAddress target = lists.first + (row * lists.pitch + first * static_cast<int64_t>(sizeof(ListEntry)));
    int32_t const firstKey = place - row;
    HSPAN_UNROLL
    for (int32_t k = 0; k < kSCORES_OF_LANE; ++k)
    {
        simt::appendIfGreater(target, scores[k], firstKey + k, bound);
    }
    simt::syncWarp(); // the queue's readers are done, and the rows are complete
}

//! The greatest of a lane's kPER_LANE maxima in a row and group.
template <int32_t kPER_LANE>
HSPAN_DEVICE float greatestAt(float const* maxima)
{
    if constexpr (kPER_LANE == 1)
    {
        return *maxima;
    }
    else
    {
        simt::Pair<float> const pair = simt::loadPair(maxima);
        return pair.x > pair.y ? pair.x : pair.y;
    }
}

//! Which rows collect again: those whose candidates fit a list, but not the shares of the splits. Row `row` exists.
template <typename T>
HSPAN_DEVICE bool collectsAgain(LookArguments<T> const& arguments, int64_t slot)
{
    int32_t const splits = arguments.listSplit.count;
    int32_t all = 0;
    bool isOverflown = false;
    for (int32_t split = 0; split < splits; ++split)
    {
        int32_t const count = arguments.counts[slot * splits + split];
        all += count;
        isOverflown = isOverflown || count > arguments.capacityOfSplit;
    }
    return isOverflown && all <= arguments.tensors.capacity;
}

//! Warps of a block whose tile is the main one: a stage of 128 channels leaves no room for more.
template <int32_t kSTEPS>
constexpr int32_t kLIST_WARPS{kSTEPS == 8 ? 4 : 8};

template <typename T, int32_t kSTEPS, int32_t kWARPS>
struct CollectStage
{
    ScoreStage<T, kSTEPS> keys;
    BlockQueue queues[kWARPS];
};

//! Writes the lists of kWARPS times 16 rows in one split, and their lengths. Grid: x rows, z splits; where `isAgain`,
//! one split, for rows that did not fit the others' shares.
template <typename T, int32_t kSTEPS, int32_t kPER_LANE, int32_t kWARPS>
HSPAN_KERNEL_FITTING(kWARPS* simt::kWARP_SIZE, (kSTEPS == 8 ? 12 : 16) / kWARPS)
collectKernel(LookArguments<T> arguments, bool isAgain)
{
    using Shared = CollectStage<T, kSTEPS, kWARPS>;
    using Stage = ScoreStage<T, kSTEPS>;
    constexpr int32_t kTHREADS{kWARPS * simt::kWARP_SIZE};
    constexpr int32_t kTILES{kSTAGE_TILES<kSTEPS>};
    HSPAN_SHARED(Shared, shared);
    TiledArguments<T> const& tensors = arguments.tensors;
    TilePlace const place = placeOf(tensors, kWARPS * kROWS_OF_WARP);
    int32_t const lane = simt::laneIndex();
    int32_t const warpRow = simt::warpIndex() * kROWS_OF_WARP;
    int64_t const warpSlot = place.slot + warpRow;
    int32_t const rowsLeft = tensors.positions - static_cast<int32_t>(place.row) - warpRow; // of the image
    bool collects = lane < kROWS_OF_WARP && lane < rowsLeft;                                // the row of this number
    if (isAgain)
    {
        collects = collects && collectsAgain(arguments, warpSlot + lane);
    }
    if (!simt::anyInBlock(collects))
    {
        return;
    }
    int32_t const splits = arguments.listSplit.count;
    int32_t const split = static_cast<int32_t>(simt::blockZ());
    TileRange const range = tilesOfSplit(isAgain ? KeySplit{1, arguments.tiles} : arguments.listSplit, arguments.tiles);
    BlockQueue& queue = shared.queues[simt::warpIndex()];
    if (lane < kROWS_OF_WARP)
    {
        queue.rows[lane] = {collects ? arguments.bounds[warpSlot + lane].bound : INFINITY, 0};
    }
    RowFragments<kSTEPS, 1> query;
    loadFragments<kTHREADS>(
        query, shared.keys, scoreRows(tensors, tensors.query, place.image), static_cast<int32_t>(place.row));
    RowCopier<T, kSTEPS, kTHREADS, Stage::kKEYS, true> copier(
        scoreRows(tensors, tensors.key, place.image), shared.keys, range.first * kTILE_KEYS);
    simt::SharedAddress const matrices = firstMatrixOf(shared.keys);
    int32_t const share = isAgain ? tensors.capacity : arguments.capacityOfSplit;
    ListPlace const lists{simt::kept(simt::globalAddress(
                              arguments.lists + warpSlot * tensors.capacity + static_cast<int64_t>(split) * share)),
        simt::kept(tensors.capacity * static_cast<int64_t>(sizeof(ListEntry))), simt::kept(share),
        simt::kept(tensors.capacity)};
    float bounds[2] = {queue.rows[lane / 4].bound, queue.rows[lane / 4 + 8].bound};
    int32_t const positions = simt::kept(tensors.positions);
    int32_t const tilesOfGroup = simt::kept(arguments.tilesOfGroup);
    int64_t const eightRows = simt::kept(8 * static_cast<int64_t>(arguments.maximaOfRow));
    float const* maxima = arguments.maxima + (warpSlot + lane / 4) * arguments.maximaOfRow
        + (range.first / tilesOfGroup * 4 + lane % 4) * kPER_LANE;
    uint32_t const lanesBefore = simt::kept(simt::lanesBefore());
    int32_t inGroup = 0;
    int32_t queued = 0;
    int32_t buffer = 0; // its offset in bytes
    copier.start(buffer);
    for (int32_t tile = range.first; tile < range.end; tile += kTILES)
    {
        uint32_t flags = 0; // bit 2 n + half: the lane's block in tile n exceeds the bound of row g + 8 half
        if (tilesOfGroup == 1 && tile + kTILES <= range.end)
        {
            HSPAN_UNROLL
            for (int32_t n = 0; n < kTILES; ++n)
            {
                flags |= greatestAt<kPER_LANE>(maxima + 4 * kPER_LANE * n) > bounds[0] ? 1U << 2 * n : 0U;
                flags |= greatestAt<kPER_LANE>(maxima + 4 * kPER_LANE * n + eightRows) > bounds[1] ? 2U << 2 * n : 0U;
            }
            maxima += 4 * kPER_LANE * kTILES;
        }
        else
        {
            HSPAN_UNROLL
            for (int32_t n = 0; n < kTILES; ++n)
            {
                if (tile + n < range.end)
                {
                    flags |= greatestAt<kPER_LANE>(maxima) > bounds[0] ? 1U << 2 * n : 0U;
                    flags |= greatestAt<kPER_LANE>(maxima + eightRows) > bounds[1] ? 2U << 2 * n : 0U;
                    if (++inGroup == tilesOfGroup)
                    {
                        inGroup = 0;
                        maxima += 4 * kPER_LANE;
                    }
                }
            }
        }
        simt::waitForCopies();
        simt::syncBlock(); // the buffer is complete, and the other one's readers are done
        if (tile + kTILES < range.end)
        {
            copier.start(Stage::kBYTES - buffer);
        }
        HSPAN_UNROLL_BY(1)
        for (int32_t n = 0; n < kTILES; ++n, flags >>= 2U)
        {
            uint32_t const flagged[2] = {simt::ballot((flags & 1U) != 0), simt::ballot((flags & 2U) != 0)};
            if ((flagged[0] | flagged[1]) == 0)
            {
                continue;
            }
            TileScores<1> scores;
            computeScores<T>(scores, query, matrices + (buffer + n * (Stage::kBYTES / kTILES)));
            int32_t const firstKey = (tile + n) * kTILE_KEYS;
            if (firstKey + kTILE_KEYS > positions)
            {
                cutTail(scores, positions - firstKey);
            }
            int32_t const own = firstKey + lane % 4 * kSCORES_OF_LANE + lane / 4;
            HSPAN_UNROLL
            for (int32_t half = 0; half < 2; ++half)
            {
                uint32_t blocks = flagged[half];
                if (kPER_LANE == 1 && tilesOfGroup > 1) // the maximum is not of these scores alone
                {
                    float greatest = scores.at(0, half, 0);
                    HSPAN_UNROLL
                    for (int32_t k = 1; k < kSCORES_OF_LANE; ++k)
                    {
                        greatest = simt::maximumOrNan(greatest, scores.at(0, half, k));
                    }
                    blocks = simt::ballot(greatest > bounds[half]);
                }
                if (blocks == 0)
                {
                    continue;
                }
                int32_t const more = simt::bitCount(blocks);
                if (queued + more > BlockQueue::kPLACES)
                {
                    appendBlocks(queue, queued, lists, lanesBefore);
                    queued = 0;
                    bounds[0] = queue.rows[lane / 4].bound;
                    bounds[1] = queue.rows[lane / 4 + 8].bound;
                }
                if ((blocks & (lanesBefore + 1U)) != 0)
                {
                    int32_t const at = queued + simt::bitCount(blocks & lanesBefore);
                    HSPAN_UNROLL
                    for (int32_t quad = 0; quad < kSCORES_OF_LANE / 4; ++quad)
                    {
                        reinterpret_cast<simt::Float4*>(queue.scores[at])[quad]
                            = simt::Float4{scores.at(0, half, 4 * quad), scores.at(0, half, 4 * quad + 1),
                                scores.at(0, half, 4 * quad + 2), scores.at(0, half, 4 * quad + 3)};
                    }
                    queue.places[at] = own + 8 * half;
                }
                queued += more;
            }
        }
        buffer = Stage::kBYTES - buffer;
    }
    appendBlocks(queue, queued, lists, lanesBefore); // of no blocks, too: makes the counts visible
    if (collects)
    {
        arguments.counts[(warpSlot + lane) * splits + split] = queue.rows[lane].count;
        for (int32_t other = 1; isAgain && other < splits; ++other)
        {
            arguments.counts[(warpSlot + lane) * splits + other] = 0; // all of them lie in the first share
        }
    }
}

} // namespace hspan
