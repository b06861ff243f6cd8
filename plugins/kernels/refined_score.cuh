//! \file refined_score.cuh
//! Scores of FP32 operands in about twice FP32's precision, for rows in which FP32's rounding would show.
//!
//! A chain of C multiply-adds is off by up to C u |q| |k| (u = 2^-24): of scores of 1e4 nothing is left below 1e-3, and
//! a weight is a difference of scores. But sparsemax does not change when one number is subtracted from a whole row. So
//! a refined score is its distance from the row's greatest FP32 score, computed in two parts and rounded once: within 1
//! of the greatest, where the weights are, it is off by u and what the lesser part has lost, C^2 2^-46 |q| |k| at
//! worst.
//!
//! Sums of products are kept in two parts. The greater one starts at 1.5 2^e, far above every sum of this row, so that
//! it moves on a grid of 2^(e-23), and how far a product moves it is known without error. What the grid cuts off of a
//! product goes to the lesser part (Rump, Ogita, Oishi 2008, section 3: extraction). Four operations a product.
//!
//! Whether a row is refined, its grid and its greatest FP32 score are functions of the row's scores and operands alone.
//! So are refined scores, bit by bit: lists, streams and tiles cannot show in them.
#pragma once

#include <cstdint>

#include <simt.h>

#include "two_float.cuh"

