#include "error.h"

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace hspan
{
namespace
{

std::string line(std::string const& where, std::string const& what, std::string const& nextStep)
{
    return printable(where + ": " + what + (nextStep.empty() ? "" : "; " + nextStep));
}

// A character of UTF-8; a byte that is none stands alone, as the number 0.
struct Character
{
    std::uint32_t number;
    std::size_t bytes;
};

Character characterAt(std::string const& text, std::size_t at)
{
    static std::uint32_t const kLEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    auto const byte = [&](std::size_t offset) -> std::uint32_t
    { return at + offset < text.size() ? static_cast<unsigned char>(text[at + offset]) : 0U; };
    std::uint32_t const lead = byte(0);
    std::size_t const bytes = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    std::uint32_t number = bytes == 1 ? lead : lead & 0x7fU >> bytes;
    bool valid = lead < 0x80 || (lead >= 0xc0 && lead < 0xf8);
    for (std::size_t i = 1; i < bytes; ++i)
    {
        valid = valid && (byte(i) & 0xc0U) == 0x80;
        number = number << 6 | (byte(i) & 0x3fU);
    }
    valid = valid && number >= kLEAST[bytes] && number <= 0x10ffff && (number < 0xd800 || number > 0xdfff);
    return valid ? Character{number, bytes} : Character{0, 1};
}

bool steers(std::uint32_t number)
{
    return number < 0x20 || (number >= 0x7f && number <= 0x9f) || (number >= 0x2028 && number <= 0x202e)
        || (number >= 0x2066 && number <= 0x2069);
}

} // namespace

bool steers(std::string const& text)
{
    return printable(text) != text;
}

std::string printable(std::string const& text)
{
    std::string result;
    for (std::size_t at = 0; at < text.size();)
    {
        Character const character = characterAt(text, at);
        result += steers(character.number) ? "?" : text.substr(at, character.bytes);
        at += character.bytes;
    }
    return result;
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
