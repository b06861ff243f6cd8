//! \file weighted_values.cuh
//! The weighted sum of the values of a row's support on tensor cores, for FP16 and BF16, by one warp.
//!
//! Sixteen entries at a time are one product: their values, transposed, are fragment A (16 channels by 16 entries), and
//! fragment B has a weight's parts as columns. A weight enters as the sum of kPARTS numbers of the type and so is not
//! rounded to it; the parts cost nothing, as a product has eight columns anyway. FP16: two, scaled by a power of two
//! (weightScale() in dense.cuh), 2^-22 of the weight or 2^-39 of the row's greatest are lost. BF16: three, nothing is.
//!
//! Products are summed in FP32 over kENTRIES_PER_TOTAL entries and then added to a total. Where a sum is not finite,
//! its channel is computed again by multiply-adds: a part of 0 or of another sign times infinity is not what it should
//! be.
#pragma once

#include <cmath>
#include <cstdint>

#include <simt.h>

#include "dense.cuh"
#include "list_threshold.cuh"
#include "score_pass.cuh"
#include "two_float.cuh"

namespace hspan
{

//! Entries of one product, and of one total: 32 steps of eight entries that may lose 2u each.
constexpr int32_t kENTRIES_OF_PRODUCT{16};
constexpr int32_t kENTRIES_PER_TOTAL{256};

//! Entries that wait to be multiplied: what a lane holds of a list, and fewer than a product takes from before.
constexpr int32_t kWAITING_ENTRIES{kHELD_BY_WARP + kENTRIES_OF_PRODUCT};

template <typename T>
constexpr int32_t kPARTS{2};
template <>
constexpr int32_t kPARTS<simt::BFloat16>{3};

//! Value channels of one product.
constexpr int32_t kCHANNELS_OF_PRODUCT{16};

//! A warp's shared memory, for values of kPIECES times 16 channels.
template <typename T, int32_t kPIECES>
struct ValueStage
{
    static constexpr int32_t kPITCH{kPIECES * kCHANNELS_OF_PRODUCT + kPER_COPY}; //!< see kSCORE_PITCH
    static constexpr int32_t kBUFFER_BYTES{kENTRIES_OF_PRODUCT * kPITCH * static_cast<int32_t>(sizeof(T))};

    alignas(16) T values[2 * kENTRIES_OF_PRODUCT][kPITCH]; //!< two buffers
    alignas(8) T parts[kPARTS<T>][kWAITING_ENTRIES];       //!< of weights
    alignas(8) T zeros[kENTRIES_OF_PRODUCT];               //!< of the columns that are no parts
    int32_t keys[kWAITING_ENTRIES];
};

//! The sum of one row, while the warp goes through its list. FP32 has one of its own (weighted_floats.cuh).
template <typename T, int32_t kPIECES>
class WeightedValues
{
public:
    using Stage = ValueStage<T, kPIECES>;

    HSPAN_DEVICE WeightedValues(Stage& stage, T const* value, int64_t pitch, int32_t channels)
        : mStage(stage)
        , mValue(simt::globalAddress(value + simt::laneIndex() % 2 * kPER_COPY))
        , mPitch(pitch * static_cast<int64_t>(sizeof(T)))
        , mLanesBefore(simt::kept(simt::lanesBefore()))
        , mCopies((channels + kPER_COPY - 1) / kPER_COPY)
    {
        if (simt::laneIndex() < kENTRIES_OF_PRODUCT)
        {
            stage.zeros[simt::laneIndex()] = simt::fromFloat<T>(0.0F);
        }
    }

    //! Adds an entry where `stays`, in the order of the lanes. The warp calls it together, after begin().
    HSPAN_DEVICE void push(bool stays, float weight, int32_t key)
    {
        uint32_t const staying = simt::ballot(stays);
        if (stays)
        {
            int32_t const at = mWaiting + simt::bitCount(staying & mLanesBefore);
            mStage.keys[at] = key;
            float rest = weight;
            HSPAN_UNROLL
            for (int32_t part = 0; part < kPARTS<T>; ++part)
            {
                T const rounded = simt::fromFloat<T>(rest);
                mStage.parts[part][at] = rounded;
                rest = simt::subtract(rest, simt::toFloat(rounded));
            }
        }
        mWaiting += simt::bitCount(staying);
    }

