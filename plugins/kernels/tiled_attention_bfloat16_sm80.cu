#include "tiled_attention.cuh"

namespace hspan
{

cudaError_t launchTiledBFloat16(AttentionProblem const& problem, TileShape shape, int32_t capacity,
    AttentionPointers const& pointers, cudaStream_t stream)
{
    return launchTiled<simt::BFloat16>(problem, shape, capacity, pointers, stream);
}

} // namespace hspan
