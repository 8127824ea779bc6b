# PYINFER_ARCHITECTURE: what is compiled for, x86_64, aarch64 or another name as the system has it. On macOS the machine that compiles
# need not be the one that runs, and CMAKE_OSX_ARCHITECTURES says so. What cannot work is refused here, by name.
set(PYINFER_ARCHITECTURE "${CMAKE_SYSTEM_PROCESSOR}")
if(APPLE AND CMAKE_OSX_ARCHITECTURES)
  list(LENGTH CMAKE_OSX_ARCHITECTURES n_architectures)
  if(n_architectures GREATER 1)
    message(FATAL_ERROR "CMAKE_OSX_ARCHITECTURES: expected one architecture, found ${CMAKE_OSX_ARCHITECTURES}: "
                        "each has instruction sets of its own, so each has a build of its own")
  endif()
  set(PYINFER_ARCHITECTURE "${CMAKE_OSX_ARCHITECTURES}")
endif()
if(PYINFER_ARCHITECTURE MATCHES "^(x86_64|AMD64|amd64)$")
  set(PYINFER_ARCHITECTURE x86_64)
elseif(PYINFER_ARCHITECTURE MATCHES "^(aarch64|arm64|ARM64)$")
  set(PYINFER_ARCHITECTURE aarch64)
endif()

if(NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
  message(FATAL_ERROR "expected a 64-bit target, found one of ${CMAKE_SIZEOF_VOID_P} bytes a pointer: models are mapped whole")
endif()
if(CMAKE_CXX_BYTE_ORDER STREQUAL "BIG_ENDIAN")
  message(FATAL_ERROR "expected a little-endian target, found a big-endian one: files are mapped as they are")
endif()
if("${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${CMAKE_BUILD_TYPE}}" MATCHES "-Ofast|-ffast-math|-funsafe-math-optimizations")
  # Also when it links: GCC then lets the whole process take small numbers for 0.
  message(FATAL_ERROR "expected exact arithmetic, found ${CMAKE_MATCH_0} in the compiler's flags")
endif()
if(MSVC)
  message(FATAL_ERROR "expected GCC or Clang, found a compiler with the command line of cl.exe: "
                      "on Windows set CXX=clang++ and CMAKE_GENERATOR=Ninja")
endif()
if(MINGW AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND PYINFER_ARCHITECTURE STREQUAL "x86_64")
  # GCC keeps vectors of 32 and 64 bytes on the stack of Win64 at multiples of 16 only, and its own aligned moves then fault.
  message(FATAL_ERROR "expected Clang on Windows, found GCC, whose vectors on the stack are not aligned there (GCC bug 54412)")
endif()
