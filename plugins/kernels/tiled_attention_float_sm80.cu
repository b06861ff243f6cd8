#include "fma_tile.cuh"
#include "tiled_attention.cuh"

namespace hspan
{

cudaError_t launchTiledFloat(
    AttentionProblem const& problem, int32_t capacity, AttentionPointers const& pointers, cudaStream_t stream)
{
    // Rows below which small tiles spread over more of the GPU.
    constexpr int64_t kFEW_ROWS{4096};
    bool const isSmall = problem.shape.batch * problem.shape.positions <= kFEW_ROWS;
    return isSmall ? launchTiles<FmaTile<2, 64>>(problem, capacity, pointers, stream)
                   : launchTiles<FmaTile<4, 64>>(problem, capacity, pointers, stream);
}

} // namespace hspan
