//! \file coarse_copies.cuh
//! FP16 copies of FP32 queries and keys, whose scores on tensor cores lead both looks to the keys that matter, and how
//! far these coarse scores may be from the FP32 and refined ones that count.
//!
//! Keys are copied less a vector near their mean, the center: that moves all scores of a row alike and makes keys short
//! where a picture is flat, and with them the error. A query is scaled by a power of two of its own, an image's keys by
//! a common one, so that lengths come to 2^13 to 2^15: nothing overflows, and what an element loses, at most 2^-11 of
//! itself or 2^-25, is known exactly when it is rounded. With the lengths |q|, |k'| of centered keys, |k| of others,
//! and those of the losses |dq|, |dk|, the greatest of the image for keys, a coarse score is off by at most
//!
//!     |dq| |k'| + (|q| + |dq|) |dk| + (C + 8) 2^-22 (|q| + |dq|) (|k'| + |dk|) + (2 C + 8) u |q| |k|
//!
//! (Cauchy and Schwarz; u = 2^-24). The third term covers the sum of the products of which each addition on tensor
//! cores loses at most 2^-23 of it, and subtracting the center. The last one covers C u each of FP32's own chain and of
//! the product with the center, and a refined score's rounding, up to 2 |q| |k| below the greatest.
//!
//! Nothing is known (the error is infinite) of queries that are not finite, of images with such a key, and where |q|
//! |k| may reach 2^98: there all keys are candidates.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "launchers.h"
#include "look_arguments.cuh"
#include "refined_score.cuh"

