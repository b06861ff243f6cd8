#include "compatibility.h"

#include "error.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace hspan
{
namespace
{

constexpr int kMAJOR = 1000;
constexpr int kMINOR = 10;

bool cubinRuns(int cubin, int architecture)
{
    bool const laterMinor = cubin / 10 == architecture / 10 && cubin < architecture;
    return cubin == architecture || (laterMinor && !isTegra(cubin) && !isTegra(architecture));
}

// "13.0.88" as 13000.
int cudaFromText(std::string const& text)
{
    std::size_t end = 0;
    int const major = std::stoi(text, &end);
    return major * kMAJOR + std::stoi(text.substr(end + 1)) * kMINOR;
}

std::string textFromCuda(int version)
{
    return std::to_string(version / kMAJOR) + "." + std::to_string(version % kMAJOR / kMINOR);
}

// The first CUDA that compiles a PTX ISA version: 9.x is 13.x, 8.x is 12.x up to 8.5 (PTX ISA, "PTX Release History").
int cudaForPtx(int isa)
{
    int const minor = isa % kMAJOR / kMINOR;
    bool const skipped = isa / kMAJOR == 8 && minor > 5; // CUDA 12.6 has the PTX of 12.5
    return isa + 4 * kMAJOR + (skipped ? kMINOR : 0);
}

std::string leastDriver(int cuda)
{
    switch (cuda / kMAJOR)
    {
    case 12: return "install NVIDIA driver 525 or newer";
    case 13: return "install NVIDIA driver 580 or newer";
    default: return "install an NVIDIA driver of CUDA " + std::to_string(cuda / kMAJOR);
    }
}

} // namespace

bool isTegra(int architecture)
{
    static constexpr int kTEGRA[] = {53, 62, 72, 87, 101, 110};
    return std::find(std::begin(kTEGRA), std::end(kTEGRA), architecture) != std::end(kTEGRA);
}

Verdict verdict(CompiledCode const& code, int architecture, int driver)
{
    if (code.cuda / kMAJOR > driver / kMAJOR)
    {
        return Verdict::kOLD_DRIVER;
    }
    if (std::any_of(code.cubins.begin(), code.cubins.end(), [=](int cubin) { return cubinRuns(cubin, architecture); }))
    {
        return Verdict::kMACHINE_CODE;
    }
    if (std::none_of(code.ptx.begin(), code.ptx.end(), [=](int ptx) { return ptx <= architecture; }))
    {
        return Verdict::kNO_CODE;
    }
    return code.ptxNeeds <= driver ? Verdict::kPTX : Verdict::kNEW_PTX;
}

CompiledCode codeFromDescription(std::string const& description, std::string const& where)
{
    try
    {
        auto const fields = nlohmann::json::parse(description);
        CompiledCode code;
        code.cubins = fields.at("cubin_architectures").get<std::vector<int>>();
        code.ptx = fields.at("ptx_architectures").get<std::vector<int>>();
        code.cuda = cudaFromText(fields.at("cuda_version").get<std::string>());
        code.ptxNeeds = cudaForPtx(cudaFromText(fields.at("ptx_isa_version").get<std::string>()));
        return code;
    }
    catch (std::exception const&) // of the JSON library, or a version that is none
    {
        throw Error(where, "its description is incomplete", "build the plugin again: trt-hspan plugin build");
    }
}

void requireRuns(CompiledCode const& code, int architecture, int driver, std::string const& where)
{
    std::string const gpu = "sm_" + std::to_string(architecture);
    std::string const rebuild = "trt-hspan plugin build --arch " + std::to_string(architecture)
        + ", and the engine again with trt-hspan build";
    std::string const here = "this driver runs CUDA up to " + textFromCuda(driver);
    switch (verdict(code, architecture, driver))
    {
    case Verdict::kMACHINE_CODE:
    case Verdict::kPTX: return;
    case Verdict::kOLD_DRIVER:
        throw Error(where, "was compiled with CUDA " + textFromCuda(code.cuda) + ", " + here, leastDriver(code.cuda));
    case Verdict::kNEW_PTX:
        throw Error(where,
            "has no machine code for " + gpu + ", and its PTX needs a driver of CUDA " + textFromCuda(code.ptxNeeds)
                + "; " + here,
            "install a newer NVIDIA driver, or " + rebuild);
    case Verdict::kNO_CODE: throw Error(where, "built without " + gpu, rebuild);
    }
}

} // namespace hspan
