#include "deferred_engine.h"

#include "error.h"

#include <new>
#include <utility>

namespace hspan
{

ManifestEngine::ManifestEngine(Manifest manifest)
    : mManifest(std::move(manifest))
{
}

int ManifestEngine::scale() const
{
    return mManifest.scale;
}

int ManifestEngine::sizeMultiple() const
{
    return mManifest.sizeMultiple;
}

std::vector<ShapeRange> ManifestEngine::ranges() const
{
    std::vector<ShapeRange> result;
    for (ProfileRecord const& profile : mManifest.profiles)
    {
        result.push_back({profile.min, profile.max});
    }
    return result;
}

std::int64_t ManifestEngine::memoryBytes(Shape const& input) const
{
    std::size_t const taken = profileFor(mManifest.profiles, input);
    ProfileRecord const& profile
        = taken < mManifest.profiles.size() ? mManifest.profiles[taken] : largestProfile(mManifest);
    auto const pixels = [](Shape const& shape) { return static_cast<double>(shape[0] * shape[2] * shape[3]); };
    double const activations
        = static_cast<double>(profile.activationMemoryBytes.value_or(0)) * pixels(input) / pixels(profile.max);
    double const tensors = 3.0 * sizeof(float) * pixels(input) * (1.0 + mManifest.scale * mManifest.scale);
    return static_cast<std::int64_t>(activations + tensors);
}

DeferredEngine::DeferredEngine(Manifest manifest, Opener opener)
    : ManifestEngine(std::move(manifest))
    , mOpener(std::move(opener))
{
}

void DeferredEngine::open()
{
    if (mEngine)
    {
        return;
    }
    try
    {
        mEngine = mOpener();
    }
    catch (Error const& error)
    {
        mFailed = true;
        if (error.code() != Code::kOUT_OF_MEMORY)
        {
            throw;
        }
        throw Error::again(error, Code::kFAILED);
    }
    catch (...)
    {
        mFailed = true;
        throw;
    }
    mOpener = nullptr; // and the plan's bytes with it
}

float* DeferredEngine::input(Shape const& shape)
{
    open();
    return mEngine->input(shape);
}

float const* DeferredEngine::run()
{
    open();
    return mEngine->run();
}

} // namespace hspan
