#include "passport.h"

#include "compatibility.h"
#include "error.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <mutex>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <unistd.h>

namespace hspan
{
namespace
{

constexpr std::uint64_t kMAX_MANIFEST_BYTES = 1 << 22;
constexpr std::uint64_t kMAX_PLUGIN_BYTES = std::uint64_t{1} << 30;
constexpr std::uint64_t kMAX_PLAN_BYTES = std::uint64_t{16} << 30;
char const* const kBUILD_AGAIN = "build the engine again on this machine with trt-hspan build";
// Stands before the plugin's description in its file, so that nothing of it need run to be described.
char const kINFO_MARKER[] = "hspan-plugin-info:";

#if defined(__aarch64__)
constexpr unsigned kPROCESSOR = EM_AARCH64;
#elif defined(__x86_64__)
constexpr unsigned kPROCESSOR = EM_X86_64;
#else
#error "only x86-64 and aarch64 have TensorRT"
#endif

// The plugin's description, a JSON object; empty when there is none.
std::string description(Bytes const& library)
{
    auto const marker
        = std::search(library.begin(), library.end(), std::begin(kINFO_MARKER), std::end(kINFO_MARKER) - 1);
    if (marker == library.end())
    {
        return "";
    }
    auto const start = marker + (sizeof(kINFO_MARKER) - 1);
    return {start, std::find(start, library.end(), std::uint8_t{0})};
}

// The ABI version in the description; 0 when there is none.
std::int64_t abiVersion(Bytes const& library)
{
    auto const document = nlohmann::json::parse(description(library), nullptr, false);
    auto const version = document.is_object() ? document.find("abi_version") : document.end();
    return document.is_object() && version != document.end() && version->is_number_integer()
        ? version->get<std::int64_t>()
        : 0;
}

std::string processor(unsigned machine)
{
    switch (machine)
    {
    case EM_X86_64: return "x86-64";
    case EM_AARCH64: return "aarch64";
    default: return "processor type " + std::to_string(machine);
    }
}

// {10, 3, 0} of "10.3.0.26": engines of one release do not depend on its build.
std::array<int, 3> release(std::string const& version)
{
    std::array<int, 3> numbers{};
    std::sscanf(version.c_str(), "%d.%d.%d", &numbers[0], &numbers[1], &numbers[2]);
    return numbers;
}

// 86 of "sm_86"; 0 of anything else.
int architectureOf(std::string const& gpu)
{
    return gpu.compare(0, 3, "sm_") == 0 ? std::atoi(gpu.c_str() + 3) : 0;
}

// Whether engines for "Ampere and later" run on a GPU such as "sm_86": from 8.0 on, but not on NVIDIA's systems on a
// chip.
bool isAmpereOrLater(std::string const& gpu)
{
    int const architecture = architectureOf(gpu);
    return architecture >= 80 && !isTegra(architecture);
}

// Loads the bytes in memory: what was hashed is what runs, whatever happens to the file.
void openLibrary(Bytes const& library, std::string const& path)
{
    int const file = ::memfd_create("hspan_plugin", MFD_CLOEXEC);
    if (file < 0)
    {
        throw errorFromErrno(path, "load", errno);
    }
    for (std::size_t at = 0; at < library.size();)
    {
        ssize_t const count = ::write(file, library.data() + at, library.size() - at);
        if (count < 0 && errno != EINTR)
        {
            int const number = errno;
            ::close(file);
            throw errorFromErrno(path, "load", number);
        }
        at += count > 0 ? static_cast<std::size_t>(count) : 0;
    }
    std::string const name = "/proc/self/fd/" + std::to_string(file);
    void* const handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); // kept open: TensorRT holds pointers into it
    char const* const reason = handle == nullptr ? ::dlerror() : nullptr;
    ::close(file);
    if (handle == nullptr)
    {
        throw Error(path, std::string("cannot be loaded: ") + (reason != nullptr ? reason : "unknown reason"),
            "build the plugin for this machine");
    }
}

void readPlugin(VouchedPlan& vouched, std::string const& pluginPath)
{
    if (!vouched.manifest.plugin || has(vouched.manifest, "embedded-plugin"))
    {
        return;
    }
    PluginRecord const& record = *vouched.manifest.plugin;
    std::string const path = pluginPath.empty() ? folderFromPath(vouched.path) + "/" + record.file : pluginPath;
    Bytes library = readFile(path, kMAX_PLUGIN_BYTES);
    if (std::string const foreign = foreignProcessor(library, path); !foreign.empty())
    {
        throw Error(
            path, "is " + foreign + ", this program is not", "give the plugin built for this machine with --plugin");
    }
    if (std::int64_t const abi = abiVersion(library); abi != record.abiVersion)
    {
        throw Error(path,
            "implements the operator's ABI version " + std::to_string(abi) + ", the engine needs "
                + std::to_string(record.abiVersion),
            kBUILD_AGAIN);
    }
    std::string const sha256 = sha256FromBytes(library.data(), library.size());
    if (sha256 != record.sha256)
    {
        throw Error(path,
            "SHA-256 is " + sha256.substr(0, 12) + "..., but the engine was built with " + record.sha256.substr(0, 12)
                + "...",
            "give that library with --plugin, or build the engine again");
    }
    vouched.pluginPath = path;
    vouched.plugin = std::move(library);
}

} // namespace

