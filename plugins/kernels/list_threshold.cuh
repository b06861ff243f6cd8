//! \file list_threshold.cuh
//! The exact threshold of a row from its list, by one warp.
//!
//! It is that of exact_threshold.cuh: Michelot's steps in integers from a set of scores that contains the support, of
//! which the list is one. Steps whose result cannot be the last are taken in coarser numbers, see coarseStart().
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"
#include "look_arguments.cuh"

namespace hspan
{

//! Entries of a list that a lane keeps in registers; longer lists are read again with every step.
constexpr int32_t kHELD_ENTRIES{4};
constexpr int32_t kHELD_BY_WARP{kHELD_ENTRIES * simt::kWARP_SIZE};

//! A row's list, of all splits, as the lanes of a warp read it. It is not empty.
struct SplitList
{
    ListEntry* entries;
    int32_t count;      //!< of all shares
    int32_t ownCount;   //!< of the share with the lane's number
    int32_t firstCount; //!< of the first share
    int32_t splits;
    int32_t share; //!< entries from one share to the next

    template <typename T>
    HSPAN_DEVICE SplitList(ListEntry* list, int32_t all, int32_t own, LookArguments<T> const& arguments)
        : entries(list)
        , count(all)
        , ownCount(own)
        , firstCount(simt::shuffle(own, 0))
        , splits(arguments.listSplit.count)
        , share(arguments.capacityOfSplit)
    {
    }

    //! Where entry `i` of the lane lies, the same multiple of 32 plus the lane's number in all lanes.
    HSPAN_DEVICE int32_t placeOf(int32_t i) const
    {
        int32_t place = i >= firstCount ? i + (share - firstCount) : i; // the second share, if there is one
        int32_t end = firstCount;                                       // of the shares so far
        HSPAN_UNROLL_BY(1)
        for (int32_t split = 1; split + 1 < splits; ++split)
        {
            int32_t const length = simt::shuffle(ownCount, split);
            end += length;
            place += i >= end ? share - length : 0;
        }
        return place;
    }

    //! The entry itself. Reads nothing past the end.
    HSPAN_DEVICE ListEntry at(int32_t i) const
    {
        int32_t const place = placeOf(i);
        return i < count ? entries[place] : ListEntry{-INFINITY, 0};
    }
};

//! A list relative to the row's anchor, its first entries in registers.
struct RelativeList
{
    SplitList list;
    float anchor;
    float greatest; //!< of the row's scores, relative to the anchor
    float held[kHELD_ENTRIES];
    int32_t heldKeys[kHELD_ENTRIES];

    HSPAN_DEVICE RelativeList(SplitList const& source, float maximum)
        : list(source)
        , anchor(anchorOf(maximum))
        , greatest(simt::subtract(maximum, anchor))
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < kHELD_ENTRIES; ++i)
        {
            held[i] = -INFINITY;
            heldKeys[i] = 0;
            if (i == 0 || i * simt::kWARP_SIZE < list.count)
            {
                ListEntry const entry = list.at(i * simt::kWARP_SIZE + simt::laneIndex());
                held[i] = simt::subtract(entry.score, anchor);
                heldKeys[i] = entry.key;
            }
        }
    }

    //! Calls visit(relative score, key) for the lane's entries, -inf past the end; the warp goes through them together.
    template <typename Visit>
    HSPAN_DEVICE void forEntries(Visit const& visit) const
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < kHELD_ENTRIES; ++i)
        {
            if (i == 0 || i * simt::kWARP_SIZE < list.count)
            {
                visit(held[i], heldKeys[i]);
            }
        }
        for (int32_t first = kHELD_BY_WARP; first < list.count; first += simt::kWARP_SIZE)
        {
            ListEntry const entry = list.at(first + simt::laneIndex());
            visit(simt::subtract(entry.score, anchor), entry.key);
        }
    }

    //! Entries above a limit, of all lanes.
    HSPAN_DEVICE int32_t countAbove(float limit) const
    {
        int32_t count = 0;
        forEntries([&](float relative, int32_t /*key*/) { count += simt::bitCount(simt::ballot(relative > limit)); });
        return count;
    }
};

//! Where the steps in quanta begin: the entries above `limit` contain the support.
struct StepStart
{
    float limit;
    int32_t above; //!< entries above it
};

