#include "manifest.h"

#include "error.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <initializer_list>

namespace hspan
{
namespace
{

using Json = nlohmann::json;

constexpr int kFORMAT_VERSION = 4;
constexpr std::size_t kMAX_PROFILES = 64;
constexpr std::int64_t kMAX_SIDE = 1 << 20;
constexpr int kMAX_SCALE = 16;
constexpr int kMAX_DEPTH = 32;
constexpr std::size_t kMAX_TEXT = 256;
constexpr std::size_t kMAX_TARGETS = 64;
char const* const kBUILD_AGAIN = "build the engine again with trt-hspan build";

// Reads typed values out of one JSON object; every failure names the key.
class Reader
{
public:
    Reader(Json const& object, std::string where, std::string prefix = "")
        : mObject(object)
        , mWhere(std::move(where))
        , mPrefix(std::move(prefix))
    {
        if (!mObject.is_object())
        {
            throw Error(mWhere,
                (mPrefix.empty() ? "is not a manifest" : mPrefix.substr(0, mPrefix.size() - 1))
                    + ": expected a JSON object",
                kBUILD_AGAIN);
        }
    }

    Error mistyped(std::string const& key, std::string const& expected) const
    {
        return Error(mWhere, name(key) + ": expected " + expected, kBUILD_AGAIN);
    }

    Json const& at(std::string const& key) const
    {
        auto const member = mObject.find(key);
        if (member == mObject.end())
        {
            throw Error(mWhere, name(key) + " is missing", kBUILD_AGAIN);
        }
        return *member;
    }

    bool isNull(std::string const& key) const
    {
        return at(key).is_null();
    }

    std::string text(std::string const& key) const
    {
        return plainText(at(key), key, "a text");
    }

    std::int64_t integer(std::string const& key, std::int64_t least, std::int64_t most) const
    {
        return checked(at(key), key, least, most);
    }

    std::string oneOf(std::string const& key, std::initializer_list<char const*> choices) const
    {
        std::string const value = text(key);
        std::string expected;
        for (char const* choice : choices)
        {
            if (value == choice)
            {
                return value;
            }
            expected += (expected.empty() ? "" : ", ") + std::string(choice);
        }
        throw mistyped(key, expected);
    }

    std::string sha256(std::string const& key) const
    {
        std::string const value = text(key);
        if (value.size() != 64 || value.find_first_not_of("0123456789abcdef") != std::string::npos)
        {
            throw mistyped(key, "64 hexadecimal digits");
        }
        return value;
    }

    std::string fileName(std::string const& key) const
    {
        std::string const value = text(key);
        if (value.empty() || value == "." || value == ".."
            || value.find_first_of(std::string("/\0", 2)) != std::string::npos)
        {
            throw mistyped(key, "a file name without a folder");
        }
        return value;
    }

    Shape shape(std::string const& key, std::int64_t least) const
    {
        Json const& value = at(key);
        if (!value.is_array() || value.size() != 4)
        {
            throw mistyped(key, "four sizes");
        }
        Shape result{};
        for (std::size_t i = 0; i < 4; ++i)
        {
            result[i] = checked(value[i], key, least, kMAX_SIDE);
        }
        return result;
    }

    std::vector<std::string> texts(std::string const& key) const
    {
        std::vector<std::string> result;
        Json const& value = at(key);
        if (!value.is_array() || value.size() > kMAX_TARGETS)
        {
            throw mistyped(key, "a list of at most " + std::to_string(kMAX_TARGETS));
        }
        for (Json const& item : value)
        {
            result.push_back(plainText(item, key, "a list of texts"));
        }
        return result;
    }

    Reader inner(std::string const& key) const
    {
        return Reader(at(key), mWhere, name(key) + ".");
    }

private:
    // Texts are shown to people: short, and without what steers a terminal.
    std::string plainText(Json const& value, std::string const& key, std::string const& expected) const
    {
        std::string const text = value.is_string() ? value.get<std::string>() : "";
        bool const steers
            = std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
        if (!value.is_string() || steers || text.size() > kMAX_TEXT)
        {
            throw mistyped(key, expected + " of at most " + std::to_string(kMAX_TEXT) + " bytes, all printable");
        }
        return text;
    }