VouchedPlan readVouchedPlan(std::string const& planPath, std::string const& pluginPath)
{
    std::string const path = manifestPath(planPath);
    // The plan first: a wrong path should be reported as such, not as a missing manifest.
    Bytes plan = readFile(planPath, kMAX_PLAN_BYTES);
    Bytes const text = readFile(path, kMAX_MANIFEST_BYTES);
    Manifest manifest = manifestFromJson(std::string(text.begin(), text.end()), path);
    if (static_cast<std::int64_t>(plan.size()) != manifest.planSizeBytes)
    {
        throw Error(planPath,
            "is " + std::to_string(plan.size()) + " bytes long, " + nameFromPath(path) + " says "
                + std::to_string(manifest.planSizeBytes),
            "copy the engine again, all of its files");
    }
    std::string const sha256 = sha256FromBytes(plan.data(), plan.size());
    if (sha256 != manifest.planSha256)
    {
        throw Error(planPath,
            "SHA-256 is " + sha256.substr(0, 12) + "..., but " + nameFromPath(path) + " says "
                + manifest.planSha256.substr(0, 12) + "...",
            "the files are not of one build: copy or build the engine again");
    }
    VouchedPlan vouched{planPath, std::move(manifest), std::move(plan), "", {}};
    readPlugin(vouched, pluginPath);
    return vouched;
}

std::string foreignProcessor(Bytes const& library, std::string const& where)
{
    Elf64_Ehdr header{};
    if (library.size() < sizeof(header) || std::memcmp(library.data(), ELFMAG, SELFMAG) != 0)
    {
        throw Error(where, "is not a shared library", "name libhspan_plugin.so");
    }
    std::memcpy(&header, library.data(), sizeof(header));
    return header.e_machine == kPROCESSOR ? "" : "for " + processor(header.e_machine);
}

void loadPlugin(VouchedPlan const& plan)
{
    if (plan.plugin.empty())
    {
        return;
    }
    static std::mutex gMutex;
    static std::string gOpened; // the hash of the library that this process has opened
    std::string const& sha256 = plan.manifest.plugin->sha256;
    std::lock_guard<std::mutex> const lock(gMutex);
    if (gOpened.empty())
    {
        openLibrary(plan.plugin, plan.pluginPath);
        gOpened = sha256;
    }
    if (gOpened != sha256)
    {
        throw Error(plan.pluginPath, "this process runs another build of the plugin",
            "start another process for this engine, or build both engines with one plugin");
    }
}

void checkMachine(VouchedPlan const& plan, Machine const& machine)
{
    Manifest const& manifest = plan.manifest;
    if (manifest.flavor != machine.flavor)
    {
        throw Error(
            plan.path, "is a " + manifest.flavor + " engine, this program runs " + machine.flavor, kBUILD_AGAIN);
    }
    auto const built = release(manifest.tensorrtVersion);
    auto const here = release(machine.tensorrtVersion);
    bool const isLater = has(manifest, "version-compatible") && here > built;
    if (here != built && !isLater)
    {
        throw Error(plan.path,
            "built with " + manifest.flavor + " " + manifest.tensorrtVersion + ", here is " + machine.tensorrtVersion,
            kBUILD_AGAIN);
    }
    auto const& targets = manifest.targets;
    bool const isForAll = has(manifest, "ampere+") && isAmpereOrLater(machine.gpu)
        && std::all_of(targets.begin(), targets.end(), isAmpereOrLater);
    if (!isForAll && !targets.empty() && std::find(targets.begin(), targets.end(), machine.gpu) == targets.end())
    {
        std::string list;
        for (std::string const& target : targets)
        {
            list += (list.empty() ? "" : ", ") + target;
        }
        throw Error(plan.path, "built for " + list + ", this GPU is " + machine.gpu,
            "build it again with --target " + machine.gpu);
    }
    bool const isInside = has(manifest, "embedded-plugin"); // TensorRT stores the library as it is
    if (isInside || !plan.plugin.empty())
    {
        std::string const& where = isInside ? plan.path : plan.pluginPath;
        CompiledCode const code = codeFromDescription(description(isInside ? plan.plan : plan.plugin), where);
        requireRuns(code, architectureOf(machine.gpu), machine.cudaDriver, where);
    }
}

} // namespace hspan
