// Whole files: reading with a limit, writing under a temporary name and renaming, hashing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hspan
{

using Bytes = std::vector<std::uint8_t>;

// Throws Error: missing, a folder, unreadable, empty, or longer than `limit` bytes.
Bytes readFile(std::string const& path, std::uint64_t limit);

// Checks before any work that files can be written beside this one. Throws Error.
void requireWritableFolder(std::string const& path);

// The file is there whole, or as it was before; SIGINT, SIGTERM and SIGHUP wait until then. Throws Error.
void writeFile(std::string const& path, void const* data, std::size_t size);

// 64 lower-case hexadecimal digits.
std::string sha256FromBytes(void const* data, std::size_t size);

// "a/b" + "c" -> "a/b/c"; the folder of a bare name is ".".
std::string folderFromPath(std::string const& path);
std::string nameFromPath(std::string const& path);

} // namespace hspan
