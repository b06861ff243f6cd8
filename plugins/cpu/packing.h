//! \file packing.h
//! Tensors of any strides and element type, copied into the float panels that the register tiles read.
#pragma once

#include "elements.h"
#include "problem.h"

#include <type_traits>

namespace hspan::cpu
{
namespace
{

template <typename T>
struct Tensor
{
    T const* data;
    int64_t channelStride;
    int64_t positionStride;

    explicit Tensor(HspanCpuTensor const& tensor)
        : data(static_cast<T const*>(tensor.data))
        , channelStride(tensor.channelStride)
        , positionStride(tensor.positionStride)
    {
    }

    T const* at(int64_t channel, int64_t position) const
    {
        return data + channel * channelStride + position * positionStride;
    }
};

HSPAN_INLINE int64_t lesser(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

HSPAN_INLINE int64_t greater(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

HSPAN_INLINE int64_t roundedUp(int64_t x, int64_t step)
{
    return (x + step - 1) / step * step;
}

//! The greatest magnitude in the tensor; infinite when it contains an infinity or a NaN.
template <typename T>
float largestMagnitude(Tensor<T> tensor, int64_t channels, int64_t positions)
{
    // The dimension that is contiguous, if any, goes innermost.
    bool const swap = tensor.channelStride == 1;
    int64_t const outer = swap ? positions : channels;
    int64_t const inner = swap ? channels : positions;
    int64_t const outerStride = swap ? tensor.positionStride : tensor.channelStride;
    int64_t const innerStride = swap ? tensor.channelStride : tensor.positionStride;
    uint32_t result = 0;
    for (int64_t i = 0; i < outer; ++i)
    {
        T const* row = tensor.data + i * outerStride;
        if (innerStride == 1)
        {
            for (int64_t j = 0; j < inner; ++j)
            {
                uint32_t const bits = magnitudeBits(row[j]);
                result = bits > result ? bits : result;
            }
        }
        else
        {
            for (int64_t j = 0; j < inner; ++j)
            {
                uint32_t const bits = magnitudeBits(row[j * innerStride]);
                result = bits > result ? bits : result;
            }
        }
    }
    return magnitudeFromBits(result, T{});
}

//! panel[channel][i] = tensor[channel][first + i] for i < kWIDTH, zero from `positions` on.
template <int64_t kWIDTH, typename T>
HSPAN_INLINE void packPositions(Tensor<T> tensor, int64_t channels, int64_t first, int64_t positions, float* panel)
{
    int64_t const count = lesser(kWIDTH, positions - first);
    if (count == kWIDTH && tensor.positionStride == 1)
    {
        for (int64_t c = 0; c < channels; ++c)
        {
            T const* source = tensor.at(c, first);
            for (int64_t i = 0; i < kWIDTH; ++i)
            {
                panel[c * kWIDTH + i] = widened(source[i]);
            }
        }
        return;
    }
    for (int64_t i = 0; i < kWIDTH; ++i)
    {
        for (int64_t c = 0; c < channels; ++c)
        {
            panel[c * kWIDTH + i] = i < count ? widened(*tensor.at(c, first + i)) : 0.0F;
        }
    }
}

//! The kPANELS panels of `packPositions` from `first` on: channels are far apart, and little of each at a time is slow.
template <int64_t kWIDTH, int64_t kPANELS, typename T>
HSPAN_INLINE void packPanels(Tensor<T> tensor, int64_t channels, int64_t first, int64_t positions, float* panels)
{
    int64_t const size = channels * kWIDTH;
    if (first + kPANELS * kWIDTH > positions || tensor.positionStride != 1)
    {
        for (int64_t p = 0; p < kPANELS && first + p * kWIDTH < positions; ++p)
        {
            packPositions<kWIDTH>(tensor, channels, first + p * kWIDTH, positions, panels + p * size);
        }
        return;
    }
    for (int64_t c = 0; c < channels; ++c)
    {
        T const* source = tensor.at(c, first);
        for (int64_t p = 0; p < kPANELS; ++p)
        {
            for (int64_t i = 0; i < kWIDTH; ++i)
            {
                panels[p * size + c * kWIDTH + i] = widened(source[p * kWIDTH + i]);
            }
        }
    }
}

//! `count` positions of a channel as contiguous floats: in place where they are that already, else in `buffer`.
template <typename T>
HSPAN_INLINE float const* floatRow(
    Tensor<T> const& tensor, int64_t channel, int64_t first, int64_t count, float* buffer)
{
    T const* source = tensor.at(channel, first);
    if (tensor.positionStride == 1)
    {
        if constexpr (std::is_same_v<T, float>)
        {
            return source;
        }
        for (int64_t i = 0; i < count; ++i)
        {
            buffer[i] = widened(source[i]);
        }
        return buffer;
    }
    for (int64_t i = 0; i < count; ++i)
    {
        buffer[i] = widened(source[i * tensor.positionStride]);
    }
    return buffer;
}

//! target[i * stride + r] = rows[r][i] for r < 4, i < count.
HSPAN_INLINE void interleave4(float const* const (&rows)[4], int64_t count, float* target, int64_t stride)
{
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
    {
        Quad const a = loadQuad(rows[0] + i);
        Quad const b = loadQuad(rows[1] + i);
        Quad const c = loadQuad(rows[2] + i);
        Quad const d = loadQuad(rows[3] + i);
        Quad const abLow = HSPAN_SHUFFLE(a, b, 0, 4, 1, 5);
        Quad const abHigh = HSPAN_SHUFFLE(a, b, 2, 6, 3, 7);
        Quad const cdLow = HSPAN_SHUFFLE(c, d, 0, 4, 1, 5);
        Quad const cdHigh = HSPAN_SHUFFLE(c, d, 2, 6, 3, 7);
        storeQuad(target + i * stride, HSPAN_SHUFFLE(abLow, cdLow, 0, 1, 4, 5));
        storeQuad(target + (i + 1) * stride, HSPAN_SHUFFLE(abLow, cdLow, 2, 3, 6, 7));
        storeQuad(target + (i + 2) * stride, HSPAN_SHUFFLE(abHigh, cdHigh, 0, 1, 4, 5));
        storeQuad(target + (i + 3) * stride, HSPAN_SHUFFLE(abHigh, cdHigh, 2, 3, 6, 7));
    }
    for (; i < count; ++i)
    {
        for (int64_t r = 0; r < 4; ++r)
        {
            target[i * stride + r] = rows[r][i];
        }
    }
}

//! block[i][k] = tensor[firstChannel + k][first + i] for k < kWIDTH, zero from `channels` on; i < count.
template <int64_t kWIDTH, typename T>
void packChannels(Tensor<T> tensor, int64_t firstChannel, int64_t channels, int64_t first, int64_t count, float* block)
{
    int64_t const width = lesser(kWIDTH, channels - firstChannel);
    if (width == kWIDTH && tensor.channelStride == 1)
    {
        for (int64_t i = 0; i < count; ++i)
        {
            T const* source = tensor.at(firstChannel, first + i);
            for (int64_t k = 0; k < kWIDTH; ++k)
            {
                block[i * kWIDTH + k] = widened(source[k]);
            }
        }
        return;
    }
    // In strips that stay in the first-level cache while its lines are completed four channels at a time.
    constexpr int64_t kSTRIP = 64;
    for (int64_t start = 0; start < count; start += kSTRIP)
    {
        int64_t const length = lesser(kSTRIP, count - start);
        for (int64_t k = 0; k < kWIDTH; k += 4)
        {
            float strip[4][kSTRIP];
            float const* rows[4];
            for (int64_t r = 0; r < 4; ++r)
            {
                rows[r] = strip[r];
                if (k + r < width)
                {
                    rows[r] = floatRow(tensor, firstChannel + k + r, first + start, length, strip[r]);
                }
                else
                {
                    std::memset(strip[r], 0, sizeof strip[r]);
                }
            }
            interleave4(rows, length, block + start * kWIDTH + k, kWIDTH);
        }
    }
}

} // namespace
} // namespace hspan::cpu
