// Errors of the core: one sentence with what was expected, what was found, and where.
// The core throws Error and nothing else of its own; it never prints, aborts or exits.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace pyinfer {

// Each kind becomes one Python exception of pyinfer/errors.py.
enum class ErrorKind { model_file, unsupported, request, context_full, cancelled, memory, system };

class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}
  // A failed system call: `code` is its errno.
  Error(std::string message, int code) : kind_(ErrorKind::system), code_(code), message_(std::move(message)) {}

  ErrorKind kind() const { return kind_; }
  int code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorKind kind_;
  int code_ = 0;
  std::string message_;
};

}  // namespace pyinfer
