//! \file tiled_arguments.cuh
//! Arguments of the tiled kernels, and how rows are numbered.
//!
//! The rows of all images are numbered as one line of slots, each image padded to a multiple of kSLOT_ALIGNMENT, so
//! that no tile spans two images. Lists and results exist for a chunk of slots at a time.
#pragma once

#include <cstdint>

#include <simt.h>

#include "exact_threshold.cuh"

namespace hspan
{

constexpr int32_t kSLOT_ALIGNMENT{128};

constexpr int32_t kMAX_VALUE_CHANNELS{256};

//! Query rows of a matrix product; a warp owns one or two times as many.
constexpr int32_t kROWS_OF_WARP{16};

template <typename T>
struct TiledArguments
{
    T const* query; //!< (N, L, scorePitch)
    T const* key;   //!< (N, L, scorePitch)
    T const* value; //!< (N, L, valuePitch)
    T* output;
    int64_t scorePitch;    //!< a multiple of 16 bytes
    int64_t valuePitch;    //!< a multiple of 16 bytes
    int64_t outputBatch;   //!< elements from one image of the output to the next
    int64_t outputChannel; //!< from one channel to the next
    int64_t outputPosition;
    int32_t scoreChannels;
    int32_t valueChannels;
    int32_t positions;
    int32_t capacity; //!< entries of a row's list
    int64_t slotsPerImage;
    int64_t firstSlot;  //!< of the chunk
    int64_t slots;      //!< in all images
    RowResult* results; //!< one per slot of the chunk
};

//! Where a block's tile of rows lies.
struct TilePlace
{
    int64_t slot; //!< first slot, counted in the chunk
    int64_t image;
    int64_t row; //!< first row in the image
};

template <typename T>
HSPAN_DEVICE TilePlace placeOf(TiledArguments<T> const& arguments, int32_t rows)
{
    int64_t const slot = simt::blockX() * rows;
    int64_t const line = arguments.firstSlot + slot;
    int64_t const image = line / arguments.slotsPerImage;
    return {slot, image, line - image * arguments.slotsPerImage};
}

} // namespace hspan
