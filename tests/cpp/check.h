//! \file check.h
//! Just enough of a test framework: named tests, checks that say what was expected, an exit status.
#pragma once

#include <cstdio>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace hspan::test
{

struct Test
{
    std::string name;
    std::function<void()> body;
};

inline std::vector<Test>& tests()
{
    static std::vector<Test> gTests;
    return gTests;
}

//! Adds a test; the name is a sentence.
inline void addTest(std::string name, std::function<void()> body)
{
    tests().push_back({std::move(name), std::move(body)});
}

template <typename... Parts>
[[noreturn]] void fail(Parts const&... parts)
{
    std::ostringstream text;
    text.precision(9);
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

template <typename... Parts>
void check(bool condition, Parts const&... parts)
{
    if (!condition)
    {
        fail(parts...);
    }
}

//! Runs all tests; returns the number of those that failed, as an exit status.
inline int runAll()
{
    int failed = 0;
    for (Test const& test : tests())
    {
        try
        {
            test.body();
        }
        catch (std::exception const& error)
        {
            failed += 1;
            std::printf("FAILED: %s\n        %s\n", test.name.c_str(), error.what());
        }
    }
    std::printf("%zu tests, %d failed\n", tests().size(), failed);
    return failed == 0 && !tests().empty() ? 0 : 1;
}

} // namespace hspan::test
