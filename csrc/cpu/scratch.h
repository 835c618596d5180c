// SPDX-License-Identifier: Apache-2.0
// Scratch memory of a kernel: one allocation per task, used again for each of its problems.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace tal_fast::cpu {
// Uninitialised memory that starts on a cache line. Every thread keeps a few small blocks for its
// next call: fresh ones cost a page fault per 4 KiB, which is more than the work done in them.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : block_(Kept::of_thread().take(bytes)) {}
  ~Scratch() { Kept::of_thread().give_back(std::move(block_)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  std::byte* get() const {
    std::byte* begin = block_.memory.get();
    return begin + (64 - reinterpret_cast<uintptr_t>(begin) % 64) % 64;
  }

 private:
  struct Block {
    std::unique_ptr<std::byte[]> memory;
    size_t size = 0;
  };

  class Kept {
   public:
    static Kept& of_thread() {
      thread_local Kept kept;
      return kept;
    }

    Block take(size_t bytes) {
      for (Block& block : blocks_) {
        if (block.size >= bytes + 64) {
          return std::exchange(block, Block{});
        }
      }
      return {std::unique_ptr<std::byte[]>(new std::byte[bytes + 64]), bytes + 64};
    }

    void give_back(Block block) {
      Block& smallest = blocks_[0].size < blocks_[1].size ? blocks_[0] : blocks_[1];
      if (block.size <= kMostBytes && block.size > smallest.size) {
        smallest = std::move(block);
      }
    }

   private:
    static constexpr size_t kMostBytes = size_t{8} << 20;
    Block blocks_[2];
  };

  Block block_;
};

}  // namespace tal_fast::cpu
