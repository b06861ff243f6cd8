#include "manifest.h"

#include "error.h"
#include "manifest_schema.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <set>

namespace hspan
{
namespace
{

using Json = nlohmann::json;

constexpr int kMAX_DEPTH = 32;
constexpr std::size_t kMAX_SHOWN = 40;
char const* const kBUILD_AGAIN = "build the engine again with trt-hspan build";

Json const& schema()
{
    static Json const document = Json::parse(kMANIFEST_SCHEMA);
    return document;
}

// Checks one value after the other against the schema: JSON Schema, of the keywords that it uses. Every failure names
// the key. trt_hspan/records.py does the same in Python; tests/engine/manifests.json holds the cases of both.
class Checker
{
public:
    explicit Checker(std::string where)
        : mWhere(std::move(where))
    {
    }

    Error error(std::string const& what) const
    {
        return Error(mWhere, what, kBUILD_AGAIN);
    }

    void check(Json const& value, Json const& schema, std::string const& key) const
    {
        Json const& kinds = schema["type"];
        std::string const& kind = (kinds.is_array() ? kinds[0] : kinds).get_ref<std::string const&>();
        if (value.is_null() && kinds.is_array())
        {
            return;
        }
        if (!fits(value, kind, schema))
        {
            throw error(key + ": expected " + expected(kind, schema));
        }
        if (kind == "array")
        {
            for (std::size_t i = 0; i < value.size(); ++i)
            {
                check(value[i], schema["items"], key + "[" + std::to_string(i) + "]");
            }
        }
        if (kind == "object")
        {
            checkMembers(value, schema, key.empty() ? "" : key + ".");
        }
    }

private:
    void checkMembers(Json const& object, Json const& schema, std::string const& prefix) const
    {
        static Json const none = Json::object();
        auto const required = schema.find("required");
        for (Json const& name : required == schema.end() ? none : *required)
        {
            if (object.find(name.get_ref<std::string const&>()) == object.end())
            {
                throw error("the key " + prefix + name.get<std::string>() + " is missing");
            }
        }
        Json const& properties = schema.contains("properties") ? schema["properties"] : none;
        for (auto const& [name, item] : object.items())
        {
            std::string const shown = prefix + name.substr(0, kMAX_SHOWN);
            auto const property = properties.find(name);
            Json const& inner = property == properties.end() ? schema["additionalProperties"] : *property;
            if (inner.is_boolean() || steers(name))
            {
                throw error("the key " + shown + " is unknown");
            }
            check(item, inner, shown);
        }
    }

    static bool fits(Json const& value, std::string const& kind, Json const& schema)
    {
        if (kind == "string")
        {
            return value.is_string() && fitsText(value.get_ref<std::string const&>(), schema);
        }
        if (kind == "integer")
        {
            return value.is_number_integer() && isWithin(value, schema);
        }
        if (kind == "number")
        {
            return value.is_number() && isWithin(value, schema);
        }
        if (kind == "array")
        {
            return value.is_array() && value.size() >= schema["minItems"] && value.size() <= schema["maxItems"];
        }
        if (kind == "object")
        {
            return value.is_object() && (!schema.contains("maxProperties") || value.size() <= schema["maxProperties"]);
        }
        return value.is_boolean();
    }

    static bool isWithin(Json const& value, Json const& schema)
    {
        return !schema.contains("minimum") || (value >= schema["minimum"] && value <= schema["maximum"]);
    }

    static bool fitsText(std::string const& text, Json const& schema)
    {
        auto const characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
        if (steers(text) || (schema.contains("maxLength") && characters > schema["maxLength"]))
        {
            return false;
        }
        if (schema.contains("format") && !hasFormat(text, schema["format"].get_ref<std::string const&>()))
        {
            return false;
        }
        auto const choices = schema.find("enum");
        return choices == schema.end() || std::find(choices->begin(), choices->end(), text) != choices->end();
    }

    static bool hasFormat(std::string const& text, std::string const& format)
    {
        if (format == "sha256")
        {
            return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
        }
        if (format == "file-name")
        {
            return !text.empty() && text != "." && text != ".." && text.find_first_of("/\\") == std::string::npos;
        }
        if (format == "target")
        {
            return text.compare(0, 3, "sm_") == 0 && (text.size() == 5 || text.size() == 6)
                && digits(text, 3) == text.size() - 3;
        }
        std::size_t at = 0; // "version"
        int numbers = 0;
        for (;;)
        {
            std::size_t const count = digits(text, at);
            if (count == 0)
            {
                break;
            }
            ++numbers;
            at += count;
            if (count > 6 || at == text.size() || text[at] != '.')
            {
                return count <= 6 && numbers >= 2 && numbers <= 4;
            }
            ++at;
        }
        return numbers >= 2 && numbers <= 4 && at < text.size() && text[at] != '.';
    }

    static std::size_t digits(std::string const& text, std::size_t from)
    {
        std::size_t const end = text.find_first_not_of("0123456789", from);
        return (end == std::string::npos ? text.size() : end) - std::min(from, text.size());
    }

