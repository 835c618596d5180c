// SPDX-License-Identifier: Apache-2.0
#include "cuda_emulator.h"

#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tal_fast::emulator {
namespace {

// Limits of compute capability 8.0 to 9.0, CUDA C++ Programming Guide, technical specifications.
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxThreadsZ = 64;
constexpr unsigned kMaxGridX = 2147483647u;
constexpr unsigned kMaxGridYZ = 65535;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr size_t kMaxParameterBytes = 4096;
constexpr int kThreadsPerMultiprocessor = 2048;
constexpr int kWarpSize = 32;

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kCellBytes = 2;
constexpr size_t kSharedAlignment = 16;
constexpr size_t kCopyBytes = 16;
constexpr size_t kRememberedBytes = 1 << 20;

// Who touched two bytes of shared memory last, and when. Time is counted twice: barriers passed by
// the block, and operations passed by the thread's warp.
struct Cell {
  uint64_t block_serial = 0;  // written since the block with this number began
  uint64_t write_barrier = 0;
  uint64_t write_warp_time = 0;
  uint64_t read_barrier = 0;
  uint64_t read_warp_time = 0;
  int writer = -1;
  int reader = -1;       // kSeveral: more than one thread
  int reader_warp = -1;  // kSeveral: more than one warp
  bool atomic = false;
};
constexpr int kSeveral = -2;

enum class State { kReady, kAtBarrier, kAtWarpOperation, kDone };

struct Exchanged {
  alignas(16) std::array<std::byte, kWarpSize * kLaneBytes> values;
};

struct Copy {
  SharedArray array;
  int64_t offset;
  const void* source;
  Site site;
};

struct Thread {
  std::unique_ptr<Fiber> fiber;
  dim3 index;
  State state = State::kDone;
  Site site;
  unsigned mask = 0;
  const char* operation = "";
  bool predicate = false;
  std::array<std::byte, kLaneBytes> given;
  std::shared_ptr<Exchanged> received;
  std::vector<Copy> copies;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<uint64_t> warp_times;
  int count = 0;  // threads of the running block
  int current = -1;
  int waiting_at_barrier = 0;
  Site barrier_site;  // where they wait
  int ended = 0;
  int predicates = 0;
  int barrier_result = 0;
  uint64_t serial = 0;   // of the block, over all launches
  uint64_t barrier = 0;  // barriers passed, over all launches
  size_t shared_bytes = 0;
  alignas(1024) std::array<std::byte, kMaxSharedBytes> shared;
  std::vector<Cell> cells = std::vector<Cell>(kMaxSharedBytes / kCellBytes);
  const std::function<void()>* kernel = nullptr;
  const char* name = "";
  std::string error;
};

// One launch at a time: threadIdx and its kin are global, as in CUDA.
std::mutex launching;
std::unique_ptr<Block> block;
std::string launches;

std::string place(Site site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

Thread& self() {
  return block->threads[static_cast<size_t>(block->current)];
}

void set_current(int index) {
  block->current = index;
  threadIdx = block->threads[static_cast<size_t>(index)].index;
}

void wait() {
  self().fiber->pause();
}

void thread_main() {
  self().fiber->begin();
  try {
    (*block->kernel)();
    if (!self().copies.empty()) {
      fail("a thread ended before it waited for its asynchronous copies", self().copies[0].site);
    }
  } catch (const std::exception& error) {
    block->error = error.what();
  }
  self().state = State::kDone;
  ++block->ended;
  self().fiber->pause();
}

void check(bool condition, const std::string& message) {
  if (!condition) {
    throw std::runtime_error(message);
  }
}

void check_launch(const char* name, Bounds bounds, dim3 grid, dim3 size, size_t shared_bytes,
                  size_t parameter_bytes) {
  const std::string who = std::string(name) + ": ";
  check(grid.x > 0 && grid.y > 0 && grid.z > 0 && size.x > 0 && size.y > 0 && size.z > 0,
        who + "an empty grid or block cannot be launched");
  check(grid.x <= kMaxGridX && grid.y <= kMaxGridYZ && grid.z <= kMaxGridYZ,
        who + "the grid exceeds 2147483647 x 65535 x 65535 blocks");
  check(size.x <= kMaxThreads && size.y <= kMaxThreads && size.z <= kMaxThreadsZ &&
            size.x * size.y * size.z <= kMaxThreads,
        who + "the block exceeds 1024 threads (64 in z)");
  check(size.x * size.y * size.z <= static_cast<unsigned>(bounds.threads),
        who + "the block has " + std::to_string(size.x * size.y * size.z) +
            " threads, its launch bound is " + std::to_string(bounds.threads));
  check(bounds.blocks >= 1 && bounds.threads * bounds.blocks <= kThreadsPerMultiprocessor,
        who + "the assumed occupancy exceeds 2048 threads");
  check(
      shared_bytes <= kMaxSharedBytes,
      who + std::to_string(shared_bytes) + " bytes of shared memory exceed the 232448 of a block");
  check(parameter_bytes <= kMaxParameterBytes,
        who + std::to_string(parameter_bytes) + " bytes of parameters exceed 4096");
}

// What every thread that cannot go on waits for.
std::string describe_stall() {
  std::ostringstream text;
  text << block->name << ": no thread can go on: ";
  int shown = 0;
  int done = 0;
  for (int i = 0; i < block->count; ++i) {
    const Thread& thread = block->threads[static_cast<size_t>(i)];
    if (thread.state == State::kDone) {
      ++done;
    } else if (shown++ < 4) {
      text << "thread " << i << " waits at "
           << (thread.state == State::kAtBarrier ? "a barrier" : thread.operation) << " ("
           << place(thread.site) << "), ";
    }
  }
  text << done << " of " << block->count << " threads have ended";
  return text.str();
}

void run_block() {
  ++block->serial;
  ++block->barrier;
  block->waiting_at_barrier = 0;
  block->ended = 0;
  block->predicates = 0;
  block->warp_times.assign(static_cast<size_t>((block->count + kWarpSize - 1) / kWarpSize), 0);
  for (int i = 0; i < block->count; ++i) {
    Thread& thread = block->threads[static_cast<size_t>(i)];
    const auto u = static_cast<unsigned>(i);
    thread.index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / (blockDim.x * blockDim.y)};
    thread.state = State::kReady;
    thread.copies.clear();
    thread.fiber->prepare(&thread_main);
  }
  // Every other block backwards: an order that a kernel silently relies on shows.
  const bool backwards = block->serial % 2 == 0;
  for (;;) {
    bool moved = false;
    bool all_done = true;
    for (int i = 0; i < block->count; ++i) {
      const int index = backwards ? block->count - 1 - i : i;
      Thread& thread = block->threads[static_cast<size_t>(index)];
      if (thread.state == State::kReady) {
        set_current(index);
        thread.fiber->resume();
        moved = true;
        check(block->error.empty(), block->error);
        check(!thread.fiber->overflowed(),
              std::string(block->name) + ": a thread needs more than 256 KiB of stack");
      }
      all_done = all_done && thread.state == State::kDone;
    }
    if (all_done) {
      return;
    }
    check(moved, describe_stall());
  }
}

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

void fail(const char* what, Site site) {
  std::ostringstream text;
  text << block->name << ": " << what << " (block " << blockIdx.x << ", " << blockIdx.y << ", "
       << blockIdx.z << ", thread " << block->current << ", " << place(site) << ")";
  throw std::runtime_error(text.str());
}

void check_alignment(const void* pointer, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail("a wide access of global memory is not aligned to its size", site);
  }
}

