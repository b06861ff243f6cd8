// The manifest beside a plan (engines/README.md): what the engine is and the hashes of its files. What one contains is
// trt_hspan/engine/manifest.schema.json, for the Python reader too.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace hspan
{

using Shape = std::array<std::int64_t, 4>; // N, C, H, W

struct PluginRecord
{
    std::string file;
    std::string sha256;
    std::int64_t abiVersion;
};

// One optimization profile: the smallest input, the one tuned for, and the largest.
struct ProfileRecord
{
    Shape min;
    Shape opt;
    Shape max;
    std::optional<std::int64_t> activationMemoryBytes; // at max
};

struct Manifest
{
    std::string planSha256;
    std::int64_t planSizeBytes;
    std::optional<PluginRecord> plugin;
    std::string flavor; // "tensorrt" or "tensorrt-rtx"
    std::string tensorrtVersion;
    std::vector<std::string> traits;  // what it can do beyond running where it was built, such as "embedded-plugin"
    std::vector<std::string> targets; // compute capabilities such as "sm_87"; empty: whatever the flavor takes
    std::string precision;
    int scale;
    int sizeMultiple;                    // sides of inputs are multiples of this
    std::vector<ProfileRecord> profiles; // in TensorRT's order; at least one
    std::string inputName;
    std::string outputName;
};

// Whether the engine has a trait.
bool has(Manifest const& manifest, char const* trait);

// Whether min <= shape <= max in every dimension.
bool takes(ProfileRecord const& profile, Shape const& shape);

// The profile that takes a shape, the one with the smallest max if several do; profiles.size() if none does.
std::size_t profileFor(std::vector<ProfileRecord> const& profiles, Shape const& shape);

// The profile that takes the most pixels in one run.
ProfileRecord const& largestProfile(Manifest const& manifest);

// Throws Error: not JSON, another format version, a key missing, unknown or mistyped, shapes that make no sense, or an
// engine whose input and output are not those of a super-resolution network (one float32 tensor each, 3 channels).
Manifest manifestFromJson(std::string const& text, std::string const& where);

// NAME.json for NAME.plan. Throws Error.
std::string manifestPath(std::string const& planPath);

} // namespace hspan
