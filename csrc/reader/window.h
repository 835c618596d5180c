// SPDX-License-Identifier: Apache-2.0
// One window from its file into its slot. Part of the reader; nothing else includes it.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "reader/file_cache.h"
#include "reader/reader.h"

namespace tal_fast::reader {

// Memory that one thread keeps between windows. Uninitialised: it is always written before it is
// read.
class Buffer {
 public:
  char* bytes(int64_t n) {
    if (size_ < n) {
      data_.reset();  // before the new one: the two need not exist at once
      size_ = 0;
      data_ = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(n));
      size_ = n;
    }
    return data_.get();
  }
  float* floats(int64_t n) { return reinterpret_cast<float*>(bytes(n * 4)); }

 private:
  std::unique_ptr<char[]> data_;
  int64_t size_ = 0;
};

struct Scratch {
  Buffer raw;        // as in the file
  Buffer converted;  // in the slot's type
  Buffer source;     // float32, to interpolate from
  Buffer result;     // float32, interpolated
};

// Reads a job that Reader::submit checked; throws Failure. The slot is written whole, its mask too.
void read_window(const File& file, const Extent& extent, const WindowJob& job, bool check_finite,
                 Scratch& scratch);

}  // namespace tal_fast::reader
