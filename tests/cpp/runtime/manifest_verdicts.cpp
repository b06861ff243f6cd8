// What the C++ reader says of manifests: each line of standard input is one, in hexadecimal digits; the answer is a
// line with "accepted" or the error. tests/plugins/runtime/test_manifests.py compares it with the Python reader's.

#include "error.h"
#include "manifest.h"

#include <iostream>
#include <string>

int main()
{
    std::string line;
    while (std::getline(std::cin, line))
    {
        std::string text;
        for (std::size_t i = 0; i + 1 < line.size(); i += 2)
        {
            text += static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16));
        }
        try
        {
            hspan::manifestFromJson(text, "m.json");
            std::cout << "accepted\n";
        }
        catch (hspan::Error const& error)
        {
            std::cout << error.what() << '\n';
        }
    }
    return 0;
}