    std::string name(std::string const& key) const
    {
        return mPrefix + key;
    }

    std::int64_t checked(Json const& value, std::string const& key, std::int64_t least, std::int64_t most) const
    {
        bool const fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most)
                                                     : value.is_number_integer();
        if (!fits || value.get<std::int64_t>() < least || value.get<std::int64_t>() > most)
        {
            throw mistyped(key, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
        }
        return value.get<std::int64_t>();
    }

    Json const& mObject;
    std::string mWhere;
    std::string mPrefix;
};

// A parser that recurses would let a hostile file exhaust the stack.
void requireShallow(std::string const& text, std::string const& where)
{
    int depth = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i)
    {
        char const c = text[i];
        if (quoted)
        {
            i += c == '\\' ? 1 : 0;
            quoted = c != '"';
        }
        else if (c == '"')
        {
            quoted = true;
        }
        else if (c == '[' || c == '{')
        {
            if (++depth > kMAX_DEPTH)
            {
                throw Error(where, "is not a manifest: nested too deeply", kBUILD_AGAIN);
            }
        }
        else if (c == ']' || c == '}')
        {
            --depth;
        }
    }
}

void readTensors(Reader const& reader, std::string const& where, Manifest& manifest)
{
    Json const& tensors = reader.at("io_tensors");
    if (!tensors.is_array() || tensors.size() != 2)
    {
        throw reader.mistyped("io_tensors", "one input and one output");
    }
    for (Json const& tensor : tensors)
    {
        Reader const entry(tensor, where, "io_tensors.");
        std::string& name
            = entry.oneOf("mode", {"input", "output"}) == "input" ? manifest.inputName : manifest.outputName;
        if (!name.empty())
        {
            throw reader.mistyped("io_tensors", "one input and one output");
        }
        name = entry.text("name");
        if (name.empty() || entry.text("dtype") != "float32")
        {
            throw reader.mistyped("io_tensors", "named float32 tensors");
        }
        Json const& sizes = entry.at("shape");
        if (!sizes.is_array() || sizes.size() != 4 || sizes[1] != 3)
        {
            throw reader.mistyped("io_tensors", "tensors (N, 3, H, W)");
        }
    }
}

ProfileRecord readProfile(Reader const& reader, std::string const& where, std::string const& name)
{
    ProfileRecord profile{reader.shape("min", 1), reader.shape("opt", 1), reader.shape("max", 1), {}};
    for (std::size_t i = 0; i < profile.min.size(); ++i)
    {
        if (profile.min[i] > profile.opt[i] || profile.opt[i] > profile.max[i])
        {
            throw Error(where, name + ": expected min <= opt <= max in every dimension", kBUILD_AGAIN);
        }
    }
    if (profile.min[1] != 3 || profile.max[1] != 3)
    {
        throw Error(where, name + ": expected 3 channels", kBUILD_AGAIN);
    }
    if (!reader.isNull("activation_memory_bytes"))
    {
        profile.activationMemoryBytes = reader.integer("activation_memory_bytes", 0, std::int64_t{1} << 50);
    }
    return profile;
}

void readProfiles(Reader const& reader, std::string const& where, Manifest& manifest)
{
    Json const& profiles = reader.at("profiles");
    if (!profiles.is_array() || profiles.empty() || profiles.size() > kMAX_PROFILES)
    {
        throw reader.mistyped("profiles", "a list of 1 to " + std::to_string(kMAX_PROFILES) + " profiles");
    }
    for (std::size_t i = 0; i < profiles.size(); ++i)
    {
        std::string const name = "profiles[" + std::to_string(i) + "]";
        Reader const profile(profiles[i], where, name + ".");
        manifest.profiles.push_back(readProfile(profile, where, name));
    }
}

double elements(Shape const& shape)
{
    double product = 1;
    for (std::int64_t const size : shape)
    {
        product *= static_cast<double>(size);
    }
    return product;
}

} // namespace

