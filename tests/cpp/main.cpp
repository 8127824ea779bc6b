// Runs the tests whose names contain one of the arguments, or all without arguments; --list names them.
// Exits with 1 when a test fails and with 2 when a filter names no test.
#include <cstring>
#include <exception>

#include "check.h"

namespace {

bool chosen(const std::string& name, int n_filters, char** filters) {
  for (int i = 0; i < n_filters; ++i)
    if (name.find(filters[i]) != std::string::npos) return true;
  return n_filters == 0;
}

bool passes(const check::Test& test) {
  check::failures = 0;
  check::made = 0;
  try {
    test.run();
  } catch (const std::exception& error) {
    check::report(false, test.name.c_str(), 0, std::string("unexpected exception: ") + error.what());
  }
  if (check::made == 0) check::report(false, test.name.c_str(), 0, "the test checked nothing");
  std::printf("%s %s (%ld checks, %d failed)\n", check::failures ? "FAIL" : "ok  ", test.name.c_str(), check::made,
              check::failures);
  std::fflush(stdout);
  return check::failures == 0;
}

}  // namespace

int main(int argc, char** argv) {
  check::program = argv[0];
  const bool list = argc == 2 && std::strcmp(argv[1], "--list") == 0;
  int ran = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    if (list) std::printf("%s\n", test.name.c_str());
    if (list || !chosen(test.name, argc - 1, argv + 1)) continue;
    ++ran;
    failed += !passes(test);
  }
  if (list) return 0;
  std::printf("%d tests, %d failed\n", ran, failed);
  return ran == 0 ? 2 : failed != 0;
}
