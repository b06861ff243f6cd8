// What an engine is by its manifest alone, and an engine that is opened when it first runs: pictures are read and
// checked before the GPU is touched.
#pragma once

#include "engine.h"
#include "manifest.h"

#include <functional>
#include <memory>

namespace hspan
{

std::vector<ShapeRange> rangesFromManifest(Manifest const& manifest);

// What one run on this input takes: activations of the profile that takes it, by pixels, and the tensors.
std::int64_t memoryBytesFromManifest(Manifest const& manifest, Shape const& input);

class DeferredEngine : public Engine
{
public:
    using Opener = std::function<std::unique_ptr<Engine>()>;

    // The opener is called at most once; what it throws is thrown by open(), input() and run().
    DeferredEngine(Manifest manifest, Opener opener);

    // Opens the engine unless it is open. Throws Error: as the opener, but never kOUT_OF_MEMORY, which would make the
    // caller try smaller tiles: opening does not depend on them.
    void open();

    // Whether opening was tried and failed: no picture will do better.
    bool failed() const
    {
        return mFailed;
    }

    int scale() const override
    {
        return mManifest.scale;
    }
    std::vector<ShapeRange> ranges() const override
    {
        return rangesFromManifest(mManifest);
    }
    std::int64_t memoryBytes(Shape const& input) const override
    {
        return memoryBytesFromManifest(mManifest, input);
    }
    float* input(Shape const& shape) override;
    float const* run() override;

private:
    Manifest mManifest;
    Opener mOpener;
    std::unique_ptr<Engine> mEngine;
    bool mFailed = false;
};

} // namespace hspan
