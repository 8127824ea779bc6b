// CRC-32 as in zlib and PNG (reflected polynomial 0xEDB88320), eight bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyinfer {

// Continues `crc` (0 at the start of a stream) over `size` bytes.
uint32_t crc32(uint32_t crc, const void* data, size_t size);

}  // namespace pyinfer