SharedArray take_shared(uint32_t* next, size_t bytes, Site site) {
  const SharedArray array{*next, *next + static_cast<uint32_t>(bytes)};
  *next +=
      static_cast<uint32_t>((bytes + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment);
  if (*next > block->shared_bytes) {
    fail("carves more shared memory than the launch asked for", site);
  }
  return array;
}

void* touch(SharedArray array, int64_t offset, size_t bytes, Access access, Site site) {
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

void copy_async(SharedArray array, int64_t offset, const void* source, Site site) {
  check_alignment(source, kCopyBytes, site);
  // Written already for others to see a race, with other bytes until the thread waits.
  std::memset(touch(array, offset, kCopyBytes, Access::kWrite, site), 0xff, kCopyBytes);
  self().copies.push_back({array, offset, source, site});
}

void wait_for_copies() {
  for (const Copy& copy : self().copies) {
    std::memcpy(touch(copy.array, copy.offset, kCopyBytes, Access::kWrite, copy.site), copy.source,
                kCopyBytes);
  }
  self().copies.clear();
}

int block_barrier(bool predicate, Site site) {
  if (block->ended > 0) {
    fail("divergent barrier: another thread has ended without it", site);
  }
  if (block->waiting_at_barrier > 0 &&
      (block->barrier_site.line() != site.line() ||
       std::strcmp(block->barrier_site.file_name(), site.file_name()) != 0)) {
    fail("divergent barrier: another thread waits at another one", site);
  }
  block->barrier_site = site;
  Thread& thread = self();
  thread.state = State::kAtBarrier;
  thread.site = site;
  block->predicates += predicate ? 1 : 0;
  if (++block->waiting_at_barrier == block->count) {
    block->waiting_at_barrier = 0;
    block->barrier_result = block->predicates;
    block->predicates = 0;
    ++block->barrier;
    for (int i = 0; i < block->count; ++i) {
      block->threads[static_cast<size_t>(i)].state = State::kReady;
    }
  } else {
    wait();
  }
  return block->barrier_result;
}

int lane() {
  return block->current % kWarpSize;
}

const std::byte* exchange(unsigned mask, const void* value, size_t bytes, const char* operation,
                          Site site) {
  Thread& thread = self();
  const int first = block->current / kWarpSize * kWarpSize;
  if ((mask >> lane() & 1u) == 0) {
    fail("a warp operation's mask leaves out the lane that calls it", site);
  }
  if (bytes > 0) {
    std::memcpy(thread.given.data(), value, bytes);
  }
  thread.state = State::kAtWarpOperation;
  thread.site = site;
  thread.mask = mask;
  thread.operation = operation;
  bool complete = true;
  for (int l = 0; l < kWarpSize; ++l) {
    if ((mask >> l & 1u) == 0) {
      continue;
    }
    if (first + l >= block->count) {
      fail("a warp operation's mask names lanes that the block does not have", site);
    }
    const Thread& other = block->threads[static_cast<size_t>(first + l)];
    if (other.state == State::kDone || other.state == State::kAtBarrier) {
      fail("divergent warp operation: a lane of its mask has ended or waits at a barrier", site);
    }
    if (other.state == State::kAtWarpOperation &&
        (other.mask != mask || other.site.line() != site.line() ||
         other.site.column() != site.column() || std::strcmp(other.operation, operation) != 0)) {
      fail("divergent warp operation: a lane of its mask waits at another one", site);
    }
    complete = complete && other.state == State::kAtWarpOperation;
  }
  if (!complete) {
    wait();
    return thread.received->values.data();
  }
  const auto all = std::make_shared<Exchanged>();
  for (int l = 0; l < kWarpSize; ++l) {
    if ((mask >> l & 1u) != 0) {
      Thread& other = block->threads[static_cast<size_t>(first + l)];
      std::copy(other.given.begin(), other.given.end(),
                all->values.begin() + static_cast<std::ptrdiff_t>(l * kLaneBytes));
      other.received = all;
      other.state = State::kReady;
    }
  }
  ++block->warp_times[static_cast<size_t>(first / kWarpSize)];
  return all->values.data();
}

void check_lane(unsigned mask, int lane, Site site) {
  if (lane < 0 || lane >= kWarpSize || (mask >> lane & 1u) == 0) {
    fail("a shuffle reads a lane that its mask leaves out", site);
  }
}

void poison(void* data, size_t bytes) {
  if (bytes > 0) {
    std::memset(data, 0xff, bytes);
  }
}

void launch(const char* name, Bounds bounds, dim3 grid, dim3 size, size_t shared_bytes,
            size_t parameter_bytes, const std::function<void()>& kernel) {
  check_launch(name, bounds, grid, size, shared_bytes, parameter_bytes);
  const std::lock_guard<std::mutex> lock(launching);
  if (launches.size() > kRememberedBytes) {
    launches.clear();  // nobody asks
  }
  launches += std::string(name) + "\n";
  if (block == nullptr) {
    block = std::make_unique<Block>();
  }
  block->name = name;
  block->kernel = &kernel;
  block->count = static_cast<int>(size.x * size.y * size.z);
  block->shared_bytes = shared_bytes;
  block->error.clear();
  while (static_cast<int>(block->threads.size()) < block->count) {
    block->threads.emplace_back();
    block->threads.back().fiber = std::make_unique<Fiber>(kStackBytes);
  }
  gridDim = grid;
  blockDim = size;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
    }
  }
}

