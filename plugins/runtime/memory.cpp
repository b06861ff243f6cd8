#include "memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace hspan
{
namespace
{

constexpr std::int64_t kUNKNOWN = std::numeric_limits<std::int64_t>::max();

std::int64_t numberFromFile(char const* path)
{
    std::ifstream file(path);
    std::int64_t value = 0;
    return file >> value ? value : kUNKNOWN; // no such file, or the word "max"
}

} // namespace

std::int64_t availableMemoryBytes()
{
    std::int64_t available = kUNKNOWN;
    std::ifstream meminfo("/proc/meminfo");
    for (std::string key; meminfo >> key;)
    {
        if (key == "MemAvailable:")
        {
            std::int64_t kibibytes = 0;
            if (meminfo >> kibibytes)
            {
                available = kibibytes * 1024;
            }
            break;
        }
        meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    }
    std::int64_t const limit = numberFromFile("/sys/fs/cgroup/memory.max");
    std::int64_t const used = numberFromFile("/sys/fs/cgroup/memory.current");
    if (limit != kUNKNOWN && used != kUNKNOWN)
    {
        available = std::min(available, std::max<std::int64_t>(0, limit - used));
    }
    return available == kUNKNOWN ? 0 : available;
}

} // namespace hspan
