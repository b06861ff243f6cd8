//! \file dense_float.cuh
//! The output of rows on the dense route, for FP32: scores once more, weights from the finished thresholds, and the
//! values of those keys only that have a weight in some row of the warp.
//!
//! Sums are chains of at most kDENSE_FLOAT_KEYS fused multiply-adds in ascending key order whose results go into a
//! two-float total, as in the other kernels. A weight of 0 multiplies nothing.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"
#include "fma_tile.cuh"
#include "tiled_arguments.cuh"
#include "two_float.cuh"

namespace hspan
{

constexpr int32_t kDENSE_FLOAT_KEYS{32};
constexpr int32_t kDENSE_FLOAT_SLICE{64}; //!< value channels per block
constexpr int32_t kDENSE_FLOAT_WARPS{2};
constexpr int32_t kDENSE_FLOAT_ROWS{kDENSE_FLOAT_WARPS * kROWS_OF_WARP};
constexpr int32_t kDENSE_FLOAT_THREADS{kDENSE_FLOAT_WARPS * simt::kWARP_SIZE};
constexpr int32_t kCHANNELS_OF_LANE{kDENSE_FLOAT_SLICE / simt::kWARP_SIZE};

using DenseFloatTile = FmaTile<kDENSE_FLOAT_WARPS, kDENSE_FLOAT_KEYS>;

struct alignas(16) DenseFloatStage
{
    DenseFloatTile::Stage scores;
    float weights[kDENSE_FLOAT_WARPS][kDENSE_FLOAT_KEYS][kROWS_OF_WARP + 4];
};

//! Sums of one lane: the 16 rows of its warp, channels lane and lane + 32 of the slice.
struct DenseFloatSums
{
    float partial[kROWS_OF_WARP][kCHANNELS_OF_LANE];
    TwoFloat total[kROWS_OF_WARP][kCHANNELS_OF_LANE];
};

//! Adds a tile of keys. The warp calls it together; values come straight from memory, neighboring lanes reading
//! neighbors.
HSPAN_DEVICE void addTileValues(DenseFloatSums& sums, float const (&weights)[kDENSE_FLOAT_KEYS][kROWS_OF_WARP + 4],
    uint32_t hits, float const* value, int64_t pitch, int32_t channels)
{
    int32_t const lane = simt::laneIndex();
    for (uint32_t left = hits; left != 0; left &= left - 1)
    {
        int32_t const key = simt::lowestBit(left);
        float v[kCHANNELS_OF_LANE];
        HSPAN_UNROLL
        for (int32_t i = 0; i < kCHANNELS_OF_LANE; ++i)
        {
            int32_t const channel = lane + i * simt::kWARP_SIZE;
            v[i] = channel < channels ? value[key * pitch + channel] : 0.0F;
        }
        HSPAN_UNROLL
        for (int32_t r = 0; r < kROWS_OF_WARP; ++r)
        {
            float const weight = weights[key][r];
            HSPAN_UNROLL
            for (int32_t i = 0; i < kCHANNELS_OF_LANE; ++i)
            {
                if (weight > 0.0F)
                {
                    sums.partial[r][i] = simt::multiplyAdd(weight, v[i], sums.partial[r][i]);
                }
            }
        }
    }
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_OF_WARP; ++r)
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < kCHANNELS_OF_LANE; ++i)
        {
            addChain(sums.total[r][i], sums.partial[r][i]);
            sums.partial[r][i] = 0.0F;
        }
    }
}

//! Adds a tile of keys from its scores. The warp calls it together.
template <int32_t kGROUPS>
HSPAN_DEVICE void addTile(DenseFloatSums& sums, float (&weights)[kDENSE_FLOAT_KEYS][kROWS_OF_WARP + 4],
    RowResult const (&rows)[2], float const (&scores)[kGROUPS][4], float const* value, int64_t pitch, int32_t channels)
{
    int32_t const lane = simt::laneIndex();
    uint32_t hits = 0;
    simt::syncWarp(); // the readers of the previous tile's weights are done
    HSPAN_UNROLL
    for (int32_t i = 0; i < kGROUPS; ++i)
    {
        HSPAN_UNROLL
        for (int32_t j = 0; j < 4; ++j)
        {
            int32_t const at = 8 * i + lane % 4 * 2 + j % 2;
            float const weight = weightOf(rows[j / 2], scores[i][j]);
            hits |= weight > 0.0F ? 1U << static_cast<uint32_t>(at) : 0U;
            weights[at][lane / 4 + j / 2 * 8] = weight;
        }
    }
    HSPAN_UNROLL
    for (int32_t mask = simt::kWARP_SIZE / 2; mask > 0; mask /= 2)
    {
        hits |= simt::shuffleXor(hits, mask);
    }
    simt::syncWarp(); // the weights are complete
    if (hits != 0)
    {
        addTileValues(sums, weights, hits, value, pitch, channels);
    }
}

