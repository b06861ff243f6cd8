// What an engine is by its manifest alone, and an engine that is opened when it first runs: pictures are read and
// checked before the GPU is touched.
#pragma once

#include "engine.h"
#include "manifest.h"

#include <functional>
#include <memory>

namespace hspan
{

class ManifestEngine : public Engine
{
public:
    explicit ManifestEngine(Manifest manifest);

    int scale() const override;
    int sizeMultiple() const override;
    std::vector<ShapeRange> ranges() const override;

    // Activations of the profile that takes the input, by pixels, and the tensors.
    std::int64_t memoryBytes(Shape const& input) const override;

protected:
    Manifest const mManifest;
};

class DeferredEngine : public ManifestEngine
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

    float* input(Shape const& shape) override;
    float const* run() override;

private:
    Opener mOpener;
    std::unique_ptr<Engine> mEngine;
    bool mFailed = false;
};

} // namespace hspan
