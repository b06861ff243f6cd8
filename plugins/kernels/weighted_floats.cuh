//! \file weighted_floats.cuh
//! The weighted sum of the values of a row's support in FP32, by one warp.
//!
//! Where channels are few, groups of lanes take every second or fourth entry of the support; a lane has four channels,
//! or twice four. Sums are chains of kCHAIN fused multiply-adds that go to two-float totals, and in the end those of
//! the groups are added up. All of this depends on the support alone, in the order of keys, not on what else its list
//! contained.
#pragma once

#include <cstdint>

#include <simt.h>

#include "list_threshold.cuh"
#include "two_float.cuh"
#include "weighted_values.cuh"

namespace hspan
{

//! Multiply-adds of a chain.
constexpr int32_t kCHAIN{32};

//! A weight and the key whose value it multiplies.
struct alignas(8) WeightedKey
{
    float weight;
    int32_t key;
};

//! Entries that wait, in a ring: what a lane holds of a list, and fewer than a chunk from before.
struct WeightedKeys
{
    static constexpr int32_t kPLACES{2 * kHELD_BY_WARP};

    WeightedKey entries[kPLACES];
};

template <int32_t kPIECES>
class WeightedValues<float, kPIECES>
{
public:
    using Stage = WeightedKeys;

    HSPAN_DEVICE WeightedValues(Stage& stage, float const* value, int64_t pitch, int32_t channels)
        : mStage(stage)
        , mValue(value + firstChannel())
        , mPitch(pitch)
        , mLanesBefore(simt::kept(simt::lanesBefore()))
        , mChannels(channels - firstChannel())
    {
    }

    //! Begins a row.
    HSPAN_DEVICE void begin()
    {
        forOwn(
            [](float& sum, TwoFloat& total)
            {
                sum = 0.0F;
                total = {0.0F, 0.0F};
            });
        mFirst = 0;
        mEnd = 0;
    }

    //! Adds an entry where `stays`, in the order of the lanes. The warp calls it together, after begin().
    HSPAN_DEVICE void push(bool stays, float weight, int32_t key)
    {
        uint32_t const staying = simt::ballot(stays);
        if (stays)
        {
            mStage.entries[(mEnd + simt::bitCount(staying & mLanesBefore)) % Stage::kPLACES] = {weight, key};
        }
        mEnd += simt::bitCount(staying);
    }

    //! Adds up the chunks that are complete, and where `isLast` what is left.
    HSPAN_DEVICE void multiply(bool isLast)
    {
        simt::syncWarp(); // the entries are complete
        while (isLast ? mFirst < mEnd : mEnd - mFirst >= kCHUNK)
        {
            int32_t const end = mEnd - mFirst < kCHUNK ? mEnd : mFirst + kCHUNK;
            HSPAN_UNROLL_BY(4)
            for (int32_t at = mFirst + simt::laneIndex() / kLANES; at < end; at += kGROUPS)
            {
                addEntry(mStage.entries[at % Stage::kPLACES]);
            }
            forOwn(
                [](float& sum, TwoFloat& total)
                {
                    addChain(total, sum);
                    sum = 0.0F;
                });
            mFirst = end;
        }
        simt::syncWarp(); // the entries' readers are done
    }

    //! Ends a row: calls visit(channel, sum) for all channels, by one lane each. No sum needs another look.
    template <typename Visit>
    HSPAN_DEVICE bool finish(Visit const& visit)
    {
        HSPAN_UNROLL
        for (int32_t mask = kLANES; mask < simt::kWARP_SIZE; mask *= 2)
        {
            forOwn(
                [mask](float& /*sum*/, TwoFloat& total)
                {
                    float const high = simt::shuffleXor(total.high, mask);
                    float const low = simt::shuffleXor(total.low, mask);
                    total.low = simt::add(total.low, low);
                    addChain(total, high);
                });
        }
        HSPAN_UNROLL
        for (int32_t quad = 0; quad < kQUADS; ++quad)
        {
            HSPAN_UNROLL
            for (int32_t i = 0; i < 4; ++i)
            {
                if (simt::laneIndex() < kLANES && quad * kSTEP_OF_QUADS + i < mChannels)
                {
                    visit(firstChannel() + quad * kSTEP_OF_QUADS + i, valueOf(mTotals[quad][i]));
                }
            }
        }
        return false;
    }

private:
    static constexpr int32_t kALL_QUADS{kPIECES * kCHANNELS_OF_PRODUCT / 4};
    static constexpr int32_t kLANES{kALL_QUADS < simt::kWARP_SIZE ? kALL_QUADS : simt::kWARP_SIZE}; //!< of a group
    static constexpr int32_t kGROUPS{simt::kWARP_SIZE / kLANES};
    static constexpr int32_t kQUADS{(kALL_QUADS + kLANES - 1) / kLANES}; //!< of a lane
    static constexpr int32_t kSTEP_OF_QUADS{4 * kLANES};                 //!< channels from one quad to the next
    static constexpr int32_t kCHUNK{kCHAIN * kGROUPS};                   //!< entries
    static_assert(kLANES * kGROUPS == simt::kWARP_SIZE && kCHUNK <= kHELD_BY_WARP, "whole groups, and a ring for them");

    HSPAN_DEVICE static int32_t firstChannel()
    {
        return simt::laneIndex() % kLANES * 4;
    }

    //! Calls visit(sum, total) for the lane's channels.
    template <typename Visit>
    HSPAN_DEVICE void forOwn(Visit const& visit)
    {
        HSPAN_UNROLL
        for (int32_t quad = 0; quad < kQUADS; ++quad)
        {
            HSPAN_UNROLL
            for (int32_t i = 0; i < 4; ++i)
            {
                visit(mSums[quad][i], mTotals[quad][i]);
            }
        }
    }

    HSPAN_DEVICE void addEntry(WeightedKey const& entry)
    {
        float const* const source = mValue + entry.key * mPitch;
        HSPAN_UNROLL
        for (int32_t quad = 0; quad < kQUADS; ++quad)
        {
            if (quad * kSTEP_OF_QUADS < mChannels)
            {
                auto const value = *reinterpret_cast<simt::Float4 const*>(source + quad * kSTEP_OF_QUADS);
                mSums[quad][0] = simt::multiplyAdd(entry.weight, value.x, mSums[quad][0]);
                mSums[quad][1] = simt::multiplyAdd(entry.weight, value.y, mSums[quad][1]);
                mSums[quad][2] = simt::multiplyAdd(entry.weight, value.z, mSums[quad][2]);
                mSums[quad][3] = simt::multiplyAdd(entry.weight, value.w, mSums[quad][3]);
            }
        }
    }

    Stage& mStage;
    float const* mValue; //!< of key 0, the lane's first channel
    int64_t mPitch;      //!< elements from key to key
    uint32_t mLanesBefore;
    int32_t mChannels; //!< from the lane's first one on
    int32_t mFirst{0}; //!< entry that waits
    int32_t mEnd{0};
    float mSums[kQUADS][4];
    TwoFloat mTotals[kQUADS][4];
};

} // namespace hspan
