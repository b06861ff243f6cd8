//! \file look_arguments.cuh
//! Arguments of the two looks: what TiledArguments says of tensors and rows, and how keys are divided.
//!
//! Keys come in tiles of kTILE_KEYS. A group of tiles has four or eight maxima in every row, a split is a range of
//! groups that blocks of its own look at, and has its share of a row's list. No result depends on the splits.
#pragma once

#include <cstdint>

#include <simt.h>

#include "tiled_arguments.cuh"

namespace hspan
{

constexpr int32_t kTILE_KEYS{64};

//! Of a row: a set of its scores that contains the greatest, and whose threshold is therefore near the row's.
constexpr int32_t kMAX_MAXIMA{576};

//! Splits of the keys whose lists a row may have: a lane reads the length of each.
constexpr int32_t kMAX_SPLITS{simt::kWARP_SIZE};

//! A candidate of a row.
struct alignas(8) ListEntry
{
    float score;
    int32_t key;
};

//! What the maxima of a row tell. Of FP32 rows they are coarse scores.
struct alignas(8) RowBound
{
    float maximum; //!< of all scores; NaN or infinite: the row has no sparsemax
    float bound;   //!< scores at or below it are no candidates; infinite where there is no threshold
};

//! What is known of a row's coarse scores (coarse_copies.cuh), for FP32.
struct alignas(16) CoarseRow
{
    float toScore; //!< a power of two: this times a coarse score, and the shift, is nearly the score
    float error;   //!< that coarse scores may have, in their units; infinite: nothing is known of them
    float shift;   //!< the product with the center of the keys
    float grid;    //!< Refinement::grid
};

//! How one of the looks divides the keys.
struct KeySplit
{
    int32_t count; //!< splits
    int32_t tiles; //!< of a split, whole groups; the last split may have fewer
};

template <typename T>
struct LookArguments
{
    TiledArguments<T> tensors;
    int32_t tiles;           //!< of keys
    int32_t tilesOfGroup;    //!< that share maxima
    int32_t maximaOfRow;     //!< a multiple of 4
    int32_t capacityOfSplit; //!< entries in a split's share of a list
    KeySplit maximaSplit;
    KeySplit listSplit;
    float* maxima;               //!< (rows of the chunk, maximaOfRow)
    RowBound* bounds;            //!< one per row of the chunk
    CoarseRow const* coarseRows; //!< (N, L), for FP32
    int32_t* counts;  //!< (rows of the chunk, splits): candidates; more than the share has entries for: overflown
    ListEntry* lists; //!< (rows of the chunk, capacity): the splits' shares one after the other
};

} // namespace hspan
