// SPDX-License-Identifier: Apache-2.0
// An array that frees itself, for scratch inside a kernel. In an anonymous namespace because each
// instruction set compiles its own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tal_fast::cpu {
namespace {

// Not std::vector: isa.h says why.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(new T[static_cast<size_t>(size)]), size_(size) {}
  ~Buffer() { delete[] data_; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }
  int64_t size() const { return size_; }

  // Keeps the first `used` elements.
  void grow(int64_t size, int64_t used) {
    T* larger = new T[static_cast<size_t>(size)];
    for (int64_t i = 0; i < used; ++i) {
      larger[i] = data_[i];
    }
    delete[] data_;
    data_ = larger;
    size_ = size;
  }

 private:
  T* data_;
  int64_t size_;
};

}  // namespace
}  // namespace tal_fast::cpu
