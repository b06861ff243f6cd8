//! \file list_scores.cuh
//! FP32 scores of a list whose entries coarse scores have chosen (coarse_copies.cuh), an entry a lane.
//!
//! They are the scores of the dense route bit by bit: chains of multiply-adds over ascending channels, and in refined
//! rows (refined_score.cuh) distances from the greatest of these. So which other keys a list contains beside the row's
//! support, which is up to the coarse scores, cannot show in an output.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "list_threshold.cuh"
#include "look_arguments.cuh"
#include "refined_score.cuh"

namespace hspan
{

//! A query and the keys of its image, rows aligned to 16 bytes; what pads a last piece of four channels is zero.
struct ScoreVectors
{
    simt::Float4 const* query;
    float const* keys;
    int64_t pitch;  //!< elements from key to key
    int32_t pieces; //!< of four channels
};

HSPAN_DEVICE float chainScore(ScoreVectors const& vectors, int32_t key)
{
    auto const* const k = reinterpret_cast<simt::Float4 const*>(vectors.keys + key * vectors.pitch);
    float sum = 0.0F;
    HSPAN_UNROLL_BY(4)
    for (int32_t piece = 0; piece < vectors.pieces; ++piece)
    {
        simt::Float4 const a = vectors.query[piece];
        simt::Float4 const b = k[piece];
        sum = simt::multiplyAdd(a.x, b.x, sum);
        sum = simt::multiplyAdd(a.y, b.y, sum);
        sum = simt::multiplyAdd(a.z, b.z, sum);
        sum = simt::multiplyAdd(a.w, b.w, sum);
    }
    return sum;
}

HSPAN_DEVICE float refinedScore(ScoreVectors const& vectors, int32_t key, Refinement const& refinement)
{
    auto const* const k = reinterpret_cast<simt::Float4 const*>(vectors.keys + key * vectors.pitch);
    float sum = refinement.grid;
    float rest = 0.0F;
    HSPAN_UNROLL_BY(4)
    for (int32_t piece = 0; piece < vectors.pieces; ++piece)
    {
        addProducts(sum, rest, vectors.query[piece], k[piece]);
    }
    return scoreOf(sum, rest, refinement);
}

//! Replaces the scores of a list by score(key), and returns the greatest, or NaN. The warp calls it together.
template <typename Score>
HSPAN_DEVICE float replaceScores(SplitList const& list, Score const& score)
{
    float greatest = -INFINITY;
    for (int32_t first = 0; first < list.count; first += simt::kWARP_SIZE)
    {
        int32_t const i = first + simt::laneIndex();
        int32_t const place = list.placeOf(i);
        if (i < list.count)
        {
            ListEntry& entry = list.entries[place]; // the same lane reads it again
            entry.score = score(entry.key);
            greatest = simt::maximumOrNan(greatest, entry.score);
        }
    }
    return greatestOfWarp(greatest);
}

//! Gives a list the scores that count, of `row` of an image whose rows come after `before` others. Returns the
//! greatest, NaN or infinite where the row has no sparsemax. The warp calls it together.
HSPAN_DEVICE float scoreList(SplitList const& list, LookArguments<float> const& arguments, int64_t before, int64_t row)
{
    TiledArguments<float> const& tensors = arguments.tensors;
    ScoreVectors const vectors{
        reinterpret_cast<simt::Float4 const*>(tensors.query + (before + row) * tensors.scorePitch),
        tensors.key + before * tensors.scorePitch, tensors.scorePitch, (tensors.scoreChannels + 3) / 4};
    float const greatest = replaceScores(list, [&](int32_t key) { return chainScore(vectors, key); });
    float const grid = arguments.coarseRows[before + row].grid;
    if (grid == 0.0F || !(greatest - greatest == 0.0F))
    {
        return greatest;
    }
    return replaceScores(list, [&](int32_t key) { return refinedScore(vectors, key, {grid, greatest}); });
}

} // namespace hspan
