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
    std::string pluginPath; // empty for an engine that needs no library
    Bytes plugin;
};

// What this machine has, for checkMachine.
struct Machine
{
    std::string flavor;          // "tensorrt" or "tensorrt-rtx", as linked
    std::string tensorrtVersion; // such as "10.3.0"
    std::string gpu;             // such as "sm_87"
    int cudaDriver = 0;          // cudaDriverGetVersion's number, such as 12060
};

// Reads the plan, its manifest and the plugin library that the manifest names, from beside the plan unless a path is
// given. Nothing is executed.
// Throws Error: missing; truncated; another size, SHA-256 or ABI version than the manifest's; a plugin for another kind
// of processor.
VouchedPlan readVouchedPlan(std::string const& planPath, std::string const& pluginPath);

// Loads the plugin library, the very bytes that were checked, once in a process; it registers itself with TensorRT.
// Does nothing for an engine without one, or with one inside. Throws Error: the library cannot be loaded, or the
// process has loaded another one.
void loadPlugin(VouchedPlan const& plan);

// Throws Error when flavor, version (major.minor.patch) or compute capability are not the engine's, or what its traits
// let it run with, or the plugin's CUDA, PTX and machine code are not for this driver and GPU.
void checkMachine(VouchedPlan const& plan, Machine const& machine);

// "for aarch64" where an ELF file is not for this processor; empty where it is. Throws Error: not an ELF library.
std::string foreignProcessor(Bytes const& library, std::string const& where);

} // namespace hspan
