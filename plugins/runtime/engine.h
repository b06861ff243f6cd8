// What runs a network. Owns the interface; the TensorRT engine and callbacks of other programs implement it.
#pragma once

#include "manifest.h"

#include <cstdint>
#include <vector>

namespace hspan
{

// The smallest and the largest input (N, 3, H, W).
struct ShapeRange
{
    Shape least;
    Shape largest;
};

class Engine
{
public:
    virtual ~Engine() = default;

    // The network's factor.
    virtual int scale() const = 0;

    // Sides of inputs are multiples of this.
    virtual int sizeMultiple() const
    {
        return 1;
    }

    // What one run takes; at least one range. An engine has one for each of its profiles.
    virtual std::vector<ShapeRange> ranges() const = 0;

    // Main or device memory that one run on this input takes, where it is known; 0 otherwise.
    virtual std::int64_t memoryBytes(Shape const& input) const = 0;

    // Where a run's input goes: (N, 3, H, W) floats in [0, 1], planes one after the other. Valid until the next call.
    virtual float* input(Shape const& shape) = 0;

    // Runs on what stands in input(). The result, (N, 3, scale H, scale W), is valid until the next call.
    // Throws Error; with kOUT_OF_MEMORY a smaller input may work.
    virtual float const* run() = 0;
};

} // namespace hspan
