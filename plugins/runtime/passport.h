// Is this engine what its manifest says, and can it run here? Every check comes before a byte of it is executed.
#pragma once

#include "files.h"
#include "manifest.h"

#include <string>

namespace hspan
{

struct VouchedPlan
{
    std::string path;
    Manifest manifest;
    Bytes plan;
};

// What this machine has, for checkMachine.
struct Machine
{
    std::string flavor;          // "tensorrt" or "tensorrt-rtx", as linked
    std::string tensorrtVersion; // such as "10.3.0"
    std::string gpu;             // such as "sm_87"
};

// Reads the plan and its manifest. Throws Error: missing, truncated, another size or SHA-256 than the manifest's.
VouchedPlan readVouchedPlan(std::string const& planPath);

// The plugin library that the manifest names, from beside the plan unless a path is given: its SHA-256 is compared and
// the very bytes that were hashed are loaded. Does nothing for an engine without a plugin.
// Throws Error: missing, another library, another ABI version, for another kind of processor.
void loadVouchedPlugin(Manifest const& manifest, std::string const& planPath, std::string const& pluginPath);

// Throws Error when flavour, version (major.minor.patch) or compute capability are not the engine's.
void checkMachine(VouchedPlan const& plan, Machine const& machine);

// "for aarch64" where an ELF file is not for this processor; empty where it is. Throws Error: not an ELF library.
std::string foreignProcessor(Bytes const& library, std::string const& where);

} // namespace hspan
