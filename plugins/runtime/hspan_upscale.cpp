// hspan-upscale: pictures or raw frames through an engine, without Python.

#include "deferred_engine.h"
#include "error.h"
#include "image.h"
#include "passport.h"
#include "pipes.h"
#include "tensorrt_engine.h"
#include "upscaler.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <sys/stat.h>
#include <vector>

namespace
{

using namespace hspan;
using Clock = std::chrono::steady_clock;

struct Arguments
{
    std::string engine;
    std::string plugin;
    std::vector<std::string> inputs;
    std::string output;
    std::string tile = "auto";
    int overlap = -1;
    std::string raw;
    int device = 0;
    bool noCudaGraph = false;
    bool info = false;
    bool json = false;
    bool overwrite = false;
    int repeat = 1;
};

double seconds(Clock::time_point since)
{
    return std::chrono::duration<double>(Clock::now() - since).count();
}

void say(std::string const& text)
{
    std::cerr << "hspan-upscale: " << printable(text) << '\n';
}

// One line; bytes of a file's name that are no UTF-8 are replaced, and what is not ASCII is escaped.
std::string textFromJson(nlohmann::ordered_json const& json)
{
    return json.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

// Whether a text is `format` from end to end, with two numbers from 1.
bool readPair(std::string const& text, char const* format, int& first, int& second)
{
    int end = -1;
    return std::sscanf(text.c_str(), format, &first, &second, &end) == 2 && end == static_cast<int>(text.size())
        && first > 0 && second > 0;
}

// "360x640", or "height=360,width=640" in either order. Throws Error.
Size sizeFromText(std::string const& text, std::string const& option)
{
    Size size{};
    if (readPair(text, "%6dx%6d%n", size.height, size.width)
        || readPair(text, "height=%6d,width=%6d%n", size.height, size.width)
        || readPair(text, "width=%6d,height=%6d%n", size.width, size.height))
    {
        return size;
    }
    throw Error(option, "got '" + text + "', expected height x width in pixels",
        "write it like 360x640 or height=360,width=640", Code::kUSAGE);
}

TileChoice tileChoice(Arguments const& arguments)
{
    TileChoice choice;
    if (arguments.tile == "none")
    {
        choice.mode = TileMode::kNONE;
    }
    else if (arguments.tile != "auto")
    {
        bool const isNumber = arguments.tile.find_first_not_of("0123456789") == std::string::npos;
        choice.mode = TileMode::kSIZE;
        choice.size = sizeFromText(isNumber ? arguments.tile + "x" + arguments.tile : arguments.tile, "--tile");
    }
    if (arguments.overlap >= 0)
    {
        choice.overlap = arguments.overlap;
    }
    return choice;
}

bool exists(std::string const& path)
{
    struct stat status{};
    return ::lstat(path.c_str(), &status) == 0;
}

bool isFolder(std::string const& path)
{
    struct stat status{};
    return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

// Which file an input becomes; a folder as output takes files of the inputs' names, as PNG.
std::string targetFor(std::string const& input, Arguments const& arguments)
{
    if (!isFolder(arguments.output))
    {
        return arguments.output;
    }
    std::string const name = nameFromPath(input);
    return arguments.output + "/" + name.substr(0, name.rfind('.')) + ".png";
}

void upscaleFile(DeferredEngine& engine, Upscaler& upscaler, std::string const& input, Arguments const& arguments)
{
    std::string const output = targetFor(input, arguments);
    Image const image = imageFromBytes(readFile(input, kMAX_FILE_BYTES), input);
    requireFormatHolds(output, upscaler.resultOf(image, input));
    if (std::string const lost = lostColors(image, output); !lost.empty())
    {
        say(input + ": " + lost);
    }
    engine.open();
    std::vector<double> times;
    Image result;
    for (int i = 0; i < arguments.repeat; ++i)
    {
        auto const started = Clock::now();
        result = upscaler.upscale(image, input);
        times.push_back(seconds(started));
    }
    Bytes const bytes = bytesFromImage(result, output);
    writeFile(output, bytes.data(), bytes.size());
    // The first run of a shape also captures the graph; it counts only when it is the only one.
    std::sort(times.begin() + (times.size() > 1 ? 1 : 0), times.end());
    std::size_t const first = times.size() > 1 ? 1 : 0;
    double const median = times[first + (times.size() - first) / 2];
    if (arguments.json)
    {
        nlohmann::ordered_json report{{"input", input}, {"output", output}, {"input_height", image.height},
            {"input_width", image.width}, {"output_height", result.height}, {"output_width", result.width},
            {"runs", arguments.repeat}, {"median_seconds", median}, {"first_seconds", times.front()}};
        printLine(textFromJson(report));
    }
    else
    {
        char line[64];
        std::snprintf(line, sizeof(line), "%.1f ms", 1e3 * median);
        say(input + " -> " + output + ": " + sizeText(image.height, image.width) + " -> "
            + sizeText(result.height, result.width) + ", " + line);
    }
}

// Frames of 8-bit RGB, rows from top to bottom, without any header: ffmpeg's rgb24, GStreamer's RGB.
void upscaleFrames(DeferredEngine& engine, Upscaler& upscaler, Arguments const& arguments)
{
    Size const size = sizeFromText(arguments.raw, "--raw");
    Image frame = imageWithSize("--raw", size.height, size.width, 3, 8);
    upscaler.resultOf(frame, "--raw");
    engine.open(); // a camera should not wait for it
    for (long count = 0;; ++count)
    {
        std::size_t const read = readInput(frame.samples.data(), frame.samples.size());
        if (read == 0)
        {
            say(std::to_string(count) + " frames");
            return;
        }
        if (read < frame.samples.size())
        {
            throw Error("standard input",
                "ends inside frame " + std::to_string(count) + ": " + std::to_string(read) + " of "
                    + std::to_string(frame.samples.size()) + " bytes",
                "check that the frames are " + arguments.raw + " 8-bit RGB");
        }
        Image const result = upscaler.upscale(frame, "frame " + std::to_string(count));
        writeOutput(result.samples.data(), result.samples.size());
    }
}

void printInfo(Arguments const& arguments)
{
    VouchedPlan const plan = readVouchedPlan(arguments.engine, arguments.plugin);
    Manifest const& manifest = plan.manifest;
    nlohmann::ordered_json profiles = nlohmann::ordered_json::array();
    for (ProfileRecord const& profile : manifest.profiles)
    {
        profiles.push_back({{"min", profile.min}, {"opt", profile.opt}, {"max", profile.max}});
    }
    nlohmann::ordered_json report{{"engine", arguments.engine}, {"program", tensorRtDescription()},
        {"flavor", manifest.flavor}, {"tensorrt_version", manifest.tensorrtVersion}, {"traits", manifest.traits},
        {"targets", manifest.targets}, {"precision", manifest.precision}, {"scale", manifest.scale},
        {"profiles", profiles}, {"largest", largestProfile(manifest).max},
        {"plugin", manifest.plugin ? manifest.plugin->file : ""}};
    if (arguments.json)
    {
        printLine(textFromJson(report));
        return;
    }
    std::string text;
    for (auto const& [key, value] : report.items())
    {
        text += (text.empty() ? "" : "\n") + key + ": "
            + (value.is_string() ? printable(value.get<std::string>()) : textFromJson(value));
    }
    printLine(text);
}

void checkArguments(Arguments const& arguments)
{
    if (arguments.info)
    {
        return;
    }
    bool const frames = !arguments.raw.empty();
    if (frames != arguments.inputs.empty() || (!frames && arguments.output.empty())
        || (frames && !arguments.output.empty()))
    {
        throw Error("hspan-upscale", "expected pictures and --output, or --raw with frames through the pipes",
            "see --help", Code::kUSAGE);
    }
    if (frames)
    {
        sizeFromText(arguments.raw, "--raw");
        return;
    }
    if (arguments.inputs.size() > 1 && !isFolder(arguments.output))
    {
        throw Error(
            arguments.output, "is not a folder, and there are several pictures", "make the folder first", Code::kUSAGE);
    }
    std::set<std::string> targets;
    for (std::string const& input : arguments.inputs)
    {
        std::string const target = targetFor(input, arguments);
        requireWritableSuffix(target);
        requireWritableFolder(target);
        if (exists(target) && !arguments.overwrite)
        {
            throw Error(target, "exists", "give --overwrite or another name");
        }
        if (!targets.insert(target).second)
        {
            throw Error(
                target, "two of the pictures would be written there", "give one of them another name", Code::kUSAGE);
        }
    }
}

// Files first: a plan that is not what its manifest says, and pictures that cannot be read or do not fit, are errors
// before TensorRT and the GPU are started, which takes seconds.
std::unique_ptr<DeferredEngine> vouchedEngine(Arguments const& arguments)
{
    GpuOptions options;
    options.device = arguments.device;
    options.cudaGraphs = !arguments.noCudaGraph;
    options.onNotice = say;
    auto const vouched = std::make_shared<VouchedPlan>(readVouchedPlan(arguments.engine, arguments.plugin));
    return std::make_unique<DeferredEngine>(
        vouched->manifest, [vouched, options] { return openTensorRtEngine(*vouched, options); });
}

int run(Arguments const& arguments)
{
    checkArguments(arguments);
    TileChoice const choice = tileChoice(arguments);
    if (arguments.info)
    {
        printInfo(arguments);
        return 0;
    }
    std::unique_ptr<DeferredEngine> deferred = vouchedEngine(arguments);
    DeferredEngine& engine = *deferred;
    Upscaler upscaler(std::move(deferred), choice);
    upscaler.onShrink = say;
    if (!arguments.raw.empty())
    {
        upscaleFrames(engine, upscaler, arguments);
        return 0;
    }
    std::size_t failed = 0;
    for (std::string const& input : arguments.inputs)
    {
        try
        {
            upscaleFile(engine, upscaler, input, arguments);
        }
        catch (Error const& error)
        {
            if (arguments.inputs.size() == 1 || engine.failed())
            {
                throw;
            }
            ++failed;
            say(std::string("error: ") + error.what());
        }
    }
    if (failed > 0)
    {
        say("error: " + std::to_string(failed) + " of " + std::to_string(arguments.inputs.size()) + " pictures failed");
    }
    return failed > 0 ? 1 : 0;
}

} // namespace

int main(int argc, char** argv)
{
    std::signal(SIGPIPE, SIG_IGN);
    keepStandardDescriptors();
    Arguments arguments;
    CLI::App app{"Upscales pictures, or raw frames from a pipe, with an HSPAN engine."};
    app.add_option("pictures", arguments.inputs, "PNG, JPEG, PPM or PGM");
    app.add_option("-e,--engine", arguments.engine, "NAME.plan, its manifest NAME.json beside it")->required();
    app.add_option("-o,--output", arguments.output, "a picture, or an existing folder");
    app.add_option("--plugin", arguments.plugin, "the plugin library [the manifest's, beside the engine]");
    app.add_option("--tile", arguments.tile, "auto, none, one number, or HxW in input pixels")->capture_default_str();
    app.add_option("--overlap", arguments.overlap, "pixels that neighboring tiles share [chosen]")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--raw", arguments.raw, "HxW: 8-bit RGB frames from standard input to standard output");
    app.add_option("--device", arguments.device, "number of the GPU")
        ->capture_default_str()
        ->check(CLI::NonNegativeNumber);
    app.add_option("--repeat", arguments.repeat, "run each picture this many times and print the median time")
        ->capture_default_str()
        ->check(CLI::Range(1, 100000));
    app.add_flag("--overwrite", arguments.overwrite, "replace pictures that exist");
    app.add_flag("--no-cuda-graph", arguments.noCudaGraph, "launch the kernels one by one");
    app.add_flag("--info", arguments.info, "print what the engine is; needs no GPU");
    app.add_flag("--json", arguments.json, "results as JSON lines on standard output");
    try
    {
        app.parse(argc, argv);
    }
    catch (CLI::Success const& success)
    {
        return app.exit(success); // --help
    }
    catch (CLI::ParseError const& error)
    {
        say(std::string("error: ") + error.what() + "; see --help");
        return static_cast<int>(Code::kUSAGE);
    }
    try
    {
        return run(arguments);
    }
    catch (Error const& error)
    {
        say(std::string("error: ") + error.what());
        return error.code() == Code::kUSAGE ? 2 : 1;
    }
    catch (std::bad_alloc const&)
    {
        say("error: out of memory; use smaller tiles: --tile");
    }
    catch (std::exception const& error)
    {
        say(std::string("error: unexpected: ") + error.what());
    }
    return 1;
}
