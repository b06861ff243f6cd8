//! \file candidate_list.cuh
//! The scores of one row that may still be in its support: a list in global memory that one warp appends to and
//! tightens.
//!
//! For a set A of scores let tau(A) be its sparsemax threshold. More scores never lower it, so tau of what a row has
//! seen is a lower bound of the final one, and what does not exceed it can be dropped for good. Entries are in
//! ascending key order, and dropping keeps the order: what is left in the end is the support, in the same order
//! whatever the tiles.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"

namespace hspan
{

//! A list's threshold.
struct Tightened
{
    float maximum; //!< of the scores in the list; -inf if it is empty, NaN if one is NaN
    float anchor;
    int64_t threshold; //!< in quanta above the anchor
    float bound;       //!< a score at or below it cannot be in the support; -inf if the list has no threshold
    int32_t count;     //!< entries left
};

//! Computes the threshold of a list's scores and drops the entries that do not exceed it less `slack`: scores that are
//! off by slack / 2 may yet be in the support. The warp calls it together, and all lanes receive the same result.
HSPAN_DEVICE Tightened tighten(float* scores, int32_t* keys, int32_t count, float slack)
{
    int32_t const lane = simt::laneIndex();
    simt::syncWarp(); // other lanes' entries are visible
    float maximum = -INFINITY;
    for (int32_t i = lane; i < count; i += simt::kWARP_SIZE)
    {
        maximum = simt::maximumOrNan(maximum, scores[i]);
    }
    HSPAN_UNROLL
    for (int32_t mask = simt::kWARP_SIZE / 2; mask > 0; mask /= 2)
    {
        maximum = simt::maximumOrNan(maximum, simt::shuffleXor(maximum, mask));
    }
    Tightened list = {maximum, anchorOf(maximum), 0, -INFINITY, 0};
    if (!(maximum - maximum == 0.0F))
    {
        return list;
    }
    list.threshold = leastThreshold(maximum, list.anchor);
    float limit = limitOf(list.threshold);
    bool moved = true;
    while (moved)
    {
        int64_t sum = 0;
        int32_t above = 0;
        for (int32_t i = lane; i < count; i += simt::kWARP_SIZE)
        {
            float const relative = simt::subtract(scores[i], list.anchor);
            if (relative > limit)
            {
                sum += quantaOf(relative);
                above += 1;
            }
        }
        HSPAN_UNROLL
        for (int32_t mask = simt::kWARP_SIZE / 2; mask > 0; mask /= 2)
        {
            sum += shuffleXor64(sum, mask);
            above += simt::shuffleXor(above, mask);
        }
        int64_t const next = nextThreshold(sum, above);
        moved = next != list.threshold;
        list.threshold = next;
        limit = limitOf(next);
    }
    limit = simt::subtract(limit, slack);
    for (int32_t first = 0; first < count; first += simt::kWARP_SIZE)
    {
        int32_t const i = first + lane;
        float const score = i < count ? scores[i] : -INFINITY;
        int32_t const key = i < count ? keys[i] : 0;
        bool const stays = simt::subtract(score, list.anchor) > limit;
        uint32_t const staying = simt::ballot(stays);
        simt::syncWarp(); // all lanes have read before one writes: a ballot does not order memory
        if (stays)
        {
            int32_t const at = list.count + simt::bitCount(staying & ((1U << static_cast<uint32_t>(lane)) - 1U));
            scores[at] = score;
            keys[at] = key;
        }
        list.count += simt::bitCount(staying);
    }
    simt::syncWarp();
    // Rounded down, so that a score at or below it is at most anchor + limit. Subtracting rounds monotonously.
    list.bound = simt::addDown(list.anchor, limit);
    return list;
}

} // namespace hspan
