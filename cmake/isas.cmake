# THE list of instruction sets, slowest first: pyinfer_isa(name flags…). csrc/kernels/simd/<name>.h is its vocabulary and
# cpu_runs_<name>() in csrc/base/cpu.h tells whether a machine has it.
# Each becomes an object library kernels_<name>, compiled from the one kernels/table.cpp, and a line of isas.inc for the dispatcher.

set(PYINFER_ISAS "" CACHE STRING "Those to build, for example scalar;avx2; empty: all of the architecture")
set(PYINFER_ISA_OBJECTS "")
set(PYINFER_ISA_LINES "")

function(pyinfer_isa name)
  if(PYINFER_ISAS AND NOT name IN_LIST PYINFER_ISAS)
    return()
  endif()
  set(target kernels_${name})
  add_library(${target} OBJECT ${PROJECT_SOURCE_DIR}/csrc/kernels/table.cpp)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_compile_definitions(${target} PRIVATE PYINFER_ISA_NAME=${name} PYINFER_ISA_HEADER="kernels/simd/${name}.h")
  target_compile_options(${target} PRIVATE ${ARGN} -fno-math-errno)
  if(NOT PYINFER_SANITIZE)  # checks unroll by the million, and the compiler runs for ten minutes
    target_compile_options(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O3>)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12's own AVX-512 header trips this warning in every user of it (GCC bug 105593).
    target_compile_options(${target} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
    # On Arm GCC schedules before it assigns registers, and then spills the loads it has pulled to the front of a loop.
    target_compile_options(${target} PRIVATE -fno-schedule-insns)
  endif()
  set(PYINFER_ISA_OBJECTS ${PYINFER_ISA_OBJECTS} $<TARGET_OBJECTS:${target}> PARENT_SCOPE)
  set(PYINFER_ISA_LINES "${PYINFER_ISA_LINES}PYINFER_ISA(${name})\n" PARENT_SCOPE)
endfunction()

pyinfer_isa(scalar)
if(PYINFER_ARCHITECTURE STREQUAL "x86_64")
  pyinfer_isa(avx2 -mavx2 -mfma -mf16c)
  pyinfer_isa(avxvnni -mavx2 -mfma -mf16c -mavxvnni)
  set(avx512vnni -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
  pyinfer_isa(avx512vnni ${avx512vnni})
  pyinfer_isa(avx512amx ${avx512vnni} -mamx-tile -mamx-int8)
elseif(PYINFER_ARCHITECTURE STREQUAL "aarch64")
  pyinfer_isa(neon -march=armv8-a)
  pyinfer_isa(neon_dotprod -march=armv8.2-a+dotprod)
  pyinfer_isa(neon_i8mm -march=armv8.2-a+dotprod+i8mm)
endif()

file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/isas.inc CONTENT "${PYINFER_ISA_LINES}")
