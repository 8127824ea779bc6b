// Packing and reading weights, for conversion.
#include <string>

#include "api/bind.h"
#include "formats/format.h"

namespace pyinfer {
namespace {

constexpr py::ssize_t kMaxSide = 4294967295;
constexpr size_t kMaxValues = size_t{1} << 48;

Format format_named(const std::string& name) {
  const auto format = find_format(name);
  if (!format) throw Error(ErrorKind::request, "format: expected one of pyinfer._core.FORMATS, found " + name);
  return *format;
}

Source source_named(const std::string& name) {
  const auto source = find_source(name);
  if (!source) throw Error(ErrorKind::unsupported, "tensor type: expected one of pyinfer._core.SOURCES, found " + name);
  return *source;
}

size_t side(const char* name, py::ssize_t value) {
  if (value >= 1 && value <= kMaxSide) return static_cast<size_t>(value);
  throw Error(ErrorKind::request, std::string(name) + ": expected 1 to 4294967295, found " + std::to_string(value));
}

struct Shape {
  size_t rows, cols;
};

Shape shape_of(py::ssize_t n_rows, py::ssize_t n_cols) {
  const Shape shape{side("rows", n_rows), side("cols", n_cols)};
  if (shape.rows <= kMaxValues / shape.cols) return shape;
  throw Error(ErrorKind::request, "shape: expected at most " + std::to_string(kMaxValues) + " values, found " +
                                      std::to_string(shape.rows) + " x " + std::to_string(shape.cols));
}

void expect_bytes(const ByteArray& data, size_t expected) {
  const auto found = static_cast<size_t>(data.nbytes());
  if (found != expected) {
    throw Error(ErrorKind::request,
                "data: expected " + std::to_string(expected) + " bytes for this shape, found " + std::to_string(found));
  }
}

// Bytes of a source's blocks; throws where a row is no whole number of blocks.
size_t source_bytes(Source source, size_t rows, size_t cols) {
  const SourceInfo& info = source_info(source);
  if (cols % info.values != 0) {
    throw Error(ErrorKind::model_file, std::string(info.name) + ": expected a multiple of " +
                                           std::to_string(info.values) + " columns, found " + std::to_string(cols));
  }
  return rows * (cols / info.values) * info.bytes;
}

py::array_t<uint8_t> pack_array(const std::string& name, const FloatArray& values) {
  if (values.ndim() != 2)
    throw Error(ErrorKind::request, "values: expected two dimensions, found " + std::to_string(values.ndim()));
  const Format format = format_named(name);
  const Shape shape = shape_of(values.shape(0), values.shape(1));
  py::array_t<uint8_t> packed(static_cast<py::ssize_t>(packed_bytes(format, shape.rows, shape.cols)));
  const float* from = values.data();
  uint8_t* to = packed.mutable_data();
  without_gil([&](const Poll&) { pack(format, from, shape.rows, shape.cols, to); });
  return packed;
}

py::array_t<uint8_t> repack_array(const std::string& source_name, const std::string& name, const ByteArray& data,
                                  py::ssize_t n_rows, py::ssize_t n_cols) {
  const Source source = source_named(source_name);
  const Format format = format_named(name);
  const Shape shape = shape_of(n_rows, n_cols);
  expect_bytes(data, source_bytes(source, shape.rows, shape.cols));
  py::array_t<uint8_t> packed(static_cast<py::ssize_t>(packed_bytes(format, shape.rows, shape.cols)));
  const uint8_t* from = data.data();
  uint8_t* to = packed.mutable_data();
  without_gil([&](const Poll&) { repack(source, format, from, shape.rows, shape.cols, to); });
  return packed;
}

py::array_t<float> dequantize_array(const std::string& source_name, const ByteArray& data, py::ssize_t n_rows,
                                    py::ssize_t n_cols) {
  const Source source = source_named(source_name);
  const Shape shape = shape_of(n_rows, n_cols);
  expect_bytes(data, source_bytes(source, shape.rows, shape.cols));
  py::array_t<float> values({n_rows, n_cols});
  const uint8_t* from = data.data();
  float* to = values.mutable_data();
  without_gil([&](const Poll&) { dequantize(source, from, shape.rows, shape.cols, to); });
  return values;
}

py::array_t<float> unpack_array(const std::string& name, const ByteArray& packed, py::ssize_t n_rows,
                                py::ssize_t n_cols) {
  const Format format = format_named(name);
  const Shape shape = shape_of(n_rows, n_cols);
  expect_bytes(packed, packed_bytes(format, shape.rows, shape.cols));
  py::array_t<float> values({n_rows, n_cols});
  const uint8_t* from = packed.data();
  float* to = values.mutable_data();
  without_gil([&](const Poll&) {
    for (size_t row = 0; row < shape.rows; ++row) unpack_row(format, from, shape.cols, row, to + row * shape.cols);
  });
  return values;
}

}  // namespace

void bind_formats(py::module_& m) {
  py::list names;
  for (size_t i = 1; i < kFormats; ++i) names.append(format_name(static_cast<Format>(i)));
  m.attr("FORMATS") = py::tuple(names);
  py::dict sources;
  for (size_t i = 0; i < kSources; ++i) {
    const SourceInfo& info = source_info(static_cast<Source>(i));
    sources[info.name] = py::make_tuple(info.values, info.bytes, format_name(info.lands));
  }
  m.attr("SOURCES") = sources;
  m.def(
      "packed_bytes",
      [](const std::string& name, py::ssize_t rows, py::ssize_t cols) {
        const Shape shape = shape_of(rows, cols);
        return packed_bytes(format_named(name), shape.rows, shape.cols);
      },
      py::arg("format"), py::arg("rows"), py::arg("cols"));
  m.def("pack", pack_array, py::arg("format"), py::arg("values"));
  m.def("repack", repack_array, py::arg("source"), py::arg("format"), py::arg("data"), py::arg("rows"),
        py::arg("cols"));
  m.def("dequantize", dequantize_array, py::arg("source"), py::arg("data"), py::arg("rows"), py::arg("cols"));
  m.def("unpack", unpack_array, py::arg("format"), py::arg("packed"), py::arg("rows"), py::arg("cols"));
}

}  // namespace pyinfer
