# libpyinfer: the core behind csrc/api/pyinfer.h, and what is installed with it.
#
# Exports pyi_* and nothing else. That takes more than hidden visibility, since instances of the standard library's templates are
# visible by their own attribute; tools/check_exports.py holds the result against the header.
# The C++ library is linked dynamically: a static copy costs more than all of the core, and distributions and manylinux ship it.
# Never unloaded on Linux: threads of its models may still run, and handles outlive their last user on purpose.
# A Python package carries the bare library beside the module, without versions in its name, since wheels have no symbolic links.

file(STRINGS pyproject.toml PYINFER_VERSION_LINE REGEX "^version = ")
string(REGEX REPLACE ".*\"(.*)\".*" "\\1" PYINFER_VERSION "${PYINFER_VERSION_LINE}")
file(STRINGS csrc/api/pyinfer.h PYINFER_ABI_LINE REGEX "^#define PYI_ABI_VERSION ")
string(REGEX REPLACE ".* ([0-9]+)$" "\\1" PYINFER_ABI "${PYINFER_ABI_LINE}")

add_library(pyinfer_c SHARED
  csrc/api/capi.cpp
  csrc/api/capi_adapters.cpp
  csrc/api/capi_model.cpp
  csrc/api/capi_sampler.cpp
  csrc/api/capi_session.cpp)
add_library(pyinfer::pyinfer ALIAS pyinfer_c)
set_target_properties(pyinfer_c PROPERTIES OUTPUT_NAME pyinfer EXPORT_NAME pyinfer UNITY_BUILD ON)
target_link_libraries(pyinfer_c PRIVATE pyinfer_core)
target_compile_definitions(pyinfer_c PRIVATE PYINFER_BUILDS_LIBRARY PYINFER_VERSION="${PYINFER_VERSION}")
target_include_directories(pyinfer_c INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/api> $<INSTALL_INTERFACE:include>)
if(APPLE)
  target_link_options(pyinfer_c PRIVATE "LINKER:-exported_symbol,_pyi_*")
elseif(UNIX)
  file(WRITE ${PROJECT_BINARY_DIR}/generated/pyinfer.map "{ global: pyi_*; local: *; };\n")
  target_link_options(pyinfer_c PRIVATE
    "LINKER:--version-script=${PROJECT_BINARY_DIR}/generated/pyinfer.map,-z,nodelete")
endif()

if(SKBUILD)
  install(TARGETS pyinfer_c LIBRARY DESTINATION pyinfer RUNTIME DESTINATION pyinfer)
  install(FILES csrc/api/pyinfer.h DESTINATION pyinfer)
else()
  include(GNUInstallDirs)
  include(CMakePackageConfigHelpers)
  set(PYINFER_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/pyinfer)
  file(RELATIVE_PATH PYINFER_PREFIX_FROM_PC /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  set_target_properties(pyinfer_c PROPERTIES VERSION ${PYINFER_ABI} SOVERSION ${PYINFER_ABI})
  configure_file(cmake/pyinfer.pc.in ${PROJECT_BINARY_DIR}/generated/pyinfer.pc @ONLY)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/generated/pyinferConfigVersion.cmake
    VERSION ${PYINFER_VERSION} COMPATIBILITY SameMinorVersion)
  install(TARGETS pyinfer_c EXPORT pyinfer)
  install(FILES csrc/api/pyinfer.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(FILES ${PROJECT_BINARY_DIR}/generated/pyinfer.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  install(EXPORT pyinfer NAMESPACE pyinfer:: FILE pyinferConfig.cmake DESTINATION ${PYINFER_PACKAGE_DIR})
  install(FILES ${PROJECT_BINARY_DIR}/generated/pyinferConfigVersion.cmake DESTINATION ${PYINFER_PACKAGE_DIR})
endif()
