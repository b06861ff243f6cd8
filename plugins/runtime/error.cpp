#include "error.h"

#include <cerrno>
#include <system_error>

namespace hspan
{
namespace
{

std::string line(std::string const& where, std::string const& what, std::string const& nextStep)
{
    std::string text = where + ": " + what;
    if (!nextStep.empty())
    {
        text += "; " + nextStep;
    }
    for (char& c : text)
    { // a file's name or a library's message may hold line breaks
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
        {
            c = ' ';
        }
    }
    return text;
}

} // namespace

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