    //! Begins a row.
    HSPAN_DEVICE void begin()
    {
        HSPAN_UNROLL
        for (int32_t piece = 0; piece < kPIECES; ++piece)
        {
            HSPAN_UNROLL
            for (int32_t i = 0; i < 4; ++i)
            {
                mSums[piece][i] = 0.0F;
                mTotals[piece][i] = 0.0F;
            }
        }
        mWaiting = 0;
        mProducts = 0;
        simt::syncWarp(); // the readers of the last row's entries are done
    }

    //! Multiplies the waiting entries, the last ones of the row with zeros behind them, of others what fills products.
    HSPAN_DEVICE void multiply(bool isLast)
    {
        int32_t const lane = simt::laneIndex();
        int32_t const products = (mWaiting + (isLast ? kENTRIES_OF_PRODUCT - 1 : 0)) / kENTRIES_OF_PRODUCT;
        if (mWaiting + lane < products * kENTRIES_OF_PRODUCT)
        {
            HSPAN_UNROLL
            for (int32_t part = 0; part < kPARTS<T>; ++part)
            {
                mStage.parts[part][mWaiting + lane] = simt::fromFloat<T>(0.0F);
            }
        }
        simt::syncWarp(); // the entries are complete
        if (products > 0)
        {
            start(0);
        }
        bool const isPart = lane / 4 < kPARTS<T>;
        T const* weights = (isPart ? mStage.parts[lane / 4] : mStage.zeros) + lane % 4 * 2;
        int32_t const step = isPart ? kENTRIES_OF_PRODUCT : 0;
        simt::SharedAddress const matrices = simt::sharedAddress(rightThenDown<T, Stage::kPITCH>(mStage.values, 0));
        for (int32_t product = 0; product < products; ++product)
        {
            simt::waitForCopies();
            simt::syncWarp(); // the values are complete, and the other buffer's readers are done
            if (product + 1 < products)
            {
                start(product + 1);
            }
            uint32_t const low = simt::loadWord(weights);
            uint32_t const high = simt::loadWord(weights + 8);
            weights += step;
            simt::SharedAddress const buffer = matrices + product % 2 * Stage::kBUFFER_BYTES;
            forConstants<kPIECES>(
                [&](auto piece)
                {
                    constexpr int32_t kPIECE{decltype(piece)::kVALUE};
                    constexpr int32_t kOFFSET{kPIECE * kCHANNELS_OF_PRODUCT * static_cast<int32_t>(sizeof(T))};
                    uint32_t a[4];
                    simt::loadMatricesTransposedAt<kOFFSET>(a, buffer);
                    simt::multiplyMatrices<T>(mSums[kPIECE], a, low, high);
                });
            if (++mProducts % (kENTRIES_PER_TOTAL / kENTRIES_OF_PRODUCT) == 0)
            {
                addToTotals();
            }
        }
        if (!isLast)
        {
            keepRest(products * kENTRIES_OF_PRODUCT);
        }
    }

