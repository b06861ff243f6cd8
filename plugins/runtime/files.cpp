#include "files.h"

#include "error.h"

#include <openssl/evp.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace hspan
{
namespace
{

class Descriptor
{
public:
    explicit Descriptor(int fd)
        : mFd(fd)
    {
    }
    Descriptor(Descriptor const&) = delete;
    Descriptor& operator=(Descriptor const&) = delete;
    ~Descriptor()
    {
        if (mFd >= 0)
        {
            ::close(mFd);
        }
    }

    int get() const
    {
        return mFd;
    }
    // 0 or errno: a full disk may only show here.
    int close()
    {
        int const fd = std::exchange(mFd, -1);
        return ::close(fd) == 0 ? 0 : errno;
    }

private:
    int mFd;
};

// Signals that end a program would leave the temporary file behind.
class SignalsLater
{
public:
    SignalsLater()
    {
        sigset_t set;
        ::sigemptyset(&set);
        for (int const number : {SIGINT, SIGTERM, SIGHUP})
        {
            ::sigaddset(&set, number);
        }
        ::pthread_sigmask(SIG_BLOCK, &set, &mBefore);
    }
    SignalsLater(SignalsLater const&) = delete;
    SignalsLater& operator=(SignalsLater const&) = delete;
    ~SignalsLater()
    {
        ::pthread_sigmask(SIG_SETMASK, &mBefore, nullptr);
    }

private:
    sigset_t mBefore{};
};

} // namespace

Bytes readFile(std::string const& path, std::uint64_t limit)
{
    Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0)
    {
        throw errorFromErrno(path, "open", errno);
    }
    struct stat status{};
    if (::fstat(file.get(), &status) != 0)
    {
        throw errorFromErrno(path, "read", errno);
    }
    if (S_ISDIR(status.st_mode))
    {
        throw errorFromErrno(path, "read", EISDIR);
    }
    Bytes bytes;
    if (S_ISREG(status.st_mode))
    {
        if (static_cast<std::uint64_t>(status.st_size) > limit)
        {
            throw Error(path,
                "is " + std::to_string(status.st_size) + " bytes long, more than the " + std::to_string(limit)
                    + " accepted");
        }
        bytes.reserve(static_cast<std::size_t>(status.st_size));
    }
    std::array<std::uint8_t, 1 << 16> block{};
    for (;;)
    {
        ssize_t const count = ::read(file.get(), block.data(), block.size());
        if (count < 0 && errno == EINTR)
        {
            continue;
        }
        if (count < 0)
        {
            throw errorFromErrno(path, "read", errno);
        }
        if (count == 0)
        {
            break;
        }
        if (bytes.size() + static_cast<std::size_t>(count) > limit)
        {
            throw Error(path, "is longer than the " + std::to_string(limit) + " bytes accepted");
        }
        bytes.insert(bytes.end(), block.begin(), block.begin() + count);
    }
    if (bytes.empty())
    {
        throw Error(path, "is empty (0 bytes)", "copy it again");
    }
    return bytes;
}

void requireWritableFolder(std::string const& path)
{
    if (::access(folderFromPath(path).c_str(), W_OK | X_OK) != 0)
    {
        throw errorFromErrno(path, "write", errno);
    }
}

void writeFile(std::string const& path, void const* data, std::size_t size)
{
    SignalsLater const signals;
    std::string temporary = path + ".XXXXXX";
    Descriptor file(::mkostemp(temporary.data(), O_CLOEXEC));
    if (file.get() < 0)
    {
        throw errorFromErrno(path, "write", errno);
    }
    auto const fail = [&](int number)
    {
        ::unlink(temporary.c_str());
        return errorFromErrno(path, "write", number);
    };
    auto const* bytes = static_cast<std::uint8_t const*>(data);
    while (size > 0)
    {
        ssize_t const count = ::write(file.get(), bytes, size);
        if (count < 0 && errno == EINTR)
        {
            continue;
        }
        if (count < 0)
        {
            throw fail(errno);
        }
        bytes += count;
        size -= static_cast<std::size_t>(count);
    }
    // mkostemp makes private files; a picture gets what the user's umask says.
    mode_t const mask = ::umask(0);
    ::umask(mask);
    if (::fchmod(file.get(), 0666 & ~mask) != 0)
    {
        throw fail(errno);
    }
    if (int const number = file.close(); number != 0)
    {
        throw fail(number);
    }
    if (std::rename(temporary.c_str(), path.c_str()) != 0)
    {
        throw fail(errno);
    }
}

std::string sha256FromBytes(void const* data, std::size_t size)
{
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int length = 0;
    if (EVP_Digest(data, size, digest.data(), &length, EVP_sha256(), nullptr) != 1)
    {
        throw Error("libcrypto", "cannot compute SHA-256");
    }
    static char const kDIGITS[] = "0123456789abcdef";
    std::string text;
    for (unsigned int i = 0; i < length; ++i)
    {
        text += kDIGITS[digest[i] >> 4];
        text += kDIGITS[digest[i] & 15];
    }
    return text;
}

std::string folderFromPath(std::string const& path)
{
    auto const slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

std::string nameFromPath(std::string const& path)
{
    auto const slash = path.rfind('/');
    return slash == std::string::npos ? path : path.substr(slash + 1);
}

} // namespace hspan
