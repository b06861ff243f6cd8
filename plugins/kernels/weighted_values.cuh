//! \file weighted_values.cuh
//! The weighted sum of the values of a row's support on tensor cores, for FP16 and BF16, by one warp.
//!
//! Sixteen entries at a time are one product: their values, transposed, are fragment A (16 channels by 16 entries), and
//! fragment B has a weight's parts as columns. A weight enters as the sum of kPARTS numbers of the type and so is not
//! rounded to it; the parts cost nothing, as a product has eight columns anyway. FP16: two, scaled by a power of two
//! (weightScale() in dense.cuh), 2^-22 of the weight or 2^-39 of the row's greatest are lost. BF16: three, nothing is.
//!
//! Products are summed in FP32 over kENTRIES_OF_TOTAL entries, the columns added up, and that added to a total. The
//! last product of a row repeats its last entry with a weight of 0. Where a sum is not finite, its channel is computed
//! again by multiply-adds: a part of 0 or of another sign times infinity is not what it should be.
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

//! Entries of one product, and of one total: 16 steps of eight entries that may lose 2u each.
constexpr int32_t kENTRIES_OF_PRODUCT{16};
constexpr int32_t kENTRIES_OF_TOTAL{kHELD_BY_WARP};

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
    static constexpr int32_t kCOLUMNS{(kPARTS<T> + 1) / 2 * 2}; //!< the last of three parts has one of zeros beside it
    static constexpr uint32_t kPLACES{kENTRIES_OF_TOTAL + kHELD_BY_WARP};

    alignas(16) T values[2 * kENTRIES_OF_PRODUCT][kPITCH]; //!< two buffers
    alignas(8) T parts[kCOLUMNS][kPLACES];                 //!< of the weights of entries that wait, in a ring
    uint32_t offsets[kPLACES];                             //!< of their values, in bytes from those of key 0
};

static_assert(kMAX_EXACT_POSITIONS * kMAX_VALUE_CHANNELS * 2 <= UINT32_MAX, "an offset has 32 bits");

//! The sum of one row, while the warp goes through its list. FP32 has one of its own (weighted_floats.cuh).
template <typename T, int32_t kPIECES>
class WeightedValues
{
public:
    using Stage = ValueStage<T, kPIECES>;

    HSPAN_DEVICE WeightedValues(Stage& stage, T const* value, int64_t pitch, int32_t channels)
        : mStage(stage)
        , mValue(simt::globalAddress(value + simt::laneIndex() % 2 * kPER_COPY))
        , mPitch(simt::kept(static_cast<uint32_t>(pitch * sizeof(T))))
        , mLanesBefore(simt::kept(simt::lanesBefore()))
        , mCopies((channels + kPER_COPY - 1) / kPER_COPY)
    {
        int32_t const lane = simt::laneIndex();
        int32_t const row = lane / 2;                                                   // of B
        int32_t const part = lane / 4 % 2 + (Stage::kCOLUMNS == 2 ? 0 : lane / 16 * 2); // column lane / 4
        mTarget = simt::kept(simt::sharedAddress(&stage.values[row][lane % 2 * kPER_COPY]));
        mMatrices = simt::kept(simt::sharedAddress(rightThenDown<T, Stage::kPITCH>(stage.values, 0)));
        // Lane t of a column has its weights 4 t ... 4 t + 3, which are rows 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of B.
        mOffsets = simt::kept(simt::sharedAddress(&stage.offsets[row % 8 / 2 * 4 + row / 8 * 2 + row % 2]));
        mWeights = simt::kept(simt::sharedAddress(&stage.parts[part][lane % 4 * 4]));
        for (uint32_t i = lane; kPARTS<T> < Stage::kCOLUMNS && i < Stage::kPLACES; i += simt::kWARP_SIZE)
        {
            stage.parts[Stage::kCOLUMNS - 1][i] = simt::fromFloat<T>(0.0F);
        }
    }