//! \brief Michelot's steps in units of 2^-19, for lists that are held whole.
//!
//! A score is off by half a unit, and so is the mean of some; the sum, at most 128 times 3 2^19, is off by 2^-24 of
//! itself when it becomes a float, 0.1 units a score; reciprocal, product and difference another 0.4. Two units less
//! than the result are therefore a lower bound of the exact step, and as near to the threshold as makes no difference
//! to all but a few rows. Ends when no entry leaves: every other step lowers the count.
HSPAN_DEVICE StepStart coarseStart(RelativeList const& row, StepStart start)
{
    constexpr float kUNITS{1 << 19};
    int32_t units[kHELD_ENTRIES];
    HSPAN_UNROLL
    for (int32_t i = 0; i < kHELD_ENTRIES; ++i)
    {
        units[i] = simt::smallIntegerFromFloat(row.held[i] * kUNITS);
    }
    bool moves = true;
    while (moves)
    {
        int32_t sum = 0;
        HSPAN_UNROLL
        for (int32_t i = 0; i < kHELD_ENTRIES; ++i)
        {
            if (i == 0 || i * simt::kWARP_SIZE < row.list.count)
            {
                simt::addIfGreater(sum, units[i], row.held[i], start.limit);
            }
        }
        float const all = simt::floatFromInteger(simt::sumOfWarp(sum));
        float const step = simt::subtract(all, kUNITS) * simt::reciprocal(simt::floatFromInteger(start.above));
        start.limit = simt::subtract(step, 2.0F) * (1.0F / kUNITS);
        int32_t const above = row.countAbove(start.limit);
        moves = above < start.above;
        start.above = above;
    }
    return start;
}

//! floor(dividend / divisor) for |dividend| <= 3 2^41 divisor. Two quotients of floats, each off by at most 2^-22 of
//! itself (three roundings and the reciprocal): the first leaves a rest below 2^20.6 + 0.5 divisors, the second one
//! below 0.5 + 2^-1.4 of them.
HSPAN_DEVICE int64_t floorQuotientByFloats(int64_t dividend, int32_t divisor)
{
    float const inverse = simt::reciprocal(simt::floatFromInteger(divisor));
    int64_t const quotient = simt::integerFromFloat(simt::floatFromInteger(dividend) * inverse);
    int64_t rest = dividend - quotient * divisor;
    int32_t const more = simt::smallIntegerFromFloat(simt::floatFromInteger(rest) * inverse);
    rest -= static_cast<int64_t>(more) * divisor;
    return quotient + more - (rest < 0 ? 1 : 0);
}

//! The threshold of a list, in quanta, from a start that has entries within little more than 1 of the greatest. The
//! warp calls it together; all lanes receive it.
HSPAN_DEVICE int64_t exactThreshold(RelativeList const& row, StepStart set)
{
    constexpr float kCOARSE_PER_ONE{1 << 19};
    auto const greatest = static_cast<uint32_t>(simt::smallIntegerFromFloat(row.greatest * kCOARSE_PER_ONE));
    if (row.list.count <= kHELD_BY_WARP)
    {
        set = coarseStart(row, set);
    }
    int64_t threshold = 0;
    bool moves = true;
    while (moves)
    {
        // As addScore() does, for at most 2^11 scores. Fine parts, 2^21 each, add up in 32 bits as long as they are
        // fewer than 2^10; those of longer lists hand over to the coarse ones before. Coarse parts add up modulo 2^32;
        // less `greatest` for each score, which is within 1 of them all, the sum is known to lie within 2^30.
        uint32_t coarse = 0;
        uint32_t fine = 0;
        row.forEntries(
            [&](float relative, int32_t /*key*/)
            {
                float const z = relative > set.limit ? relative : 0.0F;
                float const shifted = simt::add(z, kCOARSE);
                float const rest = simt::subtract(z, simt::subtract(shifted, kCOARSE));
                coarse += static_cast<uint32_t>(simt::bitsFromFloat(shifted)) - kCOARSE_BITS;
                fine += static_cast<uint32_t>(simt::bitsFromFloat(simt::add(rest, kFINE))) - kFINE_BITS;
            });
        if (row.list.count > kHELD_BY_WARP)
        {
            int32_t const whole = static_cast<int32_t>(fine) >> kFINE_BITS_OF_COARSE;
            coarse += static_cast<uint32_t>(whole);
            fine -= static_cast<uint32_t>(whole) << kFINE_BITS_OF_COARSE;
        }
        uint32_t const offset = greatest * static_cast<uint32_t>(set.above);
        auto const coarseSum = static_cast<uint32_t>(simt::sumOfWarp(static_cast<int32_t>(coarse)));
        int64_t const sum = (static_cast<int32_t>(coarseSum - offset)
                                + static_cast<int64_t>(static_cast<int32_t>(greatest)) * set.above)
                * kFINE_PER_COARSE
            + simt::sumOfWarp(static_cast<int32_t>(fine));
        threshold = floorQuotientByFloats(sum - kONE, set.above);
        set.limit = limitOf(threshold);
        int32_t const above = row.countAbove(set.limit);
        moves = above != set.above; // the same set has the same sum
        set.above = above;
    }
    return threshold;
}

} // namespace hspan
