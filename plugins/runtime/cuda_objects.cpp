#include "cuda_objects.h"

#include "error.h"

namespace hspan
{
namespace
{

constexpr std::size_t kMAX_GRAPHS = 8;

} // namespace

void check(cudaError_t status, std::string const& what)
{
    if (status == cudaSuccess)
    {
        return;
    }
    bool const memory = status == cudaErrorMemoryAllocation;
    cudaGetLastError(); // CUDA keeps an error that is not fatal until somebody asks
    throw Error("GPU", what + ": " + cudaGetErrorString(status), memory ? "use smaller tiles: --tile" : "",
        memory ? Code::kOUT_OF_MEMORY : Code::kFAILED);
}

Stream::Stream()
{
    check(cudaStreamCreateWithFlags(&mStream, cudaStreamNonBlocking), "cannot create a stream");
}

Stream::~Stream()
{
    cudaStreamDestroy(mStream);
}

void Stream::wait(std::string const& what)
{
    check(cudaStreamSynchronize(mStream), what);
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

cudaGraphExec_t GraphCache::find(Shape const& shape)
{
    for (auto entry = mEntries.begin(); entry != mEntries.end(); ++entry)
    {
        if (entry->first == shape)
        {
            mEntries.splice(mEntries.begin(), mEntries, entry);
            return mEntries.front().second;
        }
    }
    return nullptr;
}

void GraphCache::insert(Shape const& shape, cudaGraphExec_t graph)
{
    mEntries.emplace_front(shape, graph);
    if (mEntries.size() > kMAX_GRAPHS)
    {
        cudaGraphExecDestroy(mEntries.back().second);
        mEntries.pop_back();
    }
}

void GraphCache::clear()
{
    for (auto const& entry : mEntries)
    {
        cudaGraphExecDestroy(entry.second);
    }
    mEntries.clear();
}

} // namespace hspan
