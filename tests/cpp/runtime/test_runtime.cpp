// The C++ runtime without Python: golden plans and pictures, manifests, picture files, checks of plugins.

#include "check.h"
#include "compatibility.h"
#include "error.h"
#include "image.h"
#include "image_formats.h"
#include "manifest.h"
#include "passport.h"
#include "upscaler.h"

#include <nlohmann/json.hpp>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace
{

using namespace hspan;
using hspan::test::addTest;
using hspan::test::check;
using Json = nlohmann::json;

template <typename Action>
std::string messageOf(Action const& action)
{
    try
    {
        action();
    }
    catch (Error const& error)
    {
        return error.what();
    }
    return "no error";
}

bool contains(std::string const& text, std::string const& part)
{
    return text.find(part) != std::string::npos;
}

// The network of tests/support/tile_networks.py, operation by operation.
class NeighborsEngine : public Engine
{
public:
    int scale() const override
    {
        return 3;
    }
    std::vector<ShapeRange> ranges() const override
    {
        return {{{1, 3, 8, 8}, {1, 3, 24, 32}}};
    }
    std::int64_t memoryBytes(Shape const&) const override
    {
        return 0;
    }
    float* input(Shape const& shape) override
    {
        mShape = shape;
        mInput.resize(static_cast<std::size_t>(3 * shape[2] * shape[3]));
        return mInput.data();
    }
    float const* run() override
    {
        std::int64_t const height = mShape[2];
        std::int64_t const width = mShape[3];
        auto const at = [&](std::int64_t c, std::int64_t y, std::int64_t x)
        {
            bool const inside = y >= 0 && x >= 0 && y < height && x < width;
            return inside ? mInput[static_cast<std::size_t>((c * height + y) * width + x)] : 0.0F;
        };
        mOutput.resize(mInput.size() * 9);
        for (std::int64_t c = 0; c < 3; ++c)
        {
            for (std::int64_t y = 0; y < 3 * height; ++y)
            {
                for (std::int64_t x = 0; x < 3 * width; ++x)
                {
                    float const mixed
                        = (at(c, y / 3, x / 3) + at(c, y / 3 - 1, x / 3) * 0.25F + at(c, y / 3, x / 3 + 1)) / 3.0F;
                    mOutput[static_cast<std::size_t>((c * 3 * height + y) * 3 * width + x)] = mixed;
                }
            }
        }
        return mOutput.data();
    }

private:
    Shape mShape{};
    std::vector<float> mInput;
    std::vector<float> mOutput;
};

Image goldenPicture(int channels, int bits)
{
    Image image = imageWithSize("golden", 37, 45, channels, bits);
    std::uint64_t const samples = image.samples.size() / static_cast<std::size_t>(bits / 8);
    for (std::uint64_t i = 0; i < samples; ++i)
    {
        std::uint64_t const value = i * i * 7 + i * 13;
        for (int byte = 0; byte < bits / 8; ++byte) // little endian, as every machine here
        {
            image.samples[i * static_cast<std::uint64_t>(bits / 8) + static_cast<std::uint64_t>(byte)]
                = static_cast<std::uint8_t>(value >> (8 * byte));
        }
    }
    return image;
}

Size sizeFrom(Json const& pair)
{
    return {pair[0].get<int>(), pair[1].get<int>()};
}

void checkSpans(std::vector<Span> const& spans, Json const& expected, std::size_t plan)
{
    check(spans.size() == expected.size(), "plan ", plan, ": ", spans.size(), " spans, expected ", expected.size());
    for (std::size_t i = 0; i < spans.size(); ++i)
    {
        Span const& s = spans[i];
        Json const numbers{s.start, s.length, s.riseStart, s.riseLength, s.fallStart, s.fallLength};
        check(numbers == expected[i], "plan ", plan, ", span ", i, ": ", numbers.dump(), ", expected ",
            expected[i].dump());
    }
}

//! The plans and ramps that both runtimes are held to, made apart from either's code.
void addSharedTests(std::string const& path)
{
    addTest("plans are those of the rules",
        [path]
        {
            Bytes const bytes = readFile(path, 1 << 24);
            Json const plans = Json::parse(bytes.begin(), bytes.end()).at("tiled");
            check(plans.size() >= 10, "too few plans");
            for (std::size_t i = 0; i < plans.size(); ++i)
            {
                Json const& golden = plans[i];
                Size const size{golden["height"].get<int>(), golden["width"].get<int>()};
                Size const tile = golden["tile"].is_null() ? size : sizeFrom(golden["tile"]);
                TilePlan const plan = tilePlan(size, tile, golden["overlap"].get<int>(), sizeFrom(golden["minimum"]));
                checkSpans(plan.rows, golden["rows"], i);
                checkSpans(plan.columns, golden["columns"], i);
            }
        });
    addTest("ramps are those of the rules",
        [path]
        {
            Bytes const bytes = readFile(path, 1 << 24);
            Json const ramps = Json::parse(bytes.begin(), bytes.end()).at("ramps");
            check(ramps.size() >= 3, "too few ramps");
            for (Json const& golden : ramps)
            {
                auto const length = golden["length"].get<std::size_t>();
                for (std::size_t k = 0; k < length; ++k)
                {
                    check(risingWeight(k, length) == golden["rising"][k].get<float>(), "rising ", k, " of ", length);
                    check(fallingWeight(k, length) == golden["falling"][k].get<float>(), "falling ", k, " of ", length);
                }
            }
        });
}

void addGoldenTests(std::string const& path)
{
    addTest("plans are those of the Python runtime",
        [path]
        {
            Bytes const bytes = readFile(path, 1 << 24);
            Json const plans = Json::parse(bytes.begin(), bytes.end()).at("plans");
            check(plans.size() >= 50, "too few plans");
            for (std::size_t i = 0; i < plans.size(); ++i)
            {
                Json const& golden = plans[i];
                TilePlan const plan = tilePlan(sizeFrom(golden["size"]), sizeFrom(golden["tile"]),
                    golden["overlap"].get<int>(), sizeFrom(golden["minimum"]));
                checkSpans(plan.rows, golden["rows"], i);
                checkSpans(plan.columns, golden["columns"], i);
            }
        });
    addTest("several profiles are chosen between as in the Python runtime",
        [path]
        {
            Bytes const bytes = readFile(path, 1 << 24);
            Json const plans = Json::parse(bytes.begin(), bytes.end()).at("profiles");
            check(plans.size() >= 40, "too few plans");
            for (std::size_t i = 0; i < plans.size(); ++i)
            {
                Json const& golden = plans[i];
                TileLimits limits;
                for (Json const& range : golden["ranges"])
                {
                    limits.ranges.push_back({sizeFrom(range[0]), sizeFrom(range[1]), golden["multiple"].get<int>()});
                }
                std::optional<Size> limit;
                if (!golden["limit"].is_null())
                {
                    limit = sizeFrom(golden["limit"]);
                }
                TileChoice choice;
                if (!golden["tile"].is_null())
                {
                    choice.mode = TileMode::kSIZE;
                    choice.size = sizeFrom(golden["tile"]);
                }
                TilePlan const plan = planForPicture(sizeFrom(golden["size"]), choice, limits, limit);
                checkSpans(plan.rows, golden["rows"], i);
                checkSpans(plan.columns, golden["columns"], i);
                std::optional<Size> const next
                    = smallerTile({plan.rows.front().length, plan.columns.front().length}, limits.ranges);
                Json const found = next ? Json::array({next->height, next->width}) : Json();
                check(found == golden["next"], "after plan ", i, " comes ", found.dump());
            }
        });
    addTest("pictures in tiles have the bits of the Python runtime",
        [path]
        {
            Bytes const bytes = readFile(path, 1 << 24);
            Json const pictures = Json::parse(bytes.begin(), bytes.end()).at("pictures");
            check(pictures.size() == 8, "expected 8 pictures");
            for (Json const& golden : pictures)
            {
                TileChoice choice;
                choice.mode = TileMode::kSIZE;
                choice.size = {16, 20};
                choice.overlap = 7;
                Upscaler upscaler(std::make_unique<NeighborsEngine>(), choice);
                Image const result = upscaler.upscale(goldenPicture(golden["channels"], golden["bits"]), "golden");
                check(sha256FromBytes(result.samples.data(), result.samples.size()) == golden["sha256"],
                    golden["channels"].dump(), " channels of ", golden["bits"].dump(), " bits differ");
            }
        });
}

void addFileTests()
{
    addTest("PNG, JPEG and PPM keep what they can hold",
        []
        {
            for (int channels = 1; channels <= 4; ++channels)
            {
                Image const image = goldenPicture(channels, 8);
                check(imageFromBytes(pngFromImage(image, "a"), "a").samples == image.samples, "PNG, ", channels);
                if (!image.hasAlpha())
                {
                    check(imageFromBytes(pnmFromImage(image, "a"), "a").samples == image.samples, "PPM, ", channels);
                    check(imageFromBytes(jpegFromImage(image, "a"), "a").width == 45, "JPEG, ", channels);
                }
            }
            Image const deep = goldenPicture(3, 16);
            check(imageFromBytes(pngFromImage(deep, "a"), "a").samples == deep.samples, "PNG of 16 bits");
            check(imageFromBytes(pnmFromImage(deep, "a"), "a").samples == deep.samples, "PPM of 16 bits");
        });
    addTest("a file cut at any length is an error and nothing worse",
        []
        {
            Image const image = goldenPicture(3, 8);
            for (Bytes const& whole : {pngFromImage(image, "a"), jpegFromImage(image, "a"), pnmFromImage(image, "a")})
            {
                for (std::size_t length = 0; length + 4 < whole.size(); length += 1 + length / 40)
                {
                    Bytes const part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
                    check(messageOf([&] { imageFromBytes(part, "cut"); }) != "no error", "length ", length);
                }
            }
        });
    addTest("reflection repeats no border pixel",
        []
        {
            std::vector<int> const expected{0, 1, 2, 1, 0, 1, 2, 1};
            for (int i = 0; i < 8; ++i)
            {
                check(reflectedIndex(i, 3) == expected[static_cast<std::size_t>(i)], "position ", i);
                check(reflectedIndex(i, 1) == 0, "one pixel");
            }
        });
    addTest("SHA-256 of \"abc\" is that of FIPS 180-2, appendix B",
        []
        {
            check(sha256FromBytes("abc", 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
                "another hash");
        });
    addTest("an engine that travels runs where its traits say",
        []
        {
            auto const messageFor = [](std::vector<std::string> const& traits, Machine const& machine)
            {
                VouchedPlan plan{};
                plan.manifest.flavor = "tensorrt";
                plan.manifest.tensorrtVersion = "10.9.0.34";
                plan.manifest.targets = {"sm_86"};
                plan.manifest.traits = traits;
                return messageOf([&] { checkMachine(plan, machine); });
            };
            check(messageFor({}, {"tensorrt", "10.9.0", "sm_86"}) == "no error", "the same");
            check(contains(messageFor({}, {"tensorrt", "10.10.0", "sm_86"}), "here is 10.10.0"), "later");
            for (char const* later : {"10.9.0", "10.9.1", "10.10.0", "11.0.0"})
            {
                check(messageFor({"version-compatible"}, {"tensorrt", later, "sm_86"}) == "no error", later);
            }
            check(contains(messageFor({"version-compatible"}, {"tensorrt", "10.3.0", "sm_86"}), "here is"), "earlier");
            check(messageFor({"ampere+"}, {"tensorrt", "10.9.0", "sm_120"}) == "no error", "sm_120");
            check(contains(messageFor({"ampere+"}, {"tensorrt", "10.9.0", "sm_75"}), "built for sm_86"), "sm_75");
            check(contains(messageFor({"ampere+"}, {"tensorrt", "10.9.0", "sm_87"}), "built for sm_86"), "sm_87");
            check(contains(messageFor({"same-cc"}, {"tensorrt", "10.9.0", "sm_89"}), "built for sm_86"), "sm_89");
        });
    addTest("a library for another processor is recognized",
        []
        {
            Bytes library(64, 0);
            std::string const magic("\x7f"
                                    "ELF\x02\x01\x01");
            std::copy(magic.begin(), magic.end(), library.begin());
            library[18] = 8; // EM_MIPS
            check(contains(foreignProcessor(library, "x"), "processor type 8"), "MIPS");
            check(contains(messageOf([] { foreignProcessor(Bytes(64, 1), "x"); }), "not a shared library"), "no ELF");
        });
}

// The cases are those of tests/native/test_compatibility.py.
void addCompatibilityTests(char const* path)
{
    Bytes const text = readFile(path, 1 << 20);
    for (Json const& row : Json::parse(text))
    {
        addTest(row["why"].get<std::string>(),
            [row]
            {
                Json description{{"cuda_version", row["cuda"]}, {"ptx_isa_version", row["ptx_isa"]}};
                description["cubin_architectures"] = row["cubins"];
                description["ptx_architectures"] = row["ptx"];
                CompiledCode const code = codeFromDescription(description.dump(), "p.so");
                int const gpu = row["gpu"];
                int const driver = row["driver"][0].get<int>() * 1000 + row["driver"][1].get<int>() * 10;
                static char const* const kNAMES[] = {"machine code", "ptx", "old driver", "new ptx", "no code"};
                std::string const name = kNAMES[static_cast<int>(verdict(code, gpu, driver))];
                check(name == row["verdict"], name);
                std::string const message = messageOf([&] { requireRuns(code, gpu, driver, "p.so"); });
                bool const runs = name == "machine code" || name == "ptx";
                check((message == "no error") == runs, message);
                check(runs || contains(message, "p.so: "), message);
            });
    }
    addTest("a description without versions is incomplete",
        []
        {
            for (char const* text : {"", "{}",
                     "{\"cubin_architectures\": [], \"ptx_architectures\": [], "
                     "\"cuda_version\": \"x\", \"ptx_isa_version\": \"9.0\"}"})
            {
                check(contains(messageOf([&] { codeFromDescription(text, "p.so"); }), "is incomplete"), text);
            }
        });
}

//! The library counts in the environment how often it was opened.
void addPluginTests(std::string const& path)
{
    addTest("a plugin is opened once in a process, and another one is refused",
        [path]
        {
            VouchedPlan plan{};
            plan.plugin = readFile(path, 1 << 24);
            plan.pluginPath = "one.so";
            plan.manifest.plugin = PluginRecord{"one.so", "1", 3};
            loadPlugin(plan);
            loadPlugin(plan);
            char const* const count = std::getenv("HSPAN_COUNTED");
            check(count != nullptr && std::string(count) == "I", "opened ", count == nullptr ? "never" : count);
            plan.manifest.plugin->sha256 = "2";
            check(contains(messageOf([&] { loadPlugin(plan); }), "this process runs another build"), "mixed");
            plan.plugin.clear();
            loadPlugin(plan); // an engine that needs none
        });
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 5)
    {
        std::fprintf(stderr, "usage: test_runtime tile_plans.json tiles.json compatibility.json COUNTING_LIBRARY\n");
        return 2;
    }
    addSharedTests(argv[1]);
    addGoldenTests(argv[2]);
    addCompatibilityTests(argv[3]);
    addFileTests();
    addPluginTests(argv[4]);
    return hspan::test::runAll();
}
