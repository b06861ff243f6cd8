#include "cuda_objects.h"

#include "../cuda_advice.h"
#include "error.h"

#include <algorithm>
#include <utility>

namespace hspan
{
namespace
{

constexpr std::size_t kMAX_GRAPHS = 8;
constexpr std::size_t kIDLE_USES = 8 * kMAX_GRAPHS;

} // namespace

void check(cudaError_t status, std::string const& what)
{
    if (status == cudaSuccess)
    {
        return;
    }
    cudaGetLastError(); // CUDA keeps an error that is not fatal until somebody asks
    if (status == cudaErrorMemoryAllocation)
    {
        throw Error("GPU", what + ": " + cudaGetErrorString(status), "use smaller tiles: --tile", Code::kOUT_OF_MEMORY);
    }
    CudaAdvice const advice = adviceForCuda(status);
    std::string const own = "CUDA error " + std::to_string(status) + ", " + cudaGetErrorString(status);
    throw Error(
        "GPU", what + ": " + (advice.what == nullptr ? own : advice.what + (" (" + own + ")")), advice.nextStep);
}

Stream::Stream(bool blocking)
{
    check(cudaStreamCreateWithFlags(&mStream, cudaStreamNonBlocking), "cannot create a stream");
    if (blocking && cudaEventCreateWithFlags(&mDone, cudaEventBlockingSync | cudaEventDisableTiming) != cudaSuccess)
    {
        cudaGetLastError();
        mDone = nullptr; // then it spins
    }
}

Stream::~Stream()
{
    if (mDone != nullptr)
    {
        cudaEventDestroy(mDone);
    }
    cudaStreamDestroy(mStream);
}

void Stream::wait(std::string const& what)
{
    if (mDone == nullptr)
    {
        check(cudaStreamSynchronize(mStream), what);
        return;
    }
    check(cudaEventRecord(mDone, mStream), what);
    check(cudaEventSynchronize(mDone), what);
}

Buffer::Buffer(bool shared)
    : mShared(shared)
{
}

bool Buffer::reserve(std::size_t bytes)
{
    if (bytes <= mBytes)
    {
        return false;
    }
    mHost.reset();
    mDevice.reset();
    mBytes = 0;
    void* host = nullptr;
    check(cudaHostAlloc(&host, bytes, mShared ? cudaHostAllocMapped : cudaHostAllocDefault),
        "cannot allocate " + std::to_string(bytes) + " bytes of pinned memory");
    mHost.reset(host);
    void* device = nullptr;
    if (mShared)
    {
        check(cudaHostGetDevicePointer(&device, host, 0), "cannot map memory for the GPU");
        mMapped = device;
    }
    else
    {
        check(cudaMalloc(&device, bytes), "cannot allocate " + std::to_string(bytes) + " bytes");
        mDevice.reset(device);
    }
    mBytes = bytes;
    return true;
}

void Buffer::upload(std::size_t bytes, cudaStream_t stream) const
{
    if (!mShared)
    {
        check(cudaMemcpyAsync(device(), mHost.get(), bytes, cudaMemcpyHostToDevice, stream), "cannot upload");
    }
}

void Buffer::download(std::size_t bytes, cudaStream_t stream) const
{
    if (!mShared)
    {
        check(cudaMemcpyAsync(mHost.get(), device(), bytes, cudaMemcpyDeviceToHost, stream), "cannot download");
    }
}

GraphCache::~GraphCache()
{
    clear();
}

cudaGraphExec_t GraphCache::use(Shape const& shape)
{
    ++mUses;
    auto const entry = std::find_if(
        mEntries.begin(), mEntries.end(), [&](Entry const& candidate) { return candidate.shape == shape; });
    if (entry == mEntries.end())
    {
        return nullptr;
    }
    entry->lastUse = mUses;
    mEntries.splice(mEntries.begin(), mEntries, entry);
    return entry->graph;
}

bool GraphCache::worthCapturing(Shape const& shape)
{
    std::size_t const before = mCandidates.size();
    mCandidates.remove(shape);
    bool const wasUsed = mCandidates.size() < before;
    mCandidates.push_front(shape);
    if (mCandidates.size() > kIDLE_USES)
    {
        mCandidates.pop_back();
    }
    return wasUsed
        && (mEntries.size() < kMAX_GRAPHS || mUses - mEntries.back().lastUse > static_cast<std::int64_t>(kIDLE_USES));
}

void GraphCache::insert(Shape const& shape, cudaGraphExec_t graph, std::shared_ptr<void> state)
{
    if (mEntries.size() == kMAX_GRAPHS)
    {
        dropOldest();
    }
    mEntries.push_front({shape, graph, std::move(state), mUses});
}

void GraphCache::clear()
{
    while (!mEntries.empty())
    {
        dropOldest();
    }
}

void GraphCache::dropOldest()
{
    cudaGraphExecDestroy(mEntries.back().graph);
    mEntries.pop_back();
}

} // namespace hspan