const char* tal_fast_emulator_launches() {
  static std::string taken;
  const std::lock_guard<std::mutex> lock(launching);
  taken.swap(launches);
  launches.clear();
  return taken.c_str();
}

}  // namespace tal_fast::emulator

unsigned __ballot_sync(unsigned mask, int predicate, std::source_location site) {
  using namespace tal_fast::emulator;
  const int holds = predicate != 0 ? 1 : 0;
  const std::byte* all = exchange(mask, &holds, sizeof(holds), "__ballot_sync", site);
  unsigned result = 0;
  for (unsigned l = 0; l < 32; ++l) {
    int other = 0;
    if ((mask >> l & 1u) != 0) {
      std::memcpy(&other, all + l * kLaneBytes, sizeof(other));
    }
    result |= other != 0 ? 1u << l : 0u;
  }
  return result;
}

unsigned __match_any_sync(unsigned mask, unsigned value, std::source_location site) {
  using namespace tal_fast::emulator;
  const std::byte* all = exchange(mask, &value, sizeof(value), "__match_any_sync", site);
  unsigned result = 0;
  for (unsigned l = 0; l < 32; ++l) {
    unsigned other = ~value;
    if ((mask >> l & 1u) != 0) {
      std::memcpy(&other, all + l * kLaneBytes, sizeof(other));
    }
    result |= other == value ? 1u << l : 0u;
  }
  return result;
}
