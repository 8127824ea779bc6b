// Checks of parameters against their limits. The errors name parameter, value and limits. NaN is outside of all limits.
#pragma once

#include <cstdio>
#include <string>
#include <type_traits>

#include "base/error.h"

namespace pyinfer {

inline std::string to_text(int value) { return std::to_string(value); }

inline std::string to_text(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.7g", static_cast<double>(value));
  return text;
}

template <class T>
[[noreturn]] void refuse(const std::string& name, T value, const std::string& limits) {
  throw Error(ErrorKind::request, name + ": expected " + limits + ", found " + to_text(value));
}

// T is deduced from the value alone.
template <class T>
void require_between(const char* name, T value, std::type_identity_t<T> low, std::type_identity_t<T> high) {
  if (!(value >= low && value <= high)) refuse(name, value, to_text(low) + " to " + to_text(high));
}

}  // namespace pyinfer
