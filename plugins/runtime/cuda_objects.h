// CUDA's objects with owners: a stream, memory on both sides, captured runs. Knows nothing of TensorRT.
#pragma once

#include "manifest.h"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>

namespace hspan
{

// Throws Error unless the status is cudaSuccess; kOUT_OF_MEMORY when an allocation failed.
void check(cudaError_t status, std::string const& what);

struct DeviceFree
{
    void operator()(void* pointer) const noexcept
    {
        cudaFree(pointer);
    }
};
struct HostFree
{
    void operator()(void* pointer) const noexcept
    {
        cudaFreeHost(pointer);
    }
};

class Stream
{
public:
    // A blocking stream's wait gives the processor away instead of spinning: for GPUs that share power with it.
    explicit Stream(bool blocking);
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    ~Stream();

    cudaStream_t get() const
    {
        return mStream;
    }
    void wait(std::string const& what);

private:
    cudaStream_t mStream = nullptr;
    cudaEvent_t mDone = nullptr; // of a blocking stream
};

// Memory for one tensor on both sides. On an integrated GPU, which shares the memory, the two are one: no copies.
class Buffer
{
public:
    explicit Buffer(bool shared);

    // Returns whether the addresses changed.
    bool reserve(std::size_t bytes);

    float* host() const
    {
        return static_cast<float*>(mHost.get());
    }
    void* device() const
    {
        return mShared ? mMapped : mDevice.get();
    }

    void upload(std::size_t bytes, cudaStream_t stream) const;
    void download(std::size_t bytes, cudaStream_t stream) const;

private:
    bool mShared;
    std::size_t mBytes = 0;
    std::unique_ptr<void, HostFree> mHost;
    std::unique_ptr<void, DeviceFree> mDevice;
    void* mMapped = nullptr;
};

// At most eight captured runs, each for one shape; the one not used for longest gives way.
// A shape is worth capturing when it comes again; in a full cache only when the oldest graph was idle for 64 runs.
// So however many shapes take turns, at most one run in eight captures.
class GraphCache
{
public:
    GraphCache() = default;
    GraphCache(GraphCache const&) = delete;
    GraphCache& operator=(GraphCache const&) = delete;
    ~GraphCache();

    cudaGraphExec_t use(Shape const& shape); // counts a run; nullptr when there is none
    bool worthCapturing(Shape const& shape); // a shape that is run without a graph; remembers it
    // The state is what the graph was captured from; it is kept as long as the graph.
    void insert(Shape const& shape, cudaGraphExec_t graph, std::shared_ptr<void> state);
    void clear();

private:
    struct Entry
    {
        Shape shape;
        cudaGraphExec_t graph;
        std::shared_ptr<void> state;
        std::int64_t lastUse;
    };

    void dropOldest();

    std::list<Entry> mEntries;    // the last used comes first
    std::list<Shape> mCandidates; // likewise
    std::int64_t mUses = 0;
};

} // namespace hspan
