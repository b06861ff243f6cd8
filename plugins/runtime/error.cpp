#include "error.h"

#include <cerrno>
#include <system_error>

namespace hspan
{
namespace
{

std::string line(std::string const& where, std::string const& what, std::string const& nextStep)
{
    return printable(where + ": " + what + (nextStep.empty() ? "" : "; " + nextStep));
}

// How many bytes from `at` on are one character that steers a terminal; 0 when it is another.
std::size_t steeringBytes(std::string const& text, std::size_t at)
{
    auto const byte = [&](std::size_t offset) -> unsigned
    { return at + offset < text.size() ? static_cast<unsigned char>(text[at + offset]) : 0U; };
    if (byte(0) < 0x20 || byte(0) == 0x7f)
    {
        return 1;
    }
    if (byte(0) == 0xc2 && byte(1) >= 0x80 && byte(1) <= 0x9f) // U+0080 to U+009F
    {
        return 2;
    }
    bool const inBlock = byte(0) == 0xe2 && (byte(1) == 0x80 || byte(1) == 0x81); // U+2028 to U+202E, U+2066 to U+2069
    bool const turns = byte(1) == 0x80 ? byte(2) >= 0xa8 && byte(2) <= 0xae : byte(2) >= 0xa6 && byte(2) <= 0xa9;
    return inBlock && turns ? 3 : 0;
}

} // namespace

bool steers(std::string const& text)
{
    for (std::size_t at = 0; at < text.size(); ++at)
    {
        if (steeringBytes(text, at) > 0)
        {
            return true;
        }
    }
    return false;
}

std::string printable(std::string text)
{
    for (std::size_t at = 0; at < text.size(); ++at)
    {
        if (std::size_t const count = steeringBytes(text, at); count > 0)
        {
            text.replace(at, count, "?");
        }
    }
    return text;
}

Error::Error(std::string const& where, std::string const& what, std::string const& nextStep, Code code)
    : std::runtime_error(line(where, what, nextStep))
    , mCode(code)
{
}

Error::Error(std::string const& text, Code code)
    : std::runtime_error(text)
    , mCode(code)
{
}

Error Error::again(Error const& error, Code code)
{
    return Error(error.what(), code);
}

Error errorFromErrno(std::string const& where, std::string const& action, int number)
{
    std::string const reason = std::generic_category().message(number);
    switch (number)
    {
    case ENOENT: return Error(where, "no such file", "check the path");
    case EACCES:
    case EPERM: return Error(where, "permission denied", "check the permissions");
    case ENOSPC:
    case EDQUOT: return Error(where, "no space left on the disk", "free some and try again");
    case EISDIR: return Error(where, "is a folder", "name a file");
    case ENOMEM: return Error(where, "out of memory", "close other programs", Code::kOUT_OF_MEMORY);
    default: return Error(where, "cannot " + action + ": " + reason);
    }
}

} // namespace hspan
