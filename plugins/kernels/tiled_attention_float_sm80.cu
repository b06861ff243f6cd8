#include "dense_float.cuh"
#include "fma_tile.cuh"
#include "tiled_attention.cuh"

namespace hspan
{

template <>
cudaError_t launchDense(TiledArguments<float> const& arguments, int64_t slots, cudaStream_t stream)
{
    simt::Grid const grid{
        slots / kDENSE_FLOAT_ROWS, 1, (arguments.valueChannels + kDENSE_FLOAT_SLICE - 1) / kDENSE_FLOAT_SLICE};
    return simt::launch(&denseFloatKernel<float>, grid, kDENSE_FLOAT_THREADS, stream, arguments);
}

cudaError_t launchTiledFloat(AttentionProblem const& problem, TileShape shape, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream)
{
    switch (shape)
    {
    case TileShape::k32x64: return launchTiles<float, FmaTile<2, 64>>(problem, capacity, pointers, stream);
    case TileShape::k64x64: return launchTiles<float, FmaTile<4, 64>>(problem, capacity, pointers, stream);
    case TileShape::k128x64: break; // its stage exceeds 48 KiB
    }
    return cudaErrorInvalidValue;
}

} // namespace hspan