    //! Begins a row.
    HSPAN_DEVICE void begin()
    {
        HSPAN_UNROLL
        for (float& total : mTotals)
        {
            total = 0.0F;
        }
        mFirst = 0;
        mEnd = 0;
    }

    //! Adds an entry where `stays`, in the order of the lanes. The warp calls it together, after begin().
    HSPAN_DEVICE void push(bool stays, float weight, int32_t key)
    {
        uint32_t const staying = simt::ballot(stays);
        if (stays)
        {
            uint32_t const at = (mEnd + simt::bitCount(staying & mLanesBefore)) % Stage::kPLACES;
            mStage.offsets[at] = static_cast<uint32_t>(key) * mPitch;
            float rest = weight;
            HSPAN_UNROLL
            for (int32_t part = 0; part < kPARTS<T>; ++part)
            {
                T const rounded = simt::fromFloat<T>(rest);
                mStage.parts[part][at] = rounded;
                rest = simt::subtract(rest, simt::toFloat(rounded));
            }
        }
        mEnd += simt::bitCount(staying);
    }

    //! Adds up the totals that are complete, and where `isLast` what is left.
    HSPAN_DEVICE void multiply(bool isLast)
    {
        uint32_t const lane = simt::laneIndex();
        if (isLast && lane < -mEnd % kENTRIES_OF_PRODUCT)
        {
            HSPAN_UNROLL
            for (int32_t part = 0; part < kPARTS<T>; ++part)
            {
                mStage.parts[part][(mEnd + lane) % Stage::kPLACES] = simt::fromFloat<T>(0.0F);
            }
        }
        simt::syncWarp(); // the entries are complete
        while (isLast ? mFirst < mEnd : mEnd - mFirst >= kENTRIES_OF_TOTAL)
        {
            uint32_t const left = mEnd - mFirst;
            multiplyEntries(mFirst % Stage::kPLACES, left < kENTRIES_OF_TOTAL ? left : kENTRIES_OF_TOTAL);
            addToTotals();
            mFirst += kENTRIES_OF_TOTAL;
        }
        simt::syncWarp(); // the entries' readers are done
    }

    //! Ends a row: calls visit(channel, sum) for the sums of the lane. All lanes learn whether one of them is not
    //! finite, padding included.
    template <typename Visit>
    HSPAN_DEVICE bool finish(Visit const& visit)
    {
        float zero = 0.0F; // or NaN
        HSPAN_UNROLL
        for (int32_t pair = 0; pair < kPIECES / 2; ++pair)
        {
            zero = simt::multiplyAdd(mTotals[pair], 0.0F, zero);
            visit(pair * 2 * kCHANNELS_OF_PRODUCT + simt::laneIndex() % 4 * 8 + simt::laneIndex() / 4, mTotals[pair]);
        }
        return simt::ballot(zero != 0.0F) != 0;
    }

private:
    static_assert(kPIECES % 2 == 0, "a lane has a channel of every two pieces");

