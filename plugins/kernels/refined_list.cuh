//! \file refined_list.cuh
//! Which rows of a warp are refined, and the refined scores of a list.
#pragma once

#include <cstdint>

#include <simt.h>

#include "fma_tile.cuh"
#include "refined_score.cuh"
#include "tiled_arguments.cuh"

namespace hspan
{

//! The refinements of a lane's rows: their grids, before the greatest scores are computed. The warp calls it together.
HSPAN_DEVICE void findGrids(
    Refinement (&refinements)[2], TiledArguments<float> const& arguments, int64_t image, int64_t firstRow)
{
    float const keySquares
        = greatestSquares(arguments.keyBounds + image * boundsPerImage(arguments.positions), arguments.positions);
    int32_t const lane = simt::laneIndex();
    for (int32_t row = 0; row < kROWS_OF_WARP && firstRow + row < arguments.positions; ++row)
    {
        float const* const query
            = arguments.query + (image * arguments.positions + firstRow + row) * arguments.scorePitch;
        float squares = 0.0F;
        for (int32_t channel = lane; channel < arguments.scoreChannels; channel += simt::kWARP_SIZE)
        {
            squares = simt::multiplyAdd(query[channel], query[channel], squares);
        }
        HSPAN_UNROLL
        for (int32_t mask = simt::kWARP_SIZE / 2; mask > 0; mask /= 2)
        {
            squares = simt::add(squares, simt::shuffleXor(squares, mask));
        }
        float const grid = gridOf(squares * keySquares);
        refinements[0].grid = row == lane / 4 ? grid : refinements[0].grid;
        refinements[1].grid = row == lane / 4 + 8 ? grid : refinements[1].grid;
    }
}

//! Replaces a list's scores by refined ones, of a query row and keys aligned to 16 bytes. The warp calls it together.
HSPAN_DEVICE void refineList(float* scores, int32_t const* keys, int32_t count, float const* query,
    FloatRows const& key, Refinement const& refinement)
{
    auto const* const q = reinterpret_cast<simt::Float4 const*>(query);
    int32_t const pieces = (key.channels + kPER_PIECE - 1) / kPER_PIECE; // what pads the last one is zero
    for (int32_t i = simt::laneIndex(); i < count; i += simt::kWARP_SIZE)
    {
        auto const* const k = reinterpret_cast<simt::Float4 const*>(key.data + keys[i] * key.pitch);
        float sum = refinement.grid;
        float rest = 0.0F;
        for (int32_t piece = 0; piece < pieces; ++piece)
        {
            addProducts(sum, rest, q[piece], k[piece]);
        }
        scores[i] = scoreOf(sum, rest, refinement);
    }
}

} // namespace hspan
