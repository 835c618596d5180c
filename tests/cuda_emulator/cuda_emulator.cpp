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

#include "block.h"
#include "counters.h"
#include "fiber.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tal_fast::emulator {

std::unique_ptr<Block> block;

namespace {

// Limits of compute capability 8.0 to 9.0, CUDA C++ Programming Guide, technical specifications.
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxThreadsZ = 64;
constexpr unsigned kMaxGridX = 2147483647u;
constexpr unsigned kMaxGridYZ = 65535;
constexpr size_t kMaxParameterBytes = 4096;
constexpr int kThreadsPerMultiprocessor = 2048;

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kRememberedBytes = 1 << 20;

// One launch at a time: threadIdx and its kin are global, as in CUDA.
std::mutex launching;
std::string launches;

std::string place(Site site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

void set_current(int index) {
  block->current = index;
  threadIdx = block->threads[static_cast<size_t>(index)].index;
}

void wait() {
  self().fiber->pause();
  enter_emulator(true);  // the caller is inside
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
  enter_emulator(true);
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
        enter_emulator(false);
        thread.fiber->resume();
        enter_emulator(true);
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

// The counters' view of a launch.
class Counted {
 public:
  explicit Counted(const LaunchFacts& facts)
      : on_(counting), exceptions_(std::uncaught_exceptions()) {
    if (on_) {
      count_launch(facts);
    }
  }
  ~Counted() {
    set_counting(on_);
    if (on_ && std::uncaught_exceptions() > exceptions_) {
      count_abandoned();
    } else if (on_) {
      count_launch_end();
    }
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

  void run(uint64_t index) const {
    const Inside inside;
    const BlockPlan plan = on_ ? plan_block(index) : BlockPlan{true, false};
    if (!plan.run) {
      return;
    }
    set_counting(plan.counted);
    if (plan.counted) {
      count_block(block->count);
    }
    run_block();
    if (plan.counted) {
      count_block_end();
    }
  }

 private:
  bool on_;
  int exceptions_;
};

}  // namespace

void fail(const char* what, Site site) {
  std::ostringstream text;
  text << block->name << ": " << what << " (block " << blockIdx.x << ", " << blockIdx.y << ", "
       << blockIdx.z << ", thread " << block->current << ", " << place(site) << ")";
  throw std::runtime_error(text.str());
}

void turn(const char* loop) {
  if (counting) {
    count_turn(loop);
  }
}

int block_barrier(bool predicate, Site site) {
  const Inside inside;
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
    if (counting) {
      count_barrier();
    }
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
  const Inside inside;
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
  if (counting) {
    count_operation(operation, bytes, mask, first / kWarpSize);
    bool met = true;
    for (int l = 0; l < kWarpSize && first + l < block->count; ++l) {
      const State state = block->threads[static_cast<size_t>(first + l)].state;
      met = met && ((mask >> l & 1u) != 0 || state == State::kDone);
    }
    if (met) {
      count_meeting(first / kWarpSize);
    }
  }
  return all->values.data();
}

void check_lane(unsigned mask, int lane, Site site) {
  const Inside inside;
  if (lane < 0 || lane >= kWarpSize || (mask >> lane & 1u) == 0) {
    fail("a shuffle reads a lane that its mask leaves out", site);
  }
}

void poison(void* data, size_t bytes) {
  if (bytes > 0) {
    std::memset(data, 0xff, bytes);
  }
}

void launch(const char* name, const char* type, Bounds bounds, dim3 grid, dim3 size,
            size_t shared_bytes, size_t parameter_bytes, const std::function<void()>& kernel) {
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
  const Counted counted(
      {name, type, uint64_t{grid.x} * grid.y * grid.z, block->count, bounds.blocks, shared_bytes});
  uint64_t index = 0;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x, ++index) {
        blockIdx = {x, y, z};
        counted.run(index);
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
