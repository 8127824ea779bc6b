// What the tests of kernels share. Every entry of the kernel table is tested on every instruction set that runs here, against
// reference.h: integer parts exactly, float parts within k * u * (sum of the magnitudes of the terms), where u = 2^-24 and k
// counts the roundings on the way to a result.
#pragma once

#include <vector>

#include "isas.h"
#include "reference.h"

constexpr double u = 0x1p-24;
constexpr float untouched = -12345.0f;

inline const std::vector<pyinfer::Format> all_formats = {
#define PYINFER_FORMAT(name, type) pyinfer::Format::name,
#include "formats/formats.inc"
#undef PYINFER_FORMAT
};

inline std::vector<pyinfer::Format> quantised_formats() {
  std::vector<pyinfer::Format> quantised;
  for (const pyinfer::Format format : all_formats)
    if (reference::is_quantised(format)) quantised.push_back(format);
  return quantised;
}