    //! Multiplies `count` entries from one place of the ring on.
    HSPAN_DEVICE void multiplyEntries(uint32_t first, uint32_t count)
    {
        simt::SharedAddress offset = mOffsets + first * sizeof(uint32_t);
        simt::SharedAddress const lastOffset = simt::sharedAddress(&mStage.offsets[first + count - 1]);
        simt::SharedAddress weights = mWeights + first * sizeof(T);
        int32_t buffer = 0;
        auto left = static_cast<int32_t>(count);
        auto const start = [&]
        {
            startCopies(simt::loadWordAt(offset < lastOffset ? offset : lastOffset), mTarget + buffer);
            offset += kENTRIES_OF_PRODUCT * sizeof(uint32_t);
        };
        auto const multiply = [&](auto isFirst)
        {
            simt::waitForCopies();
            simt::syncWarp(); // the values are complete, and the other buffer's readers are done
            auto const pair = simt::loadPairAt(weights);
            simt::SharedAddress const matrices = mMatrices + buffer;
            weights += kENTRIES_OF_PRODUCT * sizeof(T);
            buffer = Stage::kBUFFER_BYTES - buffer;
            left -= kENTRIES_OF_PRODUCT;
            if (left > 0)
            {
                start();
            }
            forConstants<kPIECES>(
                [&](auto piece)
                {
                    constexpr int32_t kPIECE{decltype(piece)::kVALUE};
                    uint32_t a[4];
                    simt::loadMatricesTransposedAt<kPIECE * kPIECE_BYTES>(a, matrices);
                    if constexpr (decltype(isFirst)::kVALUE == 1)
                    {
                        simt::multiplyMatricesFirst<T>(mSums[kPIECE], a, pair.x, pair.y);
                    }
                    else
                    {
                        simt::multiplyMatrices<T>(mSums[kPIECE], a, pair.x, pair.y);
                    }
                });
        };
        start();
        multiply(Constant<1>{});
        while (left > 0)
        {
            multiply(Constant<0>{});
        }
    }

    //! Starts copying the values at this offset, a lane the half of their 16-byte pieces.
    HSPAN_DEVICE void startCopies(uint64_t offset, simt::SharedAddress target)
    {
        auto const copy = [&](auto piece, bool isInside)
        {
            constexpr int32_t kOFFSET{decltype(piece)::kVALUE * kPIECE_BYTES};
            simt::copyAsyncAt<kOFFSET, kOFFSET>(target, mValue + offset, isInside ? kPIECE_BYTES / 2 : 0);
        };
        if (mCopies == 2 * kPIECES)
        {
            forConstants<kPIECES>([&](auto piece) { copy(piece, true); });
        }
        else
        {
            int32_t const own = mCopies - simt::laneIndex() % 2;
            forConstants<kPIECES>([&](auto piece) { copy(piece, 2 * decltype(piece)::kVALUE < own); });
        }
    }

    //! Adds the sums of the columns to the totals. Lane t of a row gets channel 8 t + g of each 32.
    HSPAN_DEVICE void addToTotals()
    {
        int32_t const lane = simt::laneIndex();
        auto const own = [lane](float const(&sums)[4])
        { return simt::add(lane % 2 == 0 ? sums[0] : sums[2], lane % 2 == 0 ? sums[1] : sums[3]); };
        HSPAN_UNROLL
        for (int32_t pair = 0; pair < kPIECES / 2; ++pair)
        {
            float const low = own(mSums[2 * pair]);
            float const high = own(mSums[2 * pair + 1]);
            float sum = lane % 4 < 2 ? low : high;
            if constexpr (Stage::kCOLUMNS > 2) // the others are with lane t + 2 or t - 2
            {
                sum = simt::add(sum, simt::shuffleXor(lane % 4 < 2 ? high : low, 2));
            }
            mTotals[pair] = simt::add(mTotals[pair], sum);
        }
    }

    static constexpr int32_t kPIECE_BYTES{kCHANNELS_OF_PRODUCT * static_cast<int32_t>(sizeof(T))};

    Stage& mStage;
    simt::GlobalAddress mValue; //!< of key 0, the lane's first piece
    uint32_t mPitch;            //!< bytes from key to key
    uint32_t mLanesBefore;
    int32_t mCopies; //!< pieces of a row that hold channels
    //! The lane's places: where it copies values to and loads them from, in the first buffer, and its weights and the
    //! offset of its values in the first product.
    simt::SharedAddress mTarget;
    simt::SharedAddress mMatrices;
    simt::SharedAddress mWeights;
    simt::SharedAddress mOffsets;
    uint32_t mFirst{0}; //!< entry that waits
    uint32_t mEnd{0};
    float mSums[kPIECES][4];    //!< of products
    float mTotals[kPIECES / 2]; //!< of the lane's channels
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
