// A very small test harness: tests register themselves, checks report and go on, main (main.cpp) runs what a filter names.
#pragma once

#include <cmath>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Test {
  std::string name;  // suite.test
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

// Failed checks of the running test; the first few are printed.
inline int failures = 0;
// Checks made by the running test: one that makes none has not tested anything, and fails.
inline long made = 0;

// How this program was called, for tests that call it again.
inline std::string program;

struct Registered {
  Registered(const char* suite, const char* name, void (*run)()) {
    tests().push_back({std::string(suite) + "." + name, run});
  }
};

inline void report(bool ok, const char* file, int line, const std::string& text) {
  ++made;
  if (ok) return;
  if (++failures <= 5) std::printf("  %s:%d: %s\n", file, line, text.c_str());
}

template <class T>
std::string shown(const T& value) {
  std::ostringstream out;
  out.precision(17);
  out << value;
  return out.str();
}

template <class A, class B>
void equal(const A& found, const B& expected, const char* text, const char* file, int line) {
  const bool ok = found == expected;
  report(ok, file, line, ok ? "" : std::string(text) + " is " + shown(found) + ", expected " + shown(expected));
}

// |found - expected| <= tolerance; a NaN on either side is not near anything.
inline void near(double found, double expected, double tolerance, const char* text, const char* file, int line) {
  const bool ok = std::abs(found - expected) <= tolerance || found == expected;
  report(
      ok, file, line,
      ok ? ""
         : std::string(text) + " is " + shown(found) + ", expected " + shown(expected) + " within " + shown(tolerance));
}

}  // namespace check

#define TEST(suite, name)                                                                           \
  static void test_##suite##_##name();                                                              \
  static const check::Registered registered_##suite##_##name{#suite, #name, test_##suite##_##name}; \
  static void test_##suite##_##name()

#define CHECK(condition) check::report(static_cast<bool>(condition), __FILE__, __LINE__, #condition)
#define CHECK_EQUAL(found, expected) check::equal(found, expected, #found, __FILE__, __LINE__)
#define CHECK_NEAR(found, expected, tolerance) check::near(found, expected, tolerance, #found, __FILE__, __LINE__)

// Evaluates `expression`, which must throw a pyinfer::Error of `error_kind` whose message contains `part`.
#define CHECK_ERROR(expression, error_kind, part)                                                                    \
  do {                                                                                                               \
    std::string found_ = "no error";                                                                                 \
    bool ok_ = false;                                                                                                \
    try {                                                                                                            \
      static_cast<void>(expression);                                                                                 \
    } catch (const pyinfer::Error& error_) {                                                                         \
      found_ = error_.what();                                                                                        \
      ok_ = error_.kind() == pyinfer::ErrorKind::error_kind && found_.find(part) != std::string::npos;               \
    }                                                                                                                \
    check::report(ok_, __FILE__, __LINE__,                                                                           \
                  std::string(#expression ": expected an error with \"") + (part) + "\", found \"" + found_ + "\""); \
  } while (false)
