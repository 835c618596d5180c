// SPDX-License-Identifier: Apache-2.0
// Accesses of memory: what is wrong with them, and what the counters are told of them.
#include <cstring>

#include "block.h"
#include "counters.h"

namespace tal_fast::emulator {
namespace {

constexpr size_t kSharedAlignment = 16;
constexpr size_t kCopyBytes = 16;

// Whether something that thread `other` did at these times comes before what the running thread
// does now, by a barrier or an operation of their common warp.
bool ordered(int other, int other_warp, uint64_t barrier, uint64_t warp_time) {
  if (other == block->current || barrier < block->barrier) {
    return true;
  }
  const int warp = block->current / kWarpSize;
  return other_warp == warp && warp_time < block->warp_times[static_cast<size_t>(warp)];
}

void touch_cell(Cell* cell, Access access, Site site) {
  const bool written = cell->block_serial == block->serial;
  const int warp = block->current / kWarpSize;
  const uint64_t time = block->warp_times[static_cast<size_t>(warp)];
  if (access != Access::kWrite && !written) {
    fail("reads shared memory that no thread of the block wrote", site);
  }
  if (written && !(access == Access::kAtomic && cell->atomic) &&
      !ordered(cell->writer, cell->writer / kWarpSize, cell->write_barrier,
               cell->write_warp_time)) {
    fail(access == Access::kRead ? "race: reads shared memory that another thread wrote since the "
                                   "last barrier"
                                 : "race: writes shared memory that another thread wrote since the "
                                   "last barrier",
         site);
  }
  const bool read_now = cell->read_barrier == block->barrier && cell->block_serial == block->serial;
  if (access == Access::kRead) {
    // What this warp read before its last operation is forgotten: a write of its own comes after
    // that, and a write of another warp must wait for this read as well.
    const bool first =
        !read_now || cell->reader == -1 ||
        ordered(cell->reader, cell->reader_warp, cell->read_barrier, cell->read_warp_time);
    const bool same_thread = !first && cell->reader == block->current;
    const bool same_warp = first || cell->reader_warp == warp;
    cell->reader = first || same_thread ? block->current : kSeveral;
    cell->reader_warp = same_warp ? warp : kSeveral;
    cell->read_barrier = block->barrier;
    cell->read_warp_time = time;
    return;
  }
  if (read_now && cell->reader != -1 && cell->reader != block->current &&
      !ordered(cell->reader, cell->reader_warp, cell->read_barrier, cell->read_warp_time)) {
    fail("race: writes shared memory that another thread read since the last barrier", site);
  }
  cell->block_serial = block->serial;
  cell->writer = block->current;
  cell->write_barrier = block->barrier;
  cell->write_warp_time = time;
  cell->reader = -1;
  cell->atomic = access == Access::kAtomic;
}

}  // namespace

int counted_thread() {
  return block == nullptr ? -1 : block->current;
}

bool outside_of_block(uintptr_t address) {
  const Thread& thread = self();
  const auto within = [&](const void* begin, size_t bytes) {
    return address - reinterpret_cast<uintptr_t>(begin) < bytes;
  };
  // What a warp operation hands over is in registers of a GPU.
  return !thread.fiber->holds(reinterpret_cast<const void*>(address)) &&
         !within(block->shared.data(), block->shared.size()) &&
         !(thread.received != nullptr && within(thread.received.get(), sizeof(Exchanged)));
}

void access_global(const void* pointer, size_t bytes, Access access, const void* place) {
  const Inside inside;
  check_alignment(pointer, bytes);
  if (counting) {
    count_global(pointer, bytes,
                 access == Access::kRead    ? Request::kLoad
                 : access == Access::kWrite ? Request::kStore
                                            : Request::kAtomic,
                 place);
  }
}

void check_alignment(const void* pointer, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail("a wide access of global memory is not aligned to its size", site);
  }
}

SharedArray take_shared(uint32_t* next, size_t bytes, Site site) {
  const Inside inside;
  const SharedArray array{*next, *next + static_cast<uint32_t>(bytes)};
  *next +=
      static_cast<uint32_t>((bytes + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment);
  if (*next > block->shared_bytes) {
    fail("carves more shared memory than the launch asked for", site);
  }
  return array;
}

namespace {

void* check_shared(SharedArray array, int64_t offset, size_t bytes, Access access, Site site) {
  if (offset < array.begin || offset + static_cast<int64_t>(bytes) > array.end) {
    fail("touches shared memory outside its array", site);
  }
  if (offset % static_cast<int64_t>(bytes & (~bytes + 1)) != 0) {
    fail("an access of shared memory is not aligned to its size", site);
  }
  Cell* cell = &block->cells[static_cast<size_t>(offset) / kCellBytes];
  for (size_t i = 0; i < bytes / kCellBytes; ++i) {
    touch_cell(cell + i, access, site);
  }
  return block->shared.data() + offset;
}

}  // namespace

void* touch(SharedArray array, int64_t offset, size_t bytes, Access access, Site site) {
  const Inside inside;
  if (counting) {
    count_shared(offset, bytes,
                 access == Access::kRead    ? Request::kSharedLoad
                 : access == Access::kWrite ? Request::kSharedStore
                                            : Request::kSharedAtomic,
                 __builtin_return_address(0));
  }
  return check_shared(array, offset, bytes, access, site);
}

void copy_async(SharedArray array, int64_t offset, const void* source, Site site) {
  const Inside inside;
  check_alignment(source, kCopyBytes, site);
  if (counting) {
    count_global(source, kCopyBytes, Request::kLoad, __builtin_return_address(0));
    count_shared(offset, kCopyBytes, Request::kSharedStore, __builtin_return_address(0));
  }
  // Written already for others to see a race, with other bytes until the thread waits.
  std::memset(check_shared(array, offset, kCopyBytes, Access::kWrite, site), 0xff, kCopyBytes);
  self().copies.push_back({array, offset, source, site});
}

void wait_for_copies() {
  const Inside inside;
  for (const Copy& copy : self().copies) {
    std::memcpy(check_shared(copy.array, copy.offset, kCopyBytes, Access::kWrite, copy.site),
                copy.source, kCopyBytes);
  }
  self().copies.clear();
}

}  // namespace tal_fast::emulator
