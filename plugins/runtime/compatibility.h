// Whether compiled CUDA code runs on a GPU under a driver. trt_hspan/native/compatibility.py decides the same in
// Python; tests/native/compatibility.json holds the cases of both.
#pragma once

#include "files.h"

#include <string>
#include <vector>

namespace hspan
{

// The CUDA code in a library: compute capabilities as 86 for 8.6, versions as CUDA has them, 12060 for 12.6.
struct CompiledCode
{
    std::vector<int> cubins;
    std::vector<int> ptx;
    int cuda = 0;     // of the compiler and of CUDA's runtime inside
    int ptxNeeds = 0; // the least CUDA whose drivers compile its PTX
};

enum class Verdict
{
    kMACHINE_CODE,
    kPTX,        // compiled by the driver at the first launch
    kOLD_DRIVER, // CUDA's runtime refuses it: error 35
    kNEW_PTX,    // error 222
    kNO_CODE,    // error 209
};

// Systems on a chip: their machine code and that of desktop GPUs are not interchangeable.
bool isTegra(int architecture);

// driver: cudaDriverGetVersion's number.
Verdict verdict(CompiledCode const& code, int architecture, int driver);

// From the description in a plugin library, a JSON object. Throws Error: fields are missing or make no sense.
CompiledCode codeFromDescription(std::string const& description, std::string const& where);

// Throws Error, in one line with the way out, unless the code runs.
void requireRuns(CompiledCode const& code, int architecture, int driver, std::string const& where);

} // namespace hspan
