// SPDX-License-Identifier: Apache-2.0
// What one request of a warp costs: sectors of global memory, wavefronts of shared memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "counters.h"

namespace tal_fast::emulator {

constexpr int kLanes = 32;

// Of requests of one kind. `cost`: sectors or wavefronts.
struct Sums {
  uint64_t requests = 0, lanes = 0, bytes = 0, cost = 0, ideal = 0;
};

// A request, as far as its lanes have come.
struct Pending {
  unsigned lanes = 0;
  uint32_t bytes = 0;  // of the widest lane
  std::array<uint64_t, kLanes> addresses;
  std::array<uint8_t, kLanes> widths;
};

// Which bytes a launch has touched.
class TouchedMemory {
 public:
  void next_block() { ++block_; }
  void touch_bytes(uint64_t begin, uint64_t end, bool written);
  void touch_sector(uint64_t sector, bool written);
  // Distinct, of the launch.
  uint64_t read_bytes() const { return bytes_[0]; }
  uint64_t written_bytes() const { return bytes_[1]; }
  // Distinct per block, added up.
  uint64_t block_read_sectors() const { return sectors_[0]; }
  uint64_t block_written_sectors() const { return sectors_[1]; }

 private:
  struct Page;
  // Deleted where Page is known.
  struct DeletePage {
    void operator()(Page* page) const;
  };
  Page* page_of(uint64_t number);

  std::unordered_map<uint64_t, std::unique_ptr<Page, DeletePage>> pages_;
  uint64_t last_ = ~uint64_t{0};
  Page* page_ = nullptr;
  uint32_t block_ = 0;
  std::array<uint64_t, 2> bytes_{}, sectors_{};
};

// Which addresses are those of global memory: no stack, where parameters and local variables are,
// not this library, where constants are, and not the block's shared memory.
class Addresses {
 public:
  Addresses();  // of the thread that launches
  bool are_global(uintptr_t address) const;

 private:
  struct Range {
    uintptr_t begin = 0, end = 0;
    bool holds(uintptr_t address) const { return address >= begin && address < end; }
  };
  static Range host_stack();
  static const std::vector<Range>& library();
  Range stack_;
};

bool is_shared(Request request);
void close_global(const Pending& request, Request kind, TouchedMemory* memory, Sums* one);
void close_shared(const Pending& request, Request kind, Sums* one);

}  // namespace tal_fast::emulator
