#include "pipes.h"

#include "error.h"

#include <cerrno>
#include <fcntl.h>
#include <unistd.h>

namespace hspan
{

void keepStandardDescriptors()
{
    for (int const number : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    {
        if (::fcntl(number, F_GETFD) < 0)
        { // the lowest free number is this one; opened the wrong way round, except for messages, which may vanish
            static_cast<void>(::open("/dev/null", number == STDOUT_FILENO ? O_RDONLY : O_WRONLY));
        }
    }
}

std::size_t readInput(std::uint8_t* data, std::size_t size)
{
    std::size_t transferred = 0;
    while (transferred < size)
    {
        ssize_t const count = ::read(STDIN_FILENO, data + transferred, size - transferred);
        if (count < 0 && errno != EINTR)
        {
            throw errorFromErrno("standard input", "read", errno);
        }
        if (count == 0)
        {
            break;
        }
        transferred += count > 0 ? static_cast<std::size_t>(count) : 0;
    }
    return transferred;
}

void writeOutput(void const* data, std::size_t size)
{
    auto const* bytes = static_cast<std::uint8_t const*>(data);
    for (std::size_t transferred = 0; transferred < size;)
    {
        ssize_t const count = ::write(STDOUT_FILENO, bytes + transferred, size - transferred);
        if (count < 0 && errno == EPIPE)
        {
            throw Error("standard output", "the program that reads it has ended");
        }
        if (count < 0 && errno != EINTR)
        {
            throw errorFromErrno("standard output", "write", errno);
        }
        transferred += count > 0 ? static_cast<std::size_t>(count) : 0;
    }
}

void printLine(std::string const& text)
{
    std::string const line = text + "\n";
    writeOutput(line.data(), line.size());
}

} // namespace hspan
