//! \file fma_tile.cuh
//! Score tiles in FP32 without tensor cores (and so without TF32): the same tiles, lanes and rows as tensor_tile.cuh.
//!
//! A score is one chain of fused multiply-adds over ascending channels, as in the plain kernels; in a refined tile it
//! is a refined score for the rows that have such (refined_score.cuh), and the same chain for others. Slices of kSLICE
//! channels of the query tile and of a key tile are copied asynchronously into one of two buffers while the other is in
//! use.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "refined_score.cuh"
#include "tiled_arguments.cuh"

namespace hspan
{

constexpr int32_t kSLICE{32};    //!< channels in a buffer
constexpr int32_t kPER_PIECE{4}; //!< floats in 16 bytes
constexpr int32_t kSLICE_PIECES{kSLICE / kPER_PIECE};

//! Floats from one row to the next: an odd multiple of 16 bytes, so that eight rows lie in different banks.
constexpr int32_t kSLICE_PITCH{kSLICE + kPER_PIECE};

//! One image's queries or keys: (L, pitch), rows aligned to 16 bytes.
struct FloatRows
{
    float const* data;
    int64_t pitch;
    int32_t positions; //!< L
    int32_t channels;  //!< C
};

//! Two slices of kROWS queries and kKEYS keys.
template <int32_t kROWS, int32_t kKEYS>
struct alignas(16) FmaStage
{
    float query[2][kROWS][kSLICE_PITCH];
    float key[2][kKEYS][kSLICE_PITCH];
};

//! A tile of kWARPS_ * 16 rows and kKEYS_ keys, as the kernels take it.
template <int32_t kWARPS_, int32_t kKEYS_, bool kREFINED = false>
struct FmaTile
{
    static constexpr bool kHAS_REFINED{true};
    static constexpr int32_t kWARPS{kWARPS_};
    static constexpr int32_t kKEYS{kKEYS_};
    static constexpr int32_t kROWS{kWARPS * kROWS_OF_WARP};
    static constexpr int32_t kTHREADS{kWARPS * simt::kWARP_SIZE};

    //! The same for refined scores. Sums of two parts take twice the registers, so it has half as many keys.
    using Refined = FmaTile<kWARPS, kKEYS / 2, true>;
    using Stage = FmaStage<kROWS, kREFINED ? 2 * kKEYS : kKEYS>;

    //! Queries pass through the stage with every key tile. What is kept of them are the refinements of a lane's rows.
    struct Query
    {
        Refinement rows[kREFINED ? 2 : 1];
    };

    //! Sums of products on their way to scores.
    struct Sums
    {
        float sum[kKEYS / 8][4];
        float rest[kREFINED ? kKEYS / 8 : 1][4];
    };

    HSPAN_DEVICE static FloatRows operand(TiledArguments<float> const& arguments, float const* image)
    {
        return {image, arguments.scorePitch, arguments.positions, arguments.scoreChannels};
    }

    HSPAN_DEVICE static void loadQueries(
        Query& /*query*/, Stage& /*stage*/, FloatRows const& /*rows*/, int64_t /*firstRow*/)
    {
    }

    //! Starts copying one slice of channels of kCOUNT rows; what lies past the last row or channel becomes zero.
    template <int32_t kCOUNT>
    HSPAN_DEVICE static void startSlice(
        float (*target)[kSLICE_PITCH], FloatRows const& source, int64_t first, int32_t firstChannel)
    {
        static_assert(kTHREADS % kSLICE_PIECES == 0 && kCOUNT % (kTHREADS / kSLICE_PIECES) == 0, "whole rounds");
        int32_t const channel = simt::threadIndex() % kSLICE_PIECES * kPER_PIECE;
        HSPAN_UNROLL
        for (int32_t i = 0; i < kCOUNT / (kTHREADS / kSLICE_PIECES); ++i)
        {
            int32_t const row = simt::threadIndex() / kSLICE_PIECES + i * (kTHREADS / kSLICE_PIECES);
            bool const inside = first + row < source.positions && firstChannel + channel < source.channels;
            int64_t const at = inside ? (first + row) * source.pitch + firstChannel + channel : 0;
            simt::copyAsync(&target[row][channel], source.data + at, inside);
        }
    }

