// What the double of TensorRT needs of the double of CUDA: work on a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

// Queues work as a kernel launch would: it runs when something waits for the stream, or with a captured graph.
extern "C" void hspanDoubleLaunch(cudaStream_t stream, std::function<void()> const* work);