namespace hspan
{

//! Whether operands of T have rows that are refined. Errors of FP16 and BF16 are those of their own rounding.
template <typename T>
constexpr bool kIS_REFINED_TYPE{sizeof(T) == sizeof(float)};

//! Keys that share a bound of their squares.
constexpr int32_t kKEYS_PER_BOUND{simt::kWARP_SIZE};

//! How one row's scores are computed.
struct Refinement
{
    float grid;  //!< 1.5 2^e, where 2^e is 4 to 8 times |q| max |k|; 0 for a row that is not refined
    float shift; //!< the row's greatest FP32 score; 0 for a row that is not refined
};

//! Rows whose |q| max |k| may reach 1 are refined: the error of others is near that of rounding a score below 1.
constexpr float kLEAST_REFINED_SQUARES{1.0F};

//! |q| max |k| of 2^60 and more is not refined.
constexpr float kMOST_REFINED_SQUARES{0x1p120F};

//! What rounding may have taken from a sum of C squares, as a factor.
constexpr float kSQUARES_MARGIN{1.0078125F};

//! An exponent e such that the length whose square is `squares`, itself off by rounding, is below 2^e; the least or the
//! next one.
HSPAN_DEVICE int32_t lengthExponent(float squares)
{
    int32_t const exponent
        = (simt::bitsFromFloat(squares * kSQUARES_MARGIN) >> 23) - 127; // the square is below 2^(exponent + 1)
    return (exponent + 2) / 2;
}

//! The grid of a row whose |q|^2 max |k|^2 is `squares`, itself off by rounding. 0 for NaN.
HSPAN_DEVICE float gridOf(float squares)
{
    float const most = squares * kSQUARES_MARGIN;
    bool const isRefined = most >= kLEAST_REFINED_SQUARES && most < kMOST_REFINED_SQUARES;
    return isRefined ? 1.5F * simt::floatFromBits((lengthExponent(squares) + 2 + 127) << 23) : 0.0F;
}

//! What a row's FP32 scores are to be apart for their order to be sure: twice their error, C u 2^bound, and a margin
//! for the arithmetic with it. 0 for a row that is not refined.
HSPAN_DEVICE float slackOf(float grid, int32_t channels)
{
    constexpr float kUNIT_OF_GRID{1.0F / (6 * (int32_t{1} << 24))}; // u 2^bound / grid
    return grid * (static_cast<float>(2 * channels + 4) * kUNIT_OF_GRID);
}

//! Adds a * b to a sum in two parts. Of a row that is not refined, `sum` is the FP32 chain and `rest` means nothing.
HSPAN_DEVICE void addProduct(float& sum, float& rest, float a, float b)
{
    float const next = simt::multiplyAdd(a, b, sum);
    rest = simt::add(rest, simt::multiplyAdd(a, b, simt::subtract(sum, next)));
    sum = next;
}

HSPAN_DEVICE void addProducts(float& sum, float& rest, simt::Float4 const& a, simt::Float4 const& b)
{
    addProduct(sum, rest, a.x, b.x);
    addProduct(sum, rest, a.y, b.y);
    addProduct(sum, rest, a.z, b.z);
    addProduct(sum, rest, a.w, b.w);
}

//! The score at the end of a sum that started at the row's grid and 0.
HSPAN_DEVICE float scoreOf(float sum, float rest, Refinement const& row)
{
    TwoFloat const distance = exactSum(simt::subtract(sum, row.grid), -row.shift);
    float const refined = simt::add(distance.high, simt::add(distance.low, rest));
    bool const isFinite = refined - refined == 0.0F;
    return row.grid > 0.0F ? (isFinite ? refined : simt::subtract(sum, row.shift)) : sum;
}

//! What keyBoundKernel reads: elements (image, channel, position).
template <typename T>
struct KeyBoundArguments
{
    T const* key;
    float* bounds; //!< (N, ceil(L / kKEYS_PER_BOUND))
    int64_t batchStride;
    int64_t channelStride;
    int64_t positionStride;
    int64_t batch;
    int32_t channels;
    int32_t positions;
};

constexpr int32_t kBOUND_THREADS{128};

//! The greatest of the lanes' numbers, or NaN.
HSPAN_DEVICE float greatestOfWarp(float value)
{
    HSPAN_UNROLL
    for (int32_t mask = simt::kWARP_SIZE / 2; mask > 0; mask /= 2)
    {
        value = simt::maximumOrNan(value, simt::shuffleXor(value, mask));
    }
    return value;
}

HSPAN_DEVICE int32_t boundsPerImage(int32_t positions)
{
    return positions / kKEYS_PER_BOUND + (positions % kKEYS_PER_BOUND != 0 ? 1 : 0);
}

//! Writes the greatest |k|^2 of every kKEYS_PER_BOUND keys. A key with an element that is infinite or NaN does not
//! count: its scores have no error. Grid: x positions, y images (strided).
template <typename T>
HSPAN_KERNEL(kBOUND_THREADS)
keyBoundKernel(KeyBoundArguments<T> arguments)
{
    int64_t const position = simt::blockX() * kBOUND_THREADS + simt::threadIndex();
    for (int64_t image = simt::blockY(); image < arguments.batch; image += simt::gridY())
    {
        float squares = 0.0F;
        bool isFinite = true;
        for (int32_t channel = 0; position < arguments.positions && channel < arguments.channels; ++channel)
        {
            float const k = simt::toFloat(arguments.key[image * arguments.batchStride
                + channel * arguments.channelStride + position * arguments.positionStride]);
            isFinite = isFinite && k - k == 0.0F;
            squares = simt::multiplyAdd(k, k, squares);
        }
        squares = greatestOfWarp(isFinite ? squares : 0.0F);
        if (simt::laneIndex() == 0 && position < arguments.positions)
        {
            arguments.bounds[image * boundsPerImage(arguments.positions) + position / kKEYS_PER_BOUND] = squares;
        }
    }
}

//! The greatest |k|^2 of an image. The warp calls it together.
HSPAN_DEVICE float greatestSquares(float const* bounds, int32_t positions)
{
    float greatest = 0.0F;
    for (int32_t i = simt::laneIndex(); i < boundsPerImage(positions); i += simt::kWARP_SIZE)
    {
        greatest = simt::maximumOrNan(greatest, bounds[i]);
    }
    return greatestOfWarp(greatest);
}

//! Launches keyBoundKernel.
template <typename T>
cudaError_t launchKeyBounds(KeyBoundArguments<T> const& arguments, cudaStream_t stream)
{
    simt::Grid const grid{(int64_t{arguments.positions} + kBOUND_THREADS - 1) / kBOUND_THREADS,
        arguments.batch < simt::kMAX_GRID_Y ? arguments.batch : simt::kMAX_GRID_Y, 1};
    return simt::launch(&keyBoundKernel<T>, grid, kBOUND_THREADS, stream, arguments);
}

} // namespace hspan
