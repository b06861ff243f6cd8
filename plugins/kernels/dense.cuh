//! \file dense.cuh
//! The output of rows on the dense route, for FP16 and BF16: scores once more, weights from the finished thresholds,
//! and the product of weights and values on tensor cores.
//!
//! A weight enters as the sum of two 16-bit numbers, so that it keeps FP32's digits up to a relative 2^-22 (FP16) or
//! 2^-17 (BF16) and is not rounded to the element type. It is scaled by a power of two that puts the row's greatest
//! weight between 2^14 and 2^15 for FP16, whose range ends at 2^-24; weights below 2^-39 of the greatest are lost.
//! Products are summed in FP32 on the tensor core for kKEYS_PER_TOTAL keys, then added to a total.
//!
//! Values outside the support must not enter the arithmetic, but 0 * inf on a tensor core is NaN. Where an output is
//! not finite the block starts over: once with all values that are not finite replaced by 0, then with their signs
//! alone.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"
#include "tensor_tile.cuh"
#include "tiled_arguments.cuh"

namespace hspan
{

constexpr int32_t kDENSE_WARPS{4};
constexpr int32_t kDENSE_KEYS{32};
constexpr int32_t kDENSE_SLICE{96}; //!< value channels per block
constexpr int32_t kVALUE_PITCH{kDENSE_SLICE + kPER_COPY};
constexpr int32_t kDENSE_ROWS{kDENSE_WARPS * kROWS_OF_WARP};
constexpr int32_t kDENSE_THREADS{kDENSE_WARPS * simt::kWARP_SIZE};
constexpr int32_t kKEYS_PER_TOTAL{512};

//! Operands of the products while keys stream past; afterwards the outputs on their way to memory.
template <typename T>
union DenseStage
{
    struct Operands
    {
        alignas(16) T query[kDENSE_ROWS][kSCORE_PITCH];
        KeyStage<T, kDENSE_KEYS> keys;
        alignas(16) T values[2][kDENSE_KEYS][kVALUE_PITCH];
    } operands;
    struct Outputs
    {
        float output[kDENSE_ROWS][kDENSE_SLICE + 1];
        int32_t written[kDENSE_ROWS];
    } outputs;
};

//! What of the values takes part.
enum class ValuePart : int32_t
{
    kALL,
    kFINITE,   //!< others count as 0
    kPOSITIVE, //!< 1 for +inf and NaN, else 0; weights count as 1
    kNEGATIVE, //!< 1 for -inf and NaN, else 0; weights count as 1
};

//! Maps a value to the requested part.
template <typename T>
HSPAN_DEVICE T partOf(T value, ValuePart part)
{
    float const v = simt::toFloat(value);
    bool const finite = v - v == 0.0F;
    bool const chosen = part == ValuePart::kPOSITIVE ? !finite && !(v < 0.0F) : !finite && !(v > 0.0F);
    return part == ValuePart::kFINITE ? (finite ? value : simt::fromFloat<T>(0.0F))
                                      : simt::fromFloat<T>(chosen ? 1.0F : 0.0F);
}

//! Calls visit(key of the tile, channel of the slice) for the first element of each 16-byte piece this thread copies.
template <typename Visit>
HSPAN_DEVICE void forOwnPieces(int32_t pieces, Visit const& visit)
{
    constexpr int32_t kPER_ROW{16}; // 128 channels: a thread keeps to one column
    int32_t const piece = simt::threadIndex() % kPER_ROW;
    if (piece < pieces)
    {
        HSPAN_UNROLL
        for (int32_t i = 0; i < kDENSE_KEYS * kPER_ROW / kDENSE_THREADS; ++i)
        {
            visit(simt::threadIndex() / kPER_ROW + i * (kDENSE_THREADS / kPER_ROW), piece * kPER_COPY);
        }
    }
}

//! The factor that scales a row's weights for type T: a power of two.
template <typename T>
HSPAN_DEVICE float weightScale(float largest);

template <>
HSPAN_DEVICE float weightScale<float>(float /*largest*/)
{
    return 1.0F;
}

template <>
HSPAN_DEVICE float weightScale<simt::BFloat16>(float /*largest*/)
{
    return 1.0F;
}

template <>
HSPAN_DEVICE float weightScale<simt::Half>(float largest)
{
    int32_t const exponent = simt::bitsFromFloat(largest) >> 23; // of a positive number, biased by 127
    return simt::floatFromBits((2 * 127 + 14 - exponent) << 23); // 2^(14 - exponent)
}

//! One slice of channels of the output of a block's rows.
template <typename T>
struct DenseTile
{
    static constexpr int32_t kPIECES{kDENSE_SLICE / 8};
    float sums[kPIECES][4];
    float totals[kPIECES][4];
};

//! Adds the weights of two groups of eight keys times their values. Fragment C of the scores is fragment A of the
//! weights.
template <typename T>
HSPAN_DEVICE void addWeighted(
    DenseTile<T>& tile, float const (&low)[4], float const (&high)[4], T const (*values)[kVALUE_PITCH], int32_t pieces)
{
    uint32_t rounded[4] = {simt::pairOf<T>(low[0], low[1]), simt::pairOf<T>(low[2], low[3]),
        simt::pairOf<T>(high[0], high[1]), simt::pairOf<T>(high[2], high[3])};
    auto const rest = [](float a, float b)
    {
        return simt::pairOf<T>(simt::subtract(a, simt::toFloat(simt::fromFloat<T>(a))),
            simt::subtract(b, simt::toFloat(simt::fromFloat<T>(b))));
    };
    uint32_t remaining[4]
        = {rest(low[0], low[1]), rest(low[2], low[3]), rest(high[0], high[1]), rest(high[2], high[3])};
    HSPAN_UNROLL
    for (int32_t piece = 0; piece < DenseTile<T>::kPIECES; piece += 2)
    {
        if (piece < pieces)
        {
            uint32_t b[4];
            simt::loadMatricesTransposedAt<0>(
                b, simt::sharedAddress(downThenRight<T, kVALUE_PITCH>(values, 8 * piece)));
            simt::multiplyMatrices<T>(tile.sums[piece], rounded, b[0], b[1]);
            simt::multiplyMatrices<T>(tile.sums[piece], remaining, b[0], b[1]);
            simt::multiplyMatrices<T>(tile.sums[piece + 1], rounded, b[2], b[3]);
            simt::multiplyMatrices<T>(tile.sums[piece + 1], remaining, b[2], b[3]);
        }
    }
}

template <typename T>
HSPAN_DEVICE void addToTotals(DenseTile<T>& tile)
{
    HSPAN_UNROLL
    for (int32_t piece = 0; piece < DenseTile<T>::kPIECES; ++piece)
    {
        HSPAN_UNROLL
        for (int32_t j = 0; j < 4; ++j)
        {
            tile.totals[piece][j] = simt::add(tile.totals[piece][j], tile.sums[piece][j]);
            tile.sums[piece][j] = 0.0F;
        }
    }
}

//! Writes one slice of the outputs of a block's rows. All threads call it together.
template <typename T>
HSPAN_DEVICE void writeOutputs(typename DenseStage<T>::Outputs const& outputs, TiledArguments<T> const& arguments,
    TilePlace const& place, int32_t firstChannel, ValuePart part)
{
    bool const isLinear = arguments.outputPosition == 1;
    int32_t const left = arguments.valueChannels - firstChannel;
    int32_t const channels = left < kDENSE_SLICE ? left : kDENSE_SLICE;
    // Channels-last outputs are written up to their pitch, zeros past the last channel.
    int32_t const padded = static_cast<int32_t>(arguments.outputPosition) - firstChannel;
    int32_t const width = isLinear ? channels : (padded < kDENSE_SLICE ? padded : kDENSE_SLICE);
    T* const output = arguments.output + place.image * arguments.outputBatch + place.row * arguments.outputPosition
        + firstChannel * arguments.outputChannel;
    for (int32_t i = simt::threadIndex(); i < kDENSE_ROWS * width; i += kDENSE_THREADS)
    {
        int32_t const row = isLinear ? i % kDENSE_ROWS : i / width;
        int32_t const channel = isLinear ? i / kDENSE_ROWS : i % width;
        if (outputs.written[row] == 0)
        {
            continue;
        }
        T& target = output[channel * arguments.outputChannel + row * arguments.outputPosition];
        float const value = channel < channels ? outputs.output[row][channel] : 0.0F;
        if (part == ValuePart::kALL || part == ValuePart::kFINITE)
        {
            target = simt::fromFloat<T>(value);
        }
        else if (value > 0.0F)
        {
            bool const isBoth = part == ValuePart::kNEGATIVE && simt::toFloat(target) == INFINITY;
            target = simt::fromFloat<T>(isBoth ? NAN : part == ValuePart::kPOSITIVE ? INFINITY : -INFINITY);
        }
    }
}

//! Writes the output of kDENSE_ROWS rows and one slice of channels, of the rows on the dense route. Grid: x rows, z
//! slices.
template <typename T>
HSPAN_KERNEL_FITTING(kDENSE_THREADS, 2)
denseKernel(TiledArguments<T> arguments)
{
    HSPAN_SHARED(DenseStage<T>, stage);
    TilePlace const place = placeOf(arguments, kDENSE_ROWS);
    int32_t const lane = simt::laneIndex();
    int32_t const warpRow = simt::warpIndex() * kROWS_OF_WARP;
    RowResult rows[2];
    float scale[2];
    bool isDense[2];
    HSPAN_UNROLL
    for (int32_t half = 0; half < 2; ++half)
    {
        int32_t const row = warpRow + lane / 4 + 8 * half;
        isDense[half] = place.row + row < arguments.positions && arguments.results[place.slot + row].count == kDENSE;
        rows[half] = isDense[half] ? arguments.results[place.slot + row] : resultOf(false, 0.0F, 0.0F, 0, 0);
        scale[half] = weightScale<T>(rows[half].largest);
        if (!isDense[half])
        {
            rows[half].limit = INFINITY; // no weights
        }
    }
    if (!simt::anyInBlock(isDense[0] || isDense[1]))
    {
        return;
    }
    auto& operands = stage.operands;
    int32_t const firstChannel = static_cast<int32_t>(simt::blockZ()) * kDENSE_SLICE;
    int32_t const left = arguments.valueChannels - firstChannel;
    int32_t const channels = left < kDENSE_SLICE ? left : kDENSE_SLICE;
    int32_t const pieces = (channels + 7) / 8;
    int32_t const copies = (channels + 15) / 16 * 2; // matrices are loaded in pairs
    int64_t const image = place.image * arguments.positions;
    T const* const values = arguments.value + image * arguments.valuePitch + firstChannel;
    using Tile = TensorTile<T, kDENSE_WARPS, kDENSE_KEYS>;
    TokenRows<T> const query = Tile::operand(arguments, arguments.query + image * arguments.scorePitch);
    TokenRows<T> const key = Tile::operand(arguments, arguments.key + image * arguments.scorePitch);
    SharedQuery<T> const ownQuery = {&operands.query[warpRow]};
    int32_t const tiles = (arguments.positions + kDENSE_KEYS - 1) / kDENSE_KEYS;
    ValuePart part = ValuePart::kALL;
    bool again = true;
    while (again)
    {
        bool const counts = part == ValuePart::kPOSITIVE || part == ValuePart::kNEGATIVE;
        auto const startTile = [&](int32_t tile)
        {
            int64_t const firstKey = static_cast<int64_t>(tile) * kDENSE_KEYS;
            startRows<kDENSE_KEYS, kDENSE_THREADS>(operands.keys.rows + tile % 2 * kDENSE_KEYS, key, firstKey);
            forOwnPieces(copies,
                [&](int32_t row, int32_t channel)
                {
                    bool const inside = firstKey + row < arguments.positions && channel < 8 * pieces;
                    int64_t const at = inside ? (firstKey + row) * arguments.valuePitch + channel : 0;
                    simt::copyAsync(&operands.values[tile % 2][row][channel], values + at, inside);
                });
        };
        DenseTile<T> tile = {};
        startRows<kDENSE_ROWS, kDENSE_THREADS>(operands.query, query, place.row);
        startTile(0);
        for (int32_t t = 0; t < tiles; ++t)
        {
            simt::waitForCopies();
            if (part != ValuePart::kALL)
            {
                forOwnPieces(copies,
                    [&](int32_t row, int32_t channel)
                    {
                        for (int32_t i = 0; i < kPER_COPY; ++i)
                        {
                            T& value = operands.values[t % 2][row][channel + i];
                            value = partOf(value, part);
                        }
                    });
            }
            simt::syncBlock(); // the tile is complete, and the readers of the other buffers are done
            if (t + 1 < tiles)
            {
                startTile(t + 1);
            }
            float weights[kDENSE_KEYS / 8][4];
            computeScores<kDENSE_KEYS>(weights, ownQuery, operands.keys.rows + t % 2 * kDENSE_KEYS, key,
                static_cast<int64_t>(t) * kDENSE_KEYS);
            HSPAN_UNROLL
            for (int32_t i = 0; i < kDENSE_KEYS / 8; ++i)
            {
                HSPAN_UNROLL
                for (int32_t j = 0; j < 4; ++j)
                {
                    float const weight = weightOf(rows[j / 2], weights[i][j]);
                    weights[i][j] = counts ? (weight > 0.0F ? 1.0F : 0.0F) : weight * scale[j / 2];
                }
            }
            HSPAN_UNROLL
            for (int32_t i = 0; i < kDENSE_KEYS / 8; i += 2)
            {
                addWeighted<T>(tile, weights[i], weights[i + 1], &operands.values[t % 2][8 * i], pieces);
            }
            if ((t + 1) % (kKEYS_PER_TOTAL / kDENSE_KEYS) == 0)
            {
                addToTotals(tile);
            }
        }
        addToTotals(tile);
        simt::syncBlock(); // the operands' last readers are done
        bool isFinite = true;
        HSPAN_UNROLL
        for (int32_t half = 0; half < 2; ++half)
        {
            int32_t const row = warpRow + lane / 4 + 8 * half;
            float const inverse = rows[half].anchor == rows[half].anchor ? 1.0F / scale[half] : NAN;
            HSPAN_UNROLL
            for (int32_t piece = 0; piece < DenseTile<T>::kPIECES; ++piece)
            {
                HSPAN_UNROLL
                for (int32_t j = 0; j < 2; ++j)
                {
                    int32_t const channel = 8 * piece + lane % 4 * 2 + j;
                    float const total = tile.totals[piece][2 * half + j];
                    isFinite = isFinite && (channel >= channels || total - total == 0.0F);
                    stage.outputs.output[row][channel] = counts ? total : total * inverse;
                }
            }
            if (lane % 4 == 0)
            {
                stage.outputs.written[row] = isDense[half] ? 1 : 0;
            }
        }
        bool const failed = simt::anyInBlock(part == ValuePart::kALL && !isFinite);
        writeOutputs<T>(stage.outputs, arguments, place, firstChannel, part);
        again = part == ValuePart::kALL ? failed : part != ValuePart::kNEGATIVE;
        part = static_cast<ValuePart>(static_cast<int32_t>(part) + 1);
        simt::syncBlock(); // the outputs' readers are done
    }
}

} // namespace hspan
