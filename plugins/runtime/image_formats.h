// One reader and writer per format. `image.h` chooses among them and checks what a format can hold.
#pragma once

#include "pixels.h"

#include <string>

namespace hspan
{

Image imageFromPng(Bytes const& bytes, std::string const& where);
Image imageFromJpeg(Bytes const& bytes, std::string const& where);
Image imageFromPnm(Bytes const& bytes, std::string const& where);
Bytes pngFromImage(Image const& image, std::string const& where);
Bytes jpegFromImage(Image const& image, std::string const& where);
Bytes pnmFromImage(Image const& image, std::string const& where);

} // namespace hspan
