#include "deferred_engine.h"

#include "error.h"

#include <new>
#include <utility>

namespace hspan
{

std::vector<ShapeRange> rangesFromManifest(Manifest const& manifest)
{
    std::vector<ShapeRange> result;
    for (ProfileRecord const& profile : manifest.profiles)
    {
        result.push_back({profile.min, profile.max});
    }
    return result;
}

std::int64_t memoryBytesFromManifest(Manifest const& manifest, Shape const& input)
{
    std::size_t const taken = profileFor(manifest.profiles, input);
    ProfileRecord const& profile
        = taken < manifest.profiles.size() ? manifest.profiles[taken] : largestProfile(manifest);
    auto const pixels = [](Shape const& shape) { return static_cast<double>(shape[0] * shape[2] * shape[3]); };
    double const activations
        = static_cast<double>(profile.activationMemoryBytes.value_or(0)) * pixels(input) / pixels(profile.max);
    double const tensors = 3.0 * sizeof(float) * pixels(input) * (1.0 + manifest.scale * manifest.scale);
    return static_cast<std::int64_t>(activations + tensors);
}

DeferredEngine::DeferredEngine(Manifest manifest, Opener opener)
    : mManifest(std::move(manifest))
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
