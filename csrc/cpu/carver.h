// SPDX-License-Identifier: Apache-2.0
// How a kernel lays out the scratch memory that it is given (cpu/scratch.h). In an anonymous
// namespace because each instruction set compiles its own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tal_fast::cpu {
namespace {

// Hands out arrays of one block of memory, each on a cache line of its own. Without a block it only
// adds up the sizes: the same code then says how much memory a layout needs.
class Carver {
 public:
  explicit Carver(std::byte* block) : block_(block) {}

  template <typename T>
  T* take(int64_t count) {
    T* array = block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return array;
  }

  size_t used() const { return used_; }

 private:
  std::byte* block_;
  size_t used_ = 0;
};

}  // namespace
}  // namespace tal_fast::cpu
