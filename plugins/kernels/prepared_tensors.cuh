//! \file prepared_tensors.cuh
//! Tensors as the tiled kernels read them: token-major rows, aligned to 16 bytes.
#pragma once

#include "launchers.h"
#include "prepare.cuh"
#include "tiled_arguments.cuh"

namespace hspan
{

//! Whether a tensor of so many channels is fit as it is. What pads the channels of a score operand would enter the
//! scores; what pads values is read, but ends in no output.
template <typename T>
bool isFit(AttentionProblem const& problem, int64_t channels, bool isValue)
{
    constexpr int64_t kALIGNED{16 / static_cast<int64_t>(sizeof(T))};
    int64_t const read = isValue ? channelPitch(problem.type, channels) : channels;
    return problem.layout == TensorLayout::kCHANNELS_LAST && read % kALIGNED == 0;
}

//! Copies a tensor to token-major rows at `target`, where it is not fit as it is.
template <typename T>
cudaError_t prepare(AttentionProblem const& problem, int64_t channels, bool isValue, void const* source, void* target,
    cudaStream_t stream)
{
    if (isFit<T>(problem, channels, isValue))
    {
        return cudaSuccess;
    }
    AttentionShape const& shape = problem.shape;
    Strides const strides = stridesOf(problem, channels);
    int64_t const pitch = preparedPitch(channels);
    PrepareArguments<T> const arguments{static_cast<T const*>(source), static_cast<T*>(target), strides.batch,
        strides.channel, strides.position, shape.batch, static_cast<int32_t>(channels), static_cast<int32_t>(pitch),
        static_cast<int32_t>(shape.positions)};
    simt::Grid const grid{(shape.positions + kPREPARE_POSITIONS - 1) / kPREPARE_POSITIONS,
        shape.batch < simt::kMAX_GRID_Y ? shape.batch : simt::kMAX_GRID_Y,
        (pitch + kPREPARE_CHANNELS - 1) / kPREPARE_CHANNELS};
    return simt::launch(&prepareKernel<T>, grid, kPREPARE_THREADS, stream, arguments);
}

//! All three inputs.
template <typename T>
cudaError_t prepareAll(AttentionProblem const& problem, TiledWorkspace const& workspace,
    AttentionPointers const& pointers, cudaStream_t stream)
{
    AttentionShape const& shape = problem.shape;
    auto* const memory = static_cast<unsigned char*>(pointers.workspace);
    cudaError_t status
        = prepare<T>(problem, shape.scoreChannels, false, pointers.query, memory + workspace.query, stream);
    if (status == cudaSuccess)
    {
        status = prepare<T>(problem, shape.scoreChannels, false, pointers.key, memory + workspace.key, stream);
    }
    if (status == cudaSuccess)
    {
        status = prepare<T>(problem, shape.valueChannels, true, pointers.value, memory + workspace.value, stream);
    }
    return status;
}

//! Where the kernels find tensors and results, once they are prepared.
template <typename T>
TiledArguments<T> tiledArguments(
    AttentionProblem const& problem, TiledWorkspace const& workspace, AttentionPointers const& pointers)
{
    AttentionShape const& shape = problem.shape;
    auto* const memory = static_cast<unsigned char*>(pointers.workspace);
    bool const scoresFit = isFit<T>(problem, shape.scoreChannels, false);
    bool const valuesFit = isFit<T>(problem, shape.valueChannels, true);
    Strides const output = stridesOf(problem, shape.valueChannels);
    TiledArguments<T> arguments{};
    arguments.query = static_cast<T const*>(scoresFit ? pointers.query : memory + workspace.query);
    arguments.key = static_cast<T const*>(scoresFit ? pointers.key : memory + workspace.key);
    arguments.value = static_cast<T const*>(valuesFit ? pointers.value : memory + workspace.value);
    arguments.output = static_cast<T*>(pointers.output);
    arguments.scorePitch
        = scoresFit ? channelPitch(problem.type, shape.scoreChannels) : preparedPitch(shape.scoreChannels);
    arguments.valuePitch
        = valuesFit ? channelPitch(problem.type, shape.valueChannels) : preparedPitch(shape.valueChannels);
    arguments.outputBatch = output.batch;
    arguments.outputChannel = output.channel;
    arguments.outputPosition = output.position;
    arguments.scoreChannels = static_cast<int32_t>(shape.scoreChannels);
    arguments.valueChannels = static_cast<int32_t>(shape.valueChannels);
    arguments.positions = static_cast<int32_t>(shape.positions);
    arguments.capacity = static_cast<int32_t>(workspace.capacity);
    arguments.slotsPerImage = workspace.slotsPerImage;
    arguments.slots = workspace.slotsPerImage * shape.batch;
    arguments.results = reinterpret_cast<RowResult*>(memory + workspace.results);
    return arguments;
}

} // namespace hspan