namespace hspan
{

constexpr int32_t kCOARSE_THREADS{128}; //!< as many as score channels at most

//! Scaled lengths are below two to the power of this.
constexpr int32_t kCOARSE_EXPONENT{15};

//! Shorter vectors are scaled like those of this length, so that all factors are normal numbers.
constexpr int32_t kLEAST_LENGTH_EXPONENT{-40};

//! Where the exponents of the two lengths come to more, nothing is known.
constexpr int32_t kMOST_LENGTH_EXPONENTS{98};

//! Keys whose mean is the center.
constexpr int32_t kCENTER_KEYS{64};

//! Elements of one 16-byte piece of a copy.
constexpr int32_t kCOARSE_PIECE{8};

struct CoarseArguments
{
    float const* source;     //!< (N, L, pitch), rows aligned to 16 bytes
    simt::Half* target;      //!< (N, L, targetPitch)
    float const* keySquares; //!< as keyBoundKernel leaves them
    float* centers;          //!< (N, targetPitch)
    float* centeredSquares;  //!< like keySquares, of |k'|^2
    float* keyLosses;        //!< the same, of |dk|^2: written with the keys, read with the queries
    CoarseRow* rows;         //!< (N, L), written with the queries
    int64_t pitch;
    int64_t targetPitch; //!< a multiple of kCOARSE_PIECE
    int64_t batch;
    int32_t channels;
    int32_t positions;
};

//! 2^exponent, for a normal number.
HSPAN_DEVICE float powerOfTwo(int32_t exponent)
{
    return simt::floatFromBits((exponent + 127) << 23);
}

//! The exponent of the length whose square, a sum that has been rounded, is `squares`.
HSPAN_DEVICE int32_t coarseExponent(float squares)
{
    int32_t const exponent = lengthExponent(squares);
    return exponent < kLEAST_LENGTH_EXPONENT ? kLEAST_LENGTH_EXPONENT : exponent;
}

//! An upper bound of the length, with something for squares that have underflown.
HSPAN_DEVICE float lengthOf(float squares, float scale)
{
    constexpr float kUNDERFLOWN{0x1p-16F};
    return simt::squareRoot(squares * kSQUARES_MARGIN) * scale + kUNDERFLOWN;
}

//! Four channels of a row, zeros past the last one.
HSPAN_DEVICE simt::Float4 channelsAt(float const* row, int32_t channel, int32_t channels)
{
    return channel < channels ? *reinterpret_cast<simt::Float4 const*>(row + channel)
                              : simt::Float4{0.0F, 0.0F, 0.0F, 0.0F};
}

//! The same less the center, for keys.
template <bool kARE_KEYS>
HSPAN_DEVICE simt::Float4 centeredAt(float const* row, float const* center, int32_t channel, int32_t channels)
{
    simt::Float4 four = channelsAt(row, channel, channels);
    if constexpr (kARE_KEYS)
    {
        auto const middle = *reinterpret_cast<simt::Float4 const*>(center + channel); // zeros past the last channel
        four.x = simt::subtract(four.x, middle.x);
        four.y = simt::subtract(four.y, middle.y);
        four.z = simt::subtract(four.z, middle.z);
        four.w = simt::subtract(four.w, middle.w);
    }
    return four;
}

//! Copies a row; zeros where `isUsable` is false. Returns the square of its losses.
template <bool kARE_KEYS>
HSPAN_DEVICE float copyRow(simt::Half* target, float const* row, float const* center, CoarseArguments const& arguments,
    float scale, bool isUsable)
{
    float losses = 0.0F;
    for (int32_t channel = 0; channel < arguments.targetPitch; channel += kCOARSE_PIECE)
    {
        simt::Float4 const low = centeredAt<kARE_KEYS>(row, center, channel, arguments.channels);
        simt::Float4 const high = centeredAt<kARE_KEYS>(row, center, channel + 4, arguments.channels);
        float scaled[kCOARSE_PIECE] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        uint32_t words[kCOARSE_PIECE / 2];
        HSPAN_UNROLL
        for (int32_t i = 0; i < kCOARSE_PIECE; ++i)
        {
            scaled[i] = isUsable ? scaled[i] * scale : 0.0F;
            float const loss = simt::subtract(scaled[i], simt::toFloat(simt::fromFloat<simt::Half>(scaled[i])));
            losses = simt::multiplyAdd(loss, loss, losses);
        }
        HSPAN_UNROLL
        for (int32_t i = 0; i < kCOARSE_PIECE / 2; ++i)
        {
            words[i] = simt::pairOf<simt::Half>(scaled[2 * i], scaled[2 * i + 1]);
        }
        simt::copyPiece(target + channel, words);
    }
    return losses;
}

//! The greatest squares of an image's keys.
struct KeySquares
{
    float lengths;
    float centered;
    float losses;
};

//! What is known of a query's coarse scores, from the squares of its length and losses, and its product with the
//! center.
HSPAN_DEVICE CoarseRow coarseRowOf(float squares, float losses, float shift, KeySquares const& keys, int32_t channels)
{
    int32_t const exponent = coarseExponent(squares);
    int32_t const keyExponent = coarseExponent(keys.centered);
    float const keyScale = powerOfTwo(kCOARSE_EXPONENT - keyExponent);
    float const query = lengthOf(squares, powerOfTwo(kCOARSE_EXPONENT - exponent));
    float const key = lengthOf(keys.centered, keyScale);
    float const queryLoss = lengthOf(losses, 1.0F);
    float const keyLoss = lengthOf(keys.losses, 1.0F);
    float const sums = static_cast<float>(channels + 8) * 0x1p-22F;
    float const chains = static_cast<float>(2 * channels + 8) * 0x1p-24F;
    float const error = queryLoss * key + (query + queryLoss) * (keyLoss + sums * (key + keyLoss))
        + chains * query * lengthOf(keys.lengths, keyScale);
    constexpr float kROUNDING{1.001F}; // of these operations
    bool const isUsable = squares < INFINITY && keys.lengths < INFINITY
        && exponent + coarseExponent(keys.lengths) <= kMOST_LENGTH_EXPONENTS && error < INFINITY;
    int32_t const unit = isUsable ? exponent + keyExponent - 2 * kCOARSE_EXPONENT : 0;
    return {powerOfTwo(unit), isUsable ? error * kROUNDING : INFINITY, shift, gridOf(squares * keys.lengths)};
}

//! Writes the center of every image, a thread a channel. Grid: y images (strided).
template <typename Arguments>
HSPAN_KERNEL(kCOARSE_THREADS)
centerKernel(Arguments arguments)
{
    int32_t const channel = simt::threadIndex();
    int32_t const keys = arguments.positions < kCENTER_KEYS ? arguments.positions : kCENTER_KEYS;
    int64_t const step = arguments.positions / keys * arguments.pitch;
    for (int64_t image = simt::blockY(); image < arguments.batch; image += simt::gridY())
    {
        float sum = 0.0F;
        float const* const first = arguments.source + image * arguments.positions * arguments.pitch + channel;
        for (int32_t i = 0; channel < arguments.channels && i < keys; ++i)
        {
            sum = simt::add(sum, first[i * step]);
        }
        if (channel < arguments.targetPitch)
        {
            arguments.centers[image * arguments.targetPitch + channel] = simt::divide(sum, static_cast<float>(keys));
        }
    }
}

//! What coarseKernel does, one after the other.
enum class CoarseStep : int32_t
{
    kLENGTHS, //!< of centered keys
    kKEYS,    //!< their copies
    kQUERIES, //!< and those of queries, whose errors depend on the keys'
};

//! A thread a row. Grid: x positions, y images (strided).
template <CoarseStep kWHICH>
HSPAN_KERNEL(kCOARSE_THREADS)
coarseKernel(CoarseArguments arguments)
{
    constexpr bool kARE_KEYS{kWHICH != CoarseStep::kQUERIES};
    int64_t const position = simt::blockX() * kCOARSE_THREADS + simt::threadIndex();
    bool const exists = position < arguments.positions;
    int32_t const bounds = boundsPerImage(arguments.positions);
    for (int64_t image = simt::blockY(); image < arguments.batch; image += simt::gridY())
    {
        auto const greatest
            = [&](float const* squares) { return greatestSquares(squares + image * bounds, arguments.positions); };
        int64_t const at = image * arguments.positions + position;
        float const* const row = arguments.source + at * arguments.pitch;
        float const* const center = arguments.centers + image * arguments.targetPitch;
        float squares = 0.0F;
        float shift = 0.0F;
        for (int32_t channel = 0; exists && channel < arguments.channels; channel += 4)
        {
            simt::Float4 const four = centeredAt<kARE_KEYS>(row, center, channel, arguments.channels);
            float const own[4] = {four.x, four.y, four.z, four.w};
            HSPAN_UNROLL
            for (int32_t i = 0; i < 4; ++i)
            {
                squares = simt::multiplyAdd(own[i], own[i], squares);
                if constexpr (!kARE_KEYS)
                {
                    shift = simt::multiplyAdd(own[i], center[channel + i], shift);
                }
            }
        }
        float result = squares < INFINITY ? squares : 0.0F;
        if constexpr (kWHICH != CoarseStep::kLENGTHS)
        {
            float const centered = greatest(arguments.centeredSquares);
            bool const isUsable = squares < INFINITY;
            float const scale = powerOfTwo(kCOARSE_EXPONENT
                - coarseExponent(kARE_KEYS ? centered
                        : isUsable         ? squares
                                           : 1.0F));
            if (exists)
            {
                float const losses = copyRow<kARE_KEYS>(
                    arguments.target + at * arguments.targetPitch, row, center, arguments, scale, isUsable);
                result = isUsable ? losses : INFINITY;
            }
            if constexpr (!kARE_KEYS)
            {
                KeySquares const keys{greatest(arguments.keySquares), centered, greatest(arguments.keyLosses)};
                if (exists)
                {
                    arguments.rows[at] = coarseRowOf(squares, result, shift, keys, arguments.channels);
                }
            }
        }
        if constexpr (kARE_KEYS)
        {
            result = greatestOfWarp(result);
            if (simt::laneIndex() == 0 && exists)
            {
                float* const results = kWHICH == CoarseStep::kLENGTHS ? arguments.centeredSquares : arguments.keyLosses;
                results[image * bounds + position / kKEYS_PER_BOUND] = result;
            }
        }
    }
}

//! Launches the kernels that make the copies, for tensors that are prepared.
inline cudaError_t makeCoarseCopies(LookCall const& call, TiledArguments<float> const& tensors)
{
    int64_t const batch = call.problem.shape.batch;
    int64_t const copyPitch = preparedPitch(tensors.scoreChannels);
    auto* const memory = static_cast<unsigned char*>(call.pointers.workspace);
    auto* const keySquares = reinterpret_cast<float*>(memory + call.workspace.keyBounds);
    auto const floats = [memory](int64_t place) { return reinterpret_cast<float*>(memory + place); };
    TiledWorkspace const& workspace = call.workspace;
    CoarseArguments const keys{tensors.key, reinterpret_cast<simt::Half*>(memory + workspace.coarseKey), keySquares,
        floats(workspace.centers), floats(workspace.centeredSquares), floats(workspace.keyLosses),
        reinterpret_cast<CoarseRow*>(memory + workspace.coarseRows), tensors.scorePitch, copyPitch, batch,
        tensors.scoreChannels, tensors.positions};
    CoarseArguments queries = keys;
    queries.source = tensors.query;
    queries.target = reinterpret_cast<simt::Half*>(memory + call.workspace.coarseQuery);
    simt::Grid const grid{(int64_t{tensors.positions} + kCOARSE_THREADS - 1) / kCOARSE_THREADS,
        batch < simt::kMAX_GRID_Y ? batch : simt::kMAX_GRID_Y, 1};
    cudaError_t status
        = launchKeyBounds<float>({tensors.key, keySquares, tensors.positions * tensors.scorePitch, 1,
                                     tensors.scorePitch, batch, tensors.scoreChannels, tensors.positions},
            call.stream);
    auto const then = [&status](auto const& step) { status = status == cudaSuccess ? step() : status; };
    auto const launch = [&](auto* kernel, simt::Grid const& blocks, CoarseArguments const& arguments)
    { then([&] { return simt::launch(kernel, blocks, kCOARSE_THREADS, call.stream, arguments); }); };
    launch(&centerKernel<CoarseArguments>, {1, grid.y, 1}, keys);
    launch(&coarseKernel<CoarseStep::kLENGTHS>, grid, keys);
    launch(&coarseKernel<CoarseStep::kKEYS>, grid, keys);
    launch(&coarseKernel<CoarseStep::kQUERIES>, grid, queries);
    return status;
}

} // namespace hspan