    HSPAN_DEVICE static void start(Sums& sums, Query const& query)
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < kKEYS / 8; ++i)
        {
            HSPAN_UNROLL
            for (int32_t j = 0; j < 4; ++j)
            {
                if constexpr (kREFINED)
                {
                    sums.sum[i][j] = query.rows[j / 2].grid;
                    sums.rest[i][j] = 0.0F;
                }
                else
                {
                    sums.sum[i][j] = 0.0F;
                }
            }
        }
    }

    //! Adds the products of one slice, of which `channels` exist. A last piece is padded with zeros.
    HSPAN_DEVICE static void accumulate(Sums& sums, Stage const& stage, int32_t buffer, int32_t channels)
    {
        int32_t const lane = simt::laneIndex();
        int32_t const row = simt::warpIndex() * kROWS_OF_WARP + lane / 4;
        int32_t const key = lane % 4 * 2;
        HSPAN_UNROLL_BY(1)
        for (int32_t channel = 0; channel < kSLICE && channel < channels; channel += kPER_PIECE)
        {
            auto const low = *reinterpret_cast<simt::Float4 const*>(&stage.query[buffer][row][channel]);
            auto const high = *reinterpret_cast<simt::Float4 const*>(&stage.query[buffer][row + 8][channel]);
            HSPAN_UNROLL
            for (int32_t i = 0; i < kKEYS / 8; ++i)
            {
                HSPAN_UNROLL
                for (int32_t j = 0; j < 2; ++j)
                {
                    auto const k = *reinterpret_cast<simt::Float4 const*>(&stage.key[buffer][8 * i + key + j][channel]);
                    addProducts(sums, i, j, low, k);
                    addProducts(sums, i, j + 2, high, k);
                }
            }
        }
    }

    HSPAN_DEVICE static void addProducts(Sums& sums, int32_t i, int32_t j, simt::Float4 const& a, simt::Float4 const& b)
    {
        float& sum = sums.sum[i][j];
        if constexpr (kREFINED)
        {
            hspan::addProducts(sum, sums.rest[i][j], a, b);
        }
        else
        {
            sum = simt::multiplyAdd(a.x, b.x, sum);
            sum = simt::multiplyAdd(a.y, b.y, sum);
            sum = simt::multiplyAdd(a.z, b.z, sum);
            sum = simt::multiplyAdd(a.w, b.w, sum);
        }
    }

    //! Scores from the sums of a tile whose first key of this lane is `own`; -inf past the last key.
    HSPAN_DEVICE static void finish(
        float (&scores)[kKEYS / 8][4], Sums const& sums, Query const& query, int64_t own, int32_t positions)
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < kKEYS / 8; ++i)
        {
            HSPAN_UNROLL
            for (int32_t j = 0; j < 4; ++j)
            {
                float score = sums.sum[i][j];
                if constexpr (kREFINED)
                {
                    score = scoreOf(score, sums.rest[i][j], query.rows[j / 2]);
                }
                scores[i][j] = own + 8 * i + j % 2 < positions ? score : -INFINITY;
            }
        }
    }

    //! As streamTiles() in tensor_tile.cuh.
    template <typename Consume>
    HSPAN_DEVICE static void stream(Stage& stage, Query const& refinements, FloatRows const& query,
        FloatRows const& key, int64_t firstRow, bool isActive, Consume const& consume)
    {
        int32_t const tiles = (key.positions + kKEYS - 1) / kKEYS;
        int32_t buffer = 0;
        simt::syncBlock(); // the buffers' last readers are done
        startSlice<kROWS>(stage.query[0], query, firstRow, 0);
        startSlice<kKEYS>(stage.key[0], key, 0, 0);
        for (int32_t tile = 0; tile < tiles; ++tile)
        {
            int64_t const firstKey = static_cast<int64_t>(tile) * kKEYS;
            Sums sums;
            start(sums, refinements);
            for (int32_t channel = 0; channel < key.channels; channel += kSLICE)
            {
                simt::waitForCopies();
                simt::syncBlock(); // the slice is complete, and the other buffer's readers are done
                bool const isLastSlice = channel + kSLICE >= key.channels;
                if (!isLastSlice || tile + 1 < tiles)
                {
                    int32_t const nextChannel = isLastSlice ? 0 : channel + kSLICE;
                    startSlice<kROWS>(stage.query[1 - buffer], query, firstRow, nextChannel);
                    startSlice<kKEYS>(
                        stage.key[1 - buffer], key, isLastSlice ? firstKey + kKEYS : firstKey, nextChannel);
                }
                if (isActive)
                {
                    accumulate(sums, stage, buffer, key.channels - channel);
                }
                buffer = 1 - buffer;
            }
            if (isActive)
            {
                float scores[kKEYS / 8][4];
                finish(scores, sums, refinements, firstKey + simt::laneIndex() % 4 * 2, key.positions);
                consume(scores, firstKey);
            }
        }
    }
};

} // namespace hspan