    static std::string expected(std::string const& kind, Json const& schema)
    {
        if (schema.contains("enum"))
        {
            std::string list;
            for (Json const& choice : schema["enum"])
            {
                list += choice.is_null() ? "" : (list.empty() ? "one of " : ", ") + choice.get<std::string>();
            }
            return list;
        }
        if (schema.contains("format"))
        {
            std::string const format = schema["format"];
            return format == "sha256"   ? "64 hexadecimal digits"
                : format == "file-name" ? "a file name without a folder"
                : format == "target"    ? "a compute capability such as sm_86"
                                        : "a version such as 10.3.0";
        }
        if (kind == "integer" || kind == "number")
        {
            std::string const name = kind == "integer" ? "an integer" : "a number";
            return !schema.contains("minimum")
                ? name
                : name + " from " + schema["minimum"].dump() + " to " + schema["maximum"].dump();
        }
        if (kind == "array")
        {
            return "a list of " + schema["minItems"].dump() + " to " + schema["maxItems"].dump();
        }
        if (kind == "string")
        {
            return "a text of at most " + schema["maxLength"].dump() + " printable characters";
        }
        return kind == "boolean" ? "true or false" : "an object";
    }

    std::string mWhere;
};

// Throws Error: not JSON, a key twice in one object, or nested deeper than any manifest.
Json parsed(std::string const& text, std::string const& where)
{
    std::vector<std::set<std::string>> keys;
    auto const watch = [&](int depth, Json::parse_event_t event, Json& value)
    {
        if (depth > kMAX_DEPTH)
        {
            throw Error(where, "is not a manifest: nested too deeply", kBUILD_AGAIN);
        }
        if (event == Json::parse_event_t::object_start)
        {
            keys.emplace_back();
        }
        else if (event == Json::parse_event_t::object_end)
        {
            keys.pop_back();
        }
        else if (event == Json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
        {
            throw Error(where, "is not a manifest: malformed JSON (one name comes twice in an object)", kBUILD_AGAIN);
        }
        return true;
    };
    // The parser takes a null byte for the end, and skips a mark of the byte order; JSON has neither.
    bool const odd = text.find('\0') != std::string::npos || text.compare(0, 3, "\xef\xbb\xbf") == 0;
    Json document = odd ? Json(Json::value_t::discarded) : Json::parse(text, watch, false);
    if (document.is_discarded())
    {
        throw Error(where, "is not a manifest: malformed JSON", kBUILD_AGAIN);
    }
    return document;
}

Shape shapeFrom(Json const& sizes)
{
    return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

std::optional<std::int64_t> numberFrom(Json const& value)
{
    return value.is_null() ? std::nullopt : std::optional<std::int64_t>(value.get<std::int64_t>());
}

std::vector<ProfileRecord> profilesFrom(Json const& list, Checker const& checker)
{
    std::vector<ProfileRecord> profiles;
    for (Json const& item : list)
    {
        ProfileRecord const profile{shapeFrom(item["min"]), shapeFrom(item["opt"]), shapeFrom(item["max"]),
            numberFrom(item["activation_memory_bytes"])};
        for (std::size_t i = 0; i < profile.min.size(); ++i)
        {
            if (profile.min[i] > profile.opt[i] || profile.opt[i] > profile.max[i])
            {
                throw checker.error(
                    "profiles[" + std::to_string(profiles.size()) + "]: expected min, opt, max in rising order");
            }
        }
        profiles.push_back(profile);
    }
    return profiles;
}

// What this program needs beyond a valid manifest: one picture in, one picture out.
void requireUpscales(Json const& document, Manifest& manifest, Checker const& checker)
{
    if (document["scale"].is_null())
    {
        throw checker.error("contains no scale: not a super-resolution engine");
    }
    manifest.scale = document["scale"];
    manifest.sizeMultiple = document.value("size_multiple", 1);
    for (ProfileRecord const& profile : manifest.profiles)
    {
        if (profile.min[1] != 3 || profile.max[1] != 3)
        {
            throw checker.error("profiles: expected 3 channels");
        }
    }
    for (Json const& tensor : document["io_tensors"])
    {
        std::string& name = tensor["mode"] == "input" ? manifest.inputName : manifest.outputName;
        bool const isFirst = name.empty();
        name = tensor["name"];
        if (!isFirst || name.empty() || tensor["dtype"] != "float32" || tensor["shape"].size() != 4
            || tensor["shape"][1] != 3)
        {
            throw checker.error("io_tensors: expected one input and one output, float32 (N, 3, H, W) with names");
        }
    }
    if (manifest.inputName.empty() || manifest.outputName.empty())
    {
        throw checker.error("io_tensors: expected one input and one output");
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
    Checker const checker(where);
    Json const document = parsed(text, where);
    if (!document.is_object())
    {
        throw checker.error("is not a manifest: expected a JSON object");
    }
    Json const& version = schema()["properties"]["format_version"]["maximum"];
    auto const own = document.find("format_version");
    if (own == document.end() || !own->is_number_integer() || *own != version)
    {
        throw Error(
            where, "format_version is another than " + version.dump(), std::string(kBUILD_AGAIN) + " of this version");
    }
    checker.check(document, schema(), "");
    Manifest manifest{};
    manifest.planSha256 = document["plan_sha256"];
    manifest.planSizeBytes = document["plan_size_bytes"];
    if (Json const& plugin = document["plugin"]; !plugin.is_null())
    {
        manifest.plugin = PluginRecord{plugin["file"], plugin["sha256"], plugin["abi_version"]};
    }
    manifest.flavor = document["flavor"];
    manifest.tensorrtVersion = document["tensorrt_version"];
    manifest.traits = document["traits"].get<std::vector<std::string>>();
    manifest.targets = document["targets"].get<std::vector<std::string>>();
    manifest.precision = document["precision"];
    manifest.profiles = profilesFrom(document["profiles"], checker);
    if (has(manifest, "embedded-plugin") && !manifest.plugin)
    {
        throw checker.error("traits says that the plugin is embedded, and plugin is null");
    }
    requireUpscales(document, manifest, checker);
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
