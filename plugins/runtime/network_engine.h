// An Engine that the program around the library runs: a callback and its limits.
#pragma once

#include "engine.h"
#include "error.h"
#include "hspan/runtime.h"
#include "pixels.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace hspan
{

class NetworkEngine : public Engine
{
public:
    NetworkEngine(hspan_network network, void* userData, hspan_network_limits const& limits)
        : mNetwork(network)
        , mUserData(userData)
        , mLimits(limits)
    {
        bool const ordered = limits.least_height >= 1 && limits.least_width >= 1
            && limits.largest_height >= limits.least_height && limits.largest_width >= limits.least_width;
        if (network == nullptr || limits.scale < 1 || limits.scale > kMAX_SCALE || !ordered)
        {
            throw Error(
                "network", "its limits make no sense", "give a scale of 1 to 16, and least <= largest", Code::kUSAGE);
        }
        requireSize("network, least result", std::int64_t{limits.least_height} * limits.scale,
            std::int64_t{limits.least_width} * limits.scale);
        // No tile is larger than the largest result: a caller may say INT32_MAX for "any".
        auto const largest = static_cast<std::int32_t>(kMAX_PIXELS / limits.scale);
        mLimits.largest_height = std::min(limits.largest_height, largest);
        mLimits.largest_width = std::min(limits.largest_width, largest);
    }

    int scale() const override
    {
        return mLimits.scale;
    }
    std::vector<ShapeRange> ranges() const override
    {
        return {
            {{1, 3, mLimits.least_height, mLimits.least_width}, {1, 3, mLimits.largest_height, mLimits.largest_width}}};
    }
    std::int64_t memoryBytes(Shape const&) const override
    {
        return 0;
    }

    float* input(Shape const& shape) override
    {
        requireSize("tile, upscaled", shape[2] * mLimits.scale, shape[3] * mLimits.scale);
        mShape = shape;
        auto const pixels = static_cast<std::size_t>(3 * shape[2] * shape[3]);
        mInput.resize(pixels);
        mOutput.resize(pixels * static_cast<std::size_t>(mLimits.scale * mLimits.scale));
        return mInput.data();
    }

    float const* run() override
    {
        auto const height = static_cast<std::int32_t>(mShape[2]);
        auto const width = static_cast<std::int32_t>(mShape[3]);
        hspan_status const status = mNetwork(mUserData, mInput.data(), height, width, mOutput.data());
        if (status != HSPAN_OK)
        {
            bool const memory = status == HSPAN_OUT_OF_MEMORY;
            throw Error("network", memory ? "out of memory" : "the run failed", "",
                memory ? Code::kOUT_OF_MEMORY : Code::kFAILED);
        }
        return mOutput.data();
    }

private:
    static constexpr std::int32_t kMAX_SCALE = 16;

    hspan_network mNetwork;
    void* mUserData;
    hspan_network_limits mLimits;
    Shape mShape{};
    std::vector<float> mInput;
    std::vector<float> mOutput;
};

} // namespace hspan
