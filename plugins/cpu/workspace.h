//! \file workspace.h
//! The memory of one thread, and where everything lies in it.
#pragma once

#include "packing.h"

namespace hspan::cpu
{
namespace
{

constexpr int64_t kROWS = 6;             //!< query rows of a register tile
constexpr int64_t kWIDTH = 2 * kLANES;   //!< keys, or value channels, of a register tile
constexpr int64_t kGROUP = 8;            //!< panels of keys that share one vector of maxima
constexpr int64_t kPACKED = 8;           //!< panels of keys that are packed at a time
constexpr int64_t kDEPTH = 1024;         //!< value rows that are packed at a time for the matrix product
constexpr int64_t kLEAST_LIST = 3 << 14; //!< entries of the lists
constexpr int64_t kMOST_ROWS = 4096;     //!< rows that wait in the lists, at most
constexpr int64_t kLEAST_SPAN = 256;     //!< keys that are packed at a time for exact scores, at least
constexpr uint64_t kALIGNMENT = 64;

//! Properties of a row whose scores are to be computed again, in double.
struct Refinement
{
    bool isNeeded;
    float bound;  //!< not above the threshold of the shifted scores, as floats
    double shift; //!< subtracted from the row's scores
};

//! A row that waits in the lists for its weighted sum.
struct ListedRow
{
    int64_t begin;
    int32_t row;
    int32_t count;
    int32_t refined; //!< entries whose exact scores are there; -1 when the weights are
    float bound;     //!< as in Refinement
    double shift;    //!< as in Refinement
};

//! A row of the tile on the dense route.
struct DenseRow
{
    int64_t row;
    double bound; //!< not above its threshold
    Refinement refinement;
};

struct Workspace
{
    float* query;  //!< [tile rows / kROWS][channels][kROWS]
    float* panel;  //!< [kPACKED][channels][kWIDTH]
    float* scores; //!< [tile rows][stride]; later weights, for dense rows
    float* maxima; //!< [tile rows][groups][kLANES]
    float* slab;   //!< values for gathering [positions][kLANES]; keys [slices][span][kLANES]; values [kDEPTH][kWIDTH]
    double* queryRow; //!< [slices * kLANES] of a row that is refined
    TwoVec* totals;   //!< [tile rows][2]
    float* listed;    //!< scores, later weights
    int32_t* index;   //!< their keys
    ListedRow* rows;  //!< [kMOST_ROWS]
    DenseRow* dense;  //!< [tile rows]
    int64_t stride;   //!< floats from one row of scores to the next
    int64_t panels;   //!< of keys
    int64_t groups;   //!< of panels
    int64_t slices;   //!< of kLANES score channels
    int64_t span;     //!< keys that fit into the slab at a time
    int64_t listSize; //!< entries of the lists
    int64_t listUsed;
    int64_t rowsUsed;
    bool waitsForScores; //!< whether a listed row is to be refined
    uint64_t bytes;
};

template <typename T>
void place(T*& pointer, int64_t count, char* base, uint64_t& bytes)
{
    pointer = reinterpret_cast<T*>(base + bytes);
    bytes += (static_cast<uint64_t>(count) * sizeof(T) + kALIGNMENT - 1) / kALIGNMENT * kALIGNMENT;
}

//! Where everything lies in memory that starts at `base`.
Workspace workspaceAt(Problem const& problem, char* base)
{
    Workspace w{};
    w.panels = (problem.positions + kWIDTH - 1) / kWIDTH;
    w.groups = (w.panels + kGROUP - 1) / kGROUP;
    w.stride = w.panels * kWIDTH;
    // Rows that start at the same offset in a page would compete for the same lines of the cache.
    w.stride += w.stride % 1024 == 0 ? kWIDTH : 0;
    w.slices = (problem.scoreChannels + kLANES - 1) / kLANES;
    int64_t const leastSpan = lesser(problem.positions, kLEAST_SPAN);
    int64_t slabRows = greater(problem.positions, w.slices * leastSpan);
    slabRows = greater(slabRows, kDEPTH * kWIDTH / kLANES);
    w.span = slabRows / w.slices;
    // A whole row fits, whatever its support.
    w.listSize = greater(problem.positions, kLEAST_LIST) + kLANES;
    place(w.query, problem.tileRows * problem.scoreChannels, base, w.bytes);
    place(w.panel, problem.packedKey == nullptr ? kPACKED * problem.scoreChannels * kWIDTH : 0, base, w.bytes);
    place(w.scores, problem.tileRows * w.stride, base, w.bytes);
    place(w.maxima, problem.tileRows * w.groups * kLANES, base, w.bytes);
    place(w.slab, slabRows * kLANES, base, w.bytes);
    place(w.queryRow, w.slices * kLANES, base, w.bytes);
    place(w.totals, problem.tileRows * 2, base, w.bytes);
    place(w.listed, w.listSize, base, w.bytes);
    place(w.index, w.listSize, base, w.bytes);
    place(w.rows, kMOST_ROWS, base, w.bytes);
    place(w.dense, problem.tileRows, base, w.bytes);
    return w;
}

//! A panel of keys, [channels][kWIDTH]; valid until the next call. Panels are taken in order, from the first.
template <typename T>
float const* panelOfKeys(Problem const& problem, Workspace& w, int64_t panel)
{
    if (problem.packedKey != nullptr)
    {
        return problem.packedKey + panel * problem.scoreChannels * kWIDTH;
    }
    if (panel % kPACKED == 0)
    {
        packPanels<kWIDTH, kPACKED>(
            Tensor<T>(problem.key), problem.scoreChannels, panel * kWIDTH, problem.positions, w.panel);
    }
    return w.panel + panel % kPACKED * problem.scoreChannels * kWIDTH;
}

} // namespace
} // namespace hspan::cpu
