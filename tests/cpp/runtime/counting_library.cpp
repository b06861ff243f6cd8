// A library that counts in the environment how often it was opened: a plugin for tests of what opens plugins.
#include <cstdlib>
#include <string>

namespace
{

__attribute__((constructor)) void count()
{
    char const* const before = std::getenv("HSPAN_COUNTED");
    ::setenv("HSPAN_COUNTED", (std::string(before == nullptr ? "" : before) + "I").c_str(), 1);
}

} // namespace
