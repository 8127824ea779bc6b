// The choice of the instruction set, and that each has a full table.
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "check.h"
#include "every_isa.h"

using namespace pyinfer;

// Checks what PYINFER_ISA asks for in the environment that the tests run in; the test below runs it in all of them.
TEST(isa, active_is_what_the_environment_asks_for) {
  std::string expected;
  for (const Isa& isa : isas())
    if (is_tested(isa)) expected = isa.name;
  if (expected.empty()) {
    CHECK_ERROR(active_kernels(), request, std::string("found ") + std::getenv("PYINFER_ISA"));
    CHECK_ERROR(active_kernels(), request, "PYINFER_ISA: expected one of scalar");
  } else {
    CHECK_EQUAL(std::string(active_kernels().isa), expected);
  }
}

// How this program starts itself: PYINFER_TEST_EMULATOR is what stands before it where another processor is emulated.
static std::string this_program() {
  const char* emulator = std::getenv("PYINFER_TEST_EMULATOR");
  return (emulator == nullptr ? "" : std::string(emulator) + " ") + "'" + check::program + "'";
}

TEST(isa, each_can_be_forced_and_no_other) {
  std::vector<std::string> names = {"", "nonsense", "scala", "scalar2", "AVX2"};
  for (const Isa& isa : isas()) names.push_back(isa.name);
  for (const std::string& name : names) {
#if defined(_WIN32)
    const std::string command = "set \"PYINFER_ISA=" + name + "\"&\"" + check::program + "\" isa.active_is > NUL";
#else
    const std::string command = "PYINFER_ISA='" + name + "' " + this_program() + " isa.active_is > /dev/null";
#endif
    CHECK_EQUAL(std::system(command.c_str()), 0);
  }
}

TEST(isa, tables_bear_their_names_and_are_full) {
  CHECK_EQUAL(std::string(isas().front().name), "scalar");
  CHECK(isas().front().runs_here());
  on_every_isa([](const Kernels& kernels) {
    CHECK(kernels.panel_rows >= 1 && kernels.panel_rows <= kMaxPanelRows);
    CHECK(kernels.panels >= 1);
    for (const Format format : all_formats) {
      CHECK(kernels.matmul_f32[static_cast<std::size_t>(format)] != nullptr);
      CHECK_EQUAL(kernels.matmul_int8[static_cast<std::size_t>(format)] != nullptr, reference::is_quantised(format));
    }
    CHECK(kernels.matmul_int8[0] == nullptr && kernels.matmul_f32[0] == nullptr);
  });
  for (const Isa& isa : isas())
    if (isa.runs_here()) CHECK_EQUAL(std::string(isa.table()->isa), isa.name);
}