Manifest manifestFromJson(std::string const& text, std::string const& where)
{
    // The parser takes a null byte for the end, and skips a mark of the byte order; JSON has neither.
    bool const odd = text.find('\0') != std::string::npos || text.compare(0, 3, "\xef\xbb\xbf") == 0;
    if (odd)
    {
        throw Error(where, "is not a manifest: malformed JSON", kBUILD_AGAIN);
    }
    requireShallow(text, where);
    Json const document = Json::parse(text, nullptr, false);
    if (document.is_discarded())
    {
        throw Error(where, "is not a manifest: malformed JSON", kBUILD_AGAIN);
    }
    Reader const reader(document, where);
    Json const& version = reader.at("format_version");
    if (!version.is_number_integer() || version != kFORMAT_VERSION)
    {
        throw Error(where, "format_version is another than " + std::to_string(kFORMAT_VERSION),
            std::string(kBUILD_AGAIN) + " of this version");
    }
    Manifest manifest{};
    manifest.planSha256 = reader.sha256("plan_sha256");
    manifest.planSizeBytes = reader.integer("plan_size_bytes", 1, std::int64_t{1} << 40);
    if (!reader.isNull("plugin"))
    {
        Reader const plugin = reader.inner("plugin");
        manifest.plugin
            = PluginRecord{plugin.fileName("file"), plugin.sha256("sha256"), plugin.integer("abi_version", 1, 1 << 20)};
    }
    manifest.flavor = reader.oneOf("flavor", {"tensorrt", "tensorrt-rtx"});
    manifest.tensorrtVersion = reader.text("tensorrt_version");
    manifest.traits = reader.texts("traits");
    manifest.targets = reader.texts("targets");
    manifest.precision = reader.text("precision");
    if (reader.isNull("scale"))
    {
        throw Error(where, "contains no scale: not a super-resolution engine", kBUILD_AGAIN);
    }
    manifest.scale = static_cast<int>(reader.integer("scale", 1, kMAX_SCALE));
    readProfiles(reader, where, manifest);
    readTensors(reader, where, manifest);
    return manifest;
}

bool has(Manifest const& manifest, char const* trait)
{
    return std::find(manifest.traits.begin(), manifest.traits.end(), trait) != manifest.traits.end();
}

bool takes(ProfileRecord const& profile, Shape const& shape)
{
    for (std::size_t i = 0; i < shape.size(); ++i)
    {
        if (shape[i] < profile.min[i] || shape[i] > profile.max[i])
        {
            return false;
        }
    }
    return true;
}

std::size_t profileFor(std::vector<ProfileRecord> const& profiles, Shape const& shape)
{
    std::size_t best = profiles.size();
    for (std::size_t i = 0; i < profiles.size(); ++i)
    {
        if (takes(profiles[i], shape)
            && (best == profiles.size() || elements(profiles[i].max) < elements(profiles[best].max)))
        {
            best = i;
        }
    }
    return best;
}

ProfileRecord const& largestProfile(Manifest const& manifest)
{
    return *std::max_element(manifest.profiles.begin(), manifest.profiles.end(),
        [](ProfileRecord const& a, ProfileRecord const& b) { return elements(a.max) < elements(b.max); });
}

std::string manifestPath(std::string const& planPath)
{
    std::string const suffix = ".plan";
    if (planPath.size() <= suffix.size()
        || planPath.compare(planPath.size() - suffix.size(), suffix.size(), suffix) != 0)
    {
        throw Error(planPath, "is not an engine", "name a file that ends in .plan", Code::kUSAGE);
    }
    return planPath.substr(0, planPath.size() - suffix.size()) + ".json";
}

} // namespace hspan
