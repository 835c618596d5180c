// SPDX-License-Identifier: Apache-2.0
// The block that runs: its threads, its shared memory, who touched what. For the emulator's files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda_emulator.h"
#include "fiber.h"

namespace tal_fast::emulator {

constexpr int kWarpSize = 32;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr size_t kCellBytes = 2;
constexpr int kSeveral = -2;

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

// One at a time.
extern std::unique_ptr<Block> block;

inline Thread& self() {
  return block->threads[static_cast<size_t>(block->current)];
}

}  // namespace tal_fast::emulator
