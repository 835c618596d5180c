// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a thread, kept from call to call.
#pragma once

#include <cstddef>
#include <memory>

namespace tal_fast {

// At least `bytes` of memory that belong to the calling thread until its next call of this
// function. Blocks of this size come from the operating system page by page, which costs about as
// much as the kernels that ask for them; larger ones than kKeptScratch are given back with the next
// call.
constexpr size_t kKeptScratch = size_t{4} << 20;

inline std::byte* thread_scratch(size_t bytes) {
  thread_local std::unique_ptr<std::byte[]> block;
  thread_local size_t size = 0;
  if (size < bytes || size > kKeptScratch) {
    block.reset();
    block.reset(new std::byte[bytes]);
    size = bytes;
  }
  return block.get();
}

}  // namespace tal_fast
