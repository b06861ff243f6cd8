// The program's standard input and output, whole or an error: a reader that has ended, a full disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hspan
{

// Descriptors 0 to 2 that the caller closed are taken, so that no file of ours becomes standard output; using such a
// one is an error.
void keepStandardDescriptors();

// Fills the buffer from standard input; returns what came before the end. Throws Error.
std::size_t readInput(std::uint8_t* data, std::size_t size);

// Throws Error: the program that reads standard output has ended, or it cannot be written. SIGPIPE must be ignored.
void writeOutput(void const* data, std::size_t size);
void printLine(std::string const& text);

} // namespace hspan
