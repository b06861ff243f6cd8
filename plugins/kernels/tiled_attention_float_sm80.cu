#include "tiled_attention.cuh"

namespace hspan
{

cudaError_t launchTiledFloat(AttentionProblem const& problem, TileShape shape, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream)
{
    return launchTiled<float>(problem, shape, capacity, pointers, stream);
}

} // namespace hspan
