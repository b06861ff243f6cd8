//! \file run_case.cpp
//! Runs the product's launcher on a case, under several schedules, and judges what came out.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "case.h"
#include "fake_cuda.h"
#include "launchers.h"
#include "machine.h"

namespace ptx
{

using hspan::ElementType;
using hspan::TensorLayout;

namespace
{

//! One way to run a case.
struct Variant
{
    std::string name;
    Options options;
    bool keepsBits;               //!< the output must be that of the first run
    int32_t multiprocessors{108}; //!< by which the work is split
};

std::vector<Variant> variantsOf(Case const& testCase, Effort effort)
{
    std::vector<Variant> variants{{"ascending", {}, true}};
    auto const add = [&](char const* name, bool keepsBits) -> Options&
    {
        variants.push_back({name, {}, keepsBits});
        variants.back().options.checkRaces = keepsBits;
        return variants.back().options;
    };
    if (effort == Effort::kONCE)
    {
        return variants;
    }
    Options& descending = add("descending", true);
    descending.blocks = descending.warps = descending.lanes = Order::kDESCENDING;
    variants.back().multiprocessors = 1;
    Options& random = add("random", true);
    random.blocks = random.warps = random.lanes = Order::kRANDOM;
    random.turn = 100;
    random.copiesLandAtOnce = true;
    random.isReciprocalGreater = true;
    variants.back().multiprocessors = 7;
    random.seed = 7;
    if (effort == Effort::kALL)
    {
        add("fused", false).isFused = true;
        if (testCase.isTiled())
        {
            // Of FP32, tensor cores only find out which scores to compute: no sum of theirs may show.
            bool const keepsBits = testCase.type == ElementType::kFLOAT;
            add("FP32 sums", keepsBits).matrixSums = MatrixSums::kFP32;
            add("truncated sums", keepsBits).matrixSums = MatrixSums::kTRUNCATED;
        }
    }
    return variants;
}

//! The tensor in device memory. Whatever pads its channels is there, and NaN.
void* upload(Case const& testCase, Tensor const& tensor, char const* name)
{
    Strides const strides = stridesOf(testCase, tensor.channels);
    size_t const bytes = testCase.elementBytes();
    auto* const memory = static_cast<uint8_t*>(allocate(static_cast<size_t>(strides.total) * bytes, name, true));
    markWritten(memory, static_cast<size_t>(strides.total) * bytes);
    for (int32_t image = 0; image < tensor.images; ++image)
    {
        for (int32_t position = 0; position < tensor.positions; ++position)
        {
            for (int32_t channel = 0; channel < tensor.channels; ++channel)
            {
                int64_t const at = image * strides.image + channel * strides.channel + position * strides.position;
                uint32_t const bits
                    = bitsFromFloat(testCase.type, static_cast<float>(tensor.at(image, position, channel)));
                memcpy(memory + static_cast<size_t>(at) * bytes, &bits, bytes);
            }
        }
    }
    return memory;
}

//! A workspace of which only the parts that the launcher lays out exist.
void* makeWorkspace(Case const& testCase)
{
    hspan::AttentionProblem const problem = testCase.problem();
    size_t const stated = hspan::attentionWorkspaceBytes(problem, testCase.config);
    if (!testCase.isTiled())
    {
        return allocateParts(stated, {{0, stated, "workspace"}});
    }
    hspan::TiledWorkspace const w = hspan::tiledWorkspace(problem, testCase.capacity);
    auto const part = [](int64_t offset, int64_t bytes, char const* name)
    { return Part{static_cast<size_t>(offset), static_cast<size_t>(bytes), std::string("workspace.") + name}; };
    int64_t const positions = int64_t{testCase.images} * testCase.positions;
    int64_t const rows = positions * static_cast<int64_t>(testCase.elementBytes());
    int64_t const coarse = testCase.type == ElementType::kFLOAT ? positions : 0;
    int64_t const tiles = (testCase.positions + hspan::kKEYS_OF_TILE - 1) / hspan::kKEYS_OF_TILE;
    return allocateParts(testCase.capacity == 0 ? stated : static_cast<size_t>(w.bytes),
        {part(w.query, rows * hspan::preparedPitch(testCase.scoreChannels), "query"),
            part(w.key, rows * hspan::preparedPitch(testCase.scoreChannels), "key"),
            part(w.value, rows * hspan::preparedPitch(testCase.valueChannels), "value"),
            part(w.results, w.chunkSlots * hspan::kRESULT_BYTES, "results"),
            part(w.bounds, w.chunkSlots * hspan::kROW_BOUND_BYTES, "bounds"),
            part(w.maxima, w.chunkSlots * std::min(8 * tiles, hspan::kMOST_MAXIMA) * 4, "maxima"),
            part(w.counts, w.chunkSlots * std::min(tiles, hspan::kMOST_SPLITS) * 4, "counts"),
            part(w.lists, w.chunkSlots * w.capacity * hspan::kLIST_ENTRY_BYTES, "lists"),
            part(w.keyBounds, hspan::keyBoundBytes(problem), "keyBounds"),
            part(w.centers, coarse > 0 ? 4 * testCase.images * hspan::preparedPitch(testCase.scoreChannels) : 0,
                "centers"),
            part(w.centeredSquares, hspan::keyBoundBytes(problem), "centeredSquares"),
            part(w.keyLosses, hspan::keyBoundBytes(problem), "keyLosses"),
            part(w.coarseQuery, coarse * hspan::preparedPitch(testCase.scoreChannels) * 2, "coarseQuery"),
            part(w.coarseKey, coarse * hspan::preparedPitch(testCase.scoreChannels) * 2, "coarseKey"),
            part(w.coarseRows, coarse * hspan::kCOARSE_ROW_BYTES, "coarseRows")});
}

//! One run.
struct Result
{
    std::vector<uint8_t> output;
    std::string verdict{"ok"};
};

Result launch(Case const& testCase, Inputs const& inputs)
{
    freeAll();
    machine.findings.clear();
    machine.reports = 0;
    hspan::AttentionPointers pointers{};
    pointers.query = upload(testCase, inputs.query, "query");
    pointers.key = upload(testCase, inputs.key, "key");
    pointers.value = upload(testCase, inputs.value, "value");
    pointers.workspace = makeWorkspace(testCase);
    auto const bytes = static_cast<size_t>(stridesOf(testCase, testCase.valueChannels).total) * testCase.elementBytes();
    auto* const output = static_cast<uint8_t*>(allocate(bytes, "output", false));
    pointers.output = output;
    cudaError_t const status
        = hspan::launchWithCapacity(testCase.problem(), testCase.config, testCase.capacity, pointers, nullptr);
    Result result{{output, output + bytes}};
    if (status != cudaSuccess)
    {
        result.verdict = "LAUNCH FAILED, error " + std::to_string(static_cast<int32_t>(status));
    }
    else if (!isWritten(output, bytes))
    {
        result.verdict = "NOT WRITTEN";
    }
    if (!machine.findings.empty())
    {
        auto const& [key, finding] = *machine.findings.begin();
        result.verdict = std::to_string(machine.findings.size()) + " findings, the first: " + key + ", "
            + std::to_string(finding.count) + " times; " + finding.first;
    }
    return result;
}

double typeRounding(ElementType type)
{
    return type == ElementType::kFLOAT ? 0 : type == ElementType::kHALF ? 0x1p-11 : 0x1p-8;
}

//! Holds an output to its reference; the greatest error over its bound goes to `ofBound`.
std::string judge(Case const& testCase, Reference const& reference, std::vector<uint8_t> const& output, double& ofBound)
{
    Strides const strides = stridesOf(testCase, testCase.valueChannels);
    int64_t const pitch
        = testCase.layout == TensorLayout::kLINEAR ? testCase.valueChannels : strides.position; // padding included
    double const least = testCase.type == ElementType::kHALF ? 3e-8 : 1e-38; // half the least subnormal number
    size_t const bytes = testCase.elementBytes();
    for (int64_t row = 0; row < int64_t{testCase.images} * testCase.positions; ++row)
    {
        int64_t const first = row / testCase.positions * strides.image + row % testCase.positions * strides.position;
        for (int64_t channel = 0; channel < pitch; ++channel)
        {
            uint32_t bits = 0;
            memcpy(&bits, &output[static_cast<size_t>(first + channel * strides.channel) * bytes], bytes);
            double const actual = static_cast<double>(floatFromBits(testCase.type, bits));
            std::string const where = ": row " + std::to_string(row) + " channel " + std::to_string(channel) + ": "
                + std::to_string(actual);
            if (channel >= testCase.valueChannels)
            {
                if (bits != 0)
                {
                    return "PADDING IS NOT ZERO" + where;
                }
                continue;
            }
            auto const index = static_cast<size_t>(row * testCase.valueChannels + channel);
            double const expected = reference.outputs[index];
            std::string const wrong = where + " instead of " + std::to_string(expected);
            if (!std::isfinite(expected))
            {
                if (expected != expected ? actual == actual : actual != expected)
                {
                    return "WRONG SPECIAL VALUE" + wrong;
                }
                continue;
            }
            double const tolerance = reference.tolerances[index];
            double const bound = tolerance + typeRounding(testCase.type) * (std::fabs(expected) + tolerance) + least;
            double const error = std::fabs(actual - expected);
            ofBound = std::max(ofBound, error / bound);
            if (!(error <= bound))
            {
                return "WRONG" + wrong;
            }
        }
    }
    return "ok";
}

} // namespace

std::string Case::name() const
{
    char const* const types[] = {"FP32", "FP16", "BF16"};
    char text[200];
    snprintf(text, sizeof text, "%-12s %s %-13s N%d C%-3d D%-3d L%-4d %-10s capacity %-3d",
        hspan::attentionConfigName(config), types[static_cast<int32_t>(type)],
        layout == TensorLayout::kLINEAR ? "linear" : "channels-last", images, scoreChannels, valueChannels, positions,
        regime.c_str(), capacity);
    return text;
}

Strides stridesOf(Case const& testCase, int32_t channels)
{
    int64_t const positions = testCase.positions;
    bool const isLinear = testCase.layout == TensorLayout::kLINEAR;
    int64_t const pitch = isLinear ? channels : hspan::channelPitch(testCase.type, channels);
    return {pitch * positions, isLinear ? positions : 1, isLinear ? 1 : pitch, testCase.images * pitch * positions};
}

Outcome runCase(Case const& testCase, Effort effort)
{
    Inputs const inputs = inputsOf(testCase);
    Reference const reference = referenceOf(testCase, inputs);
    Outcome outcome;
    uint64_t const before = machine.warpInstructions;
    std::vector<uint8_t> first;
    for (Variant const& variant : variantsOf(testCase, effort))
    {
        machine.options = variant.options;
        multiprocessors = variant.multiprocessors;
        auto const start = std::chrono::steady_clock::now();
        Result const result = launch(testCase, inputs);
        outcome.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        ++outcome.runs;
        std::string verdict = result.verdict;
        bool const isFirst = outcome.runs == 1;
        if (verdict == "ok" && (isFirst || !variant.keepsBits))
        {
            verdict = judge(testCase, reference, result.output, outcome.ofBound);
        }
        else if (verdict == "ok" && result.output != first)
        {
            verdict = "OTHER BITS THAN IN THE FIRST RUN";
        }
        if (verdict != "ok" && outcome.verdict == "ok")
        {
            outcome.verdict = variant.name + ": " + verdict;
        }
        first = isFirst ? result.output : first;
    }
    outcome.warpInstructions = machine.warpInstructions - before;
    return outcome;
}

} // namespace ptx