//! Writes the output of kDENSE_FLOAT_ROWS rows and one slice of channels, of the rows on the dense route. Grid: x rows,
//! z slices. T is float.
template <typename T>
HSPAN_KERNEL_FITTING(kDENSE_FLOAT_THREADS, 4)
denseFloatKernel(TiledArguments<T> arguments)
{
    HSPAN_SHARED(DenseFloatStage, stage);
    TilePlace const place = placeOf(arguments, kDENSE_FLOAT_ROWS);
    int32_t const lane = simt::laneIndex();
    int32_t const warpRow = simt::warpIndex() * kROWS_OF_WARP;
    RowResult rows[2];
    bool isDense[2];
    HSPAN_UNROLL
    for (int32_t half = 0; half < 2; ++half)
    {
        int32_t const row = warpRow + lane / 4 + 8 * half;
        bool const exists = place.row + row < arguments.positions;
        rows[half] = resultOf(false, 0.0F, 0.0F, 0, 0);
        if (exists)
        {
            rows[half] = arguments.results[place.slot + row];
        }
        isDense[half] = exists && rows[half].count == kDENSE;
        if (!isDense[half])
        {
            rows[half].limit = INFINITY; // no weights
        }
    }
    if (!simt::anyInBlock(isDense[0] || isDense[1]))
    {
        return;
    }
    int32_t const firstChannel = static_cast<int32_t>(simt::blockZ()) * kDENSE_FLOAT_SLICE;
    int32_t const left = arguments.valueChannels - firstChannel;
    int32_t const channels = left < kDENSE_FLOAT_SLICE ? left : kDENSE_FLOAT_SLICE;
    int64_t const image = place.image * arguments.positions;
    float const* const values = arguments.value + image * arguments.valuePitch + firstChannel;
    FloatRows const query = DenseFloatTile::operand(arguments, arguments.query + image * arguments.scorePitch);
    FloatRows const key = DenseFloatTile::operand(arguments, arguments.key + image * arguments.scorePitch);
    DenseFloatSums sums = {};
    auto& weights = stage.weights[simt::warpIndex()];
    bool const hasRefined
        = (isDense[0] && rows[0].refinement.grid > 0.0F) || (isDense[1] && rows[1].refinement.grid > 0.0F);
    auto const consume = [&](auto const& scores, int64_t firstKey)
    { addTile(sums, weights, rows, scores, values + firstKey * arguments.valuePitch, arguments.valuePitch, channels); };
    if (simt::anyInBlock(hasRefined))
    {
        using Refined = DenseFloatTile::Refined;
        Refined::Query const refinements{{rows[0].refinement, rows[1].refinement}};
        Refined::stream(stage.scores, refinements, query, key, place.row, true, consume);
    }
    else
    {
        DenseFloatTile::stream(stage.scores, DenseFloatTile::Query{}, query, key, place.row, true, consume);
    }
    float* const output
        = arguments.output + place.image * arguments.outputBatch + firstChannel * arguments.outputChannel;
    HSPAN_UNROLL
    for (int32_t r = 0; r < kROWS_OF_WARP; ++r)
    {
        bool const own = r < 8 ? isDense[0] : isDense[1];
        float const anchor = r < 8 ? rows[0].anchor : rows[1].anchor;
        bool const isWritten = simt::shuffle(own ? 1 : 0, r % 8 * 4) != 0;
        float const rowAnchor = simt::shuffle(anchor, r % 8 * 4);
        HSPAN_UNROLL
        for (int32_t i = 0; i < kCHANNELS_OF_LANE; ++i)
        {
            int32_t const channel = lane + i * simt::kWARP_SIZE;
            if (isWritten && channel < channels)
            {
                output[channel * arguments.outputChannel + (place.row + warpRow + r) * arguments.outputPosition]
                    = rowAnchor == rowAnchor ? valueOf(sums.total[r][i]) : NAN;
            }
        }
    }
}

} // namespace hspan
