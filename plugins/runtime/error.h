// The one error type of the runtime: where, what, next step, in one line. Owns wording; nothing here prints.
#pragma once

#include <stdexcept>
#include <string>

namespace hspan
{

// Values are those of hspan_status in the C API.
enum class Code
{
    kOK = 0,
    kFAILED = 1,        // of a file, the machine or the GPU
    kUSAGE = 2,         // a request that makes no sense whatever the files hold
    kOUT_OF_MEMORY = 3, // of the host or the GPU; a smaller tile may help
};

class Error : public std::runtime_error
{
public:
    Error(
        std::string const& where, std::string const& what, std::string const& nextStep = "", Code code = Code::kFAILED);

    // The same line with another code.
    static Error again(Error const& error, Code code);

    Code code() const noexcept
    {
        return mCode;
    }

private:
    Error(std::string const& text, Code code);

    Code mCode;
};

// Whether a text contains what steers a terminal or breaks a line: control characters, separators of lines and
// paragraphs, what turns the direction of writing, bytes that are no UTF-8. trt_hspan/errors.py has the same list.
bool steers(std::string const& text);

// The text with a question mark for each of them.
std::string printable(std::string const& text);

// An Error for a failed system call: errno's text, and what can be done about it.
Error errorFromErrno(std::string const& where, std::string const& action, int number);

} // namespace hspan