    //! Ends a row: calls visit(channel, sum) for the sums of the lane, two lanes in four having some. All lanes learn
    //! whether one of them is not finite, padding included.
    template <typename Visit>
    HSPAN_DEVICE bool finish(Visit const& visit)
    {
        if (mProducts >= kENTRIES_PER_TOTAL / kENTRIES_OF_PRODUCT)
        {
            addToTotals();
            HSPAN_UNROLL
            for (int32_t piece = 0; piece < kPIECES; ++piece)
            {
                HSPAN_UNROLL
                for (int32_t i = 0; i < 4; ++i)
                {
                    mSums[piece][i] = mTotals[piece][i];
                }
            }
        }
        // Columns 0 and 1 are with lane t = 0, 2 and 3 with t = 1. The one takes channels g, the other g + 8.
        int32_t const lane = simt::laneIndex();
        bool const isFirst = lane % 4 == 0;
        float zero = 0.0F; // or NaN
        HSPAN_UNROLL
        for (int32_t piece = 0; piece < kPIECES; ++piece)
        {
            float const low = simt::add(mSums[piece][0], mSums[piece][1]);
            float const high = simt::add(mSums[piece][2], mSums[piece][3]);
            float const given = simt::shuffleXor(isFirst ? high : low, 1);
            float const sum = simt::add(isFirst ? low : high, given);
            zero = simt::multiplyAdd(sum, 0.0F, zero);
            if (lane % 4 < 2)
            {
                visit(piece * kCHANNELS_OF_PRODUCT + lane / 4 + lane % 4 * 8, sum);
            }
        }
        return simt::ballot(zero != 0.0F) != 0;
    }

private:
    //! Starts copying the values of a product's entries: a lane the half of the 16-byte pieces of one of them.
    HSPAN_DEVICE void start(int32_t product)
    {
        int32_t const lane = simt::laneIndex();
        int32_t const at = product * kENTRIES_OF_PRODUCT + lane / 2;
        bool const exists = at < mWaiting;
        int32_t const bytes = exists ? static_cast<int32_t>(sizeof(T)) * kPER_COPY : 0;
        simt::GlobalAddress const source = mValue + (exists ? mStage.keys[at] * mPitch : int64_t{0});
        simt::SharedAddress const target
            = simt::sharedAddress(&mStage.values[product % 2 * kENTRIES_OF_PRODUCT + lane / 2][lane % 2 * kPER_COPY]);
        int32_t const own = mCopies - lane % 2;
        auto const copy = [&](auto piece, bool isInside)
        {
            constexpr int32_t kOFFSET{decltype(piece)::kVALUE * kCHANNELS_OF_PRODUCT * static_cast<int32_t>(sizeof(T))};
            simt::copyAsyncAt<kOFFSET, kOFFSET>(target, source, isInside ? bytes : 0);
        };
        if (mCopies == 2 * kPIECES)
        {
            forConstants<kPIECES>([&](auto piece) { copy(piece, true); });
        }
        else
        {
            forConstants<kPIECES>([&](auto piece) { copy(piece, 2 * decltype(piece)::kVALUE < own); });
        }
    }

    //! Moves the entries from `first` on to the front.
    HSPAN_DEVICE void keepRest(int32_t first)
    {
        int32_t const lane = simt::laneIndex();
        int32_t const rest = mWaiting - first;
        bool const moves = lane < rest && first > 0;
        int32_t key = 0;
        T parts[kPARTS<T>];
        if (moves)
        {
            key = mStage.keys[first + lane];
            HSPAN_UNROLL
            for (int32_t part = 0; part < kPARTS<T>; ++part)
            {
                parts[part] = mStage.parts[part][first + lane];
            }
        }
        simt::syncWarp(); // all lanes have read, also what their products needed
        if (moves)
        {
            mStage.keys[lane] = key;
            HSPAN_UNROLL
            for (int32_t part = 0; part < kPARTS<T>; ++part)
            {
                mStage.parts[part][lane] = parts[part];
            }
        }
        mWaiting = rest;
        simt::syncWarp(); // the front may be overwritten
    }

    HSPAN_DEVICE void addToTotals()
    {
        HSPAN_UNROLL
        for (int32_t piece = 0; piece < kPIECES; ++piece)
        {
            HSPAN_UNROLL
            for (int32_t i = 0; i < 4; ++i)
            {
                mTotals[piece][i] = simt::add(mTotals[piece][i], mSums[piece][i]);
                mSums[piece][i] = 0.0F;
            }
        }
    }

    Stage& mStage;
    simt::GlobalAddress mValue; //!< of key 0, the lane's first piece
    int64_t mPitch;             //!< bytes from key to key
    uint32_t mLanesBefore;
    int32_t mCopies; //!< pieces of a row that hold channels
    int32_t mWaiting{0};
    int32_t mProducts{0}; //!< of the row
    float mSums[kPIECES][4];
    float mTotals[kPIECES][4];
};

//! One channel of the weighted sum by multiply-adds in the order of keys, in chains that go to a two-float total: for
//! values that are not finite. All lanes compute the same.
template <typename T>
HSPAN_DEVICE float plainSum(RelativeList const& list, RowResult const& row, T const* channel, int64_t pitch)
{
    TwoFloat total{0.0F, 0.0F};
    list.forEntries(
        [&](float relative, int32_t key)
        {
            uint32_t left = simt::ballot(relative > row.limit);
            float const ownWeight = relativeWeight(row, relative);
            float chain = 0.0F;
            for (; left != 0; left &= left - 1)
            {
                int32_t const entry = simt::lowestBit(left);
                T const value = channel[simt::shuffle(key, entry) * pitch];
                chain = simt::multiplyAdd(simt::shuffle(ownWeight, entry), simt::toFloat(value), chain);
            }
            addChain(total, chain);
        });
    return valueOf(total);
}

} // namespace hspan
