//! \file problem.h
//! What the entry point hands to the kernel of one instruction set.
#pragma once

#include "hspan_cpu.h"

namespace hspan::cpu
{

//! One image of the batch, and its properties, computed before the threads start.
struct Problem
{
    HspanCpuTensor query; //!< data of this image
    HspanCpuTensor key;
    HspanCpuTensor value;
    HspanCpuTensor output;
    int64_t scoreChannels;
    int64_t valueChannels;
    int64_t positions;
    int32_t type;
    int32_t route;
    int64_t tileRows;      //!< a multiple of the register tile's rows
    int64_t gatherLimit;   //!< candidates of a row, at most
    float* packedKey;      //!< all keys in panels, or null: each tile packs its own
    float largestKey;      //!< greatest |key|; infinite when there is an infinity or a NaN
    double largestKeyNorm; //!< greatest |key position|_2 among the finite ones
    bool valueIsFinite;
    int64_t nextTile; //!< the next tile that nobody works on; changed atomically
};

//! The same algorithm, compiled for one instruction set.
struct Kernel
{
    char const* name;
    int64_t (*tileRows)(int64_t positions);         //!< the default
    int64_t (*rowStep)();                           //!< tileRows must be a multiple
    bool (*wantsPackedKey)(Problem const& problem); //!< whether packing all keys once pays
    uint64_t (*packedKeyBytes)(Problem const& problem);
    uint64_t (*workspaceBytes)(Problem const& problem); //!< of one thread, aligned to 64
    void (*prepare)(Problem& problem);                  //!< fills packedKey, largestKey, largestKeyNorm, valueIsFinite
    void (*run)(Problem& problem, void* workspace);     //!< takes tiles until none is left
};

//! Kernels that were compiled for instruction sets above the baseline.
extern Kernel const kAVX512_KERNEL;
extern Kernel const kAVX2_KERNEL;
//! For every processor of the architecture that the library was compiled for.
extern Kernel const kBASELINE_KERNEL;

} // namespace hspan::cpu
