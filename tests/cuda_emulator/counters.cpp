// SPDX-License-Identifier: Apache-2.0
#include "counters.h"

#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "count_requests.h"

namespace tal_fast::emulator {

#if defined(TAL_FAST_COUNTED)
bool counting = false;
bool inside_emulator = false;
void set_counting(bool on) {
  counting = on;
}
#else
void set_counting(bool) {}
#endif

namespace {

constexpr int kMostThreads = 1024;
constexpr size_t kKinds = 7;
constexpr std::array<const char*, kKinds> kNames = {
    "loads", "stores", "atomics", "shared_loads", "shared_stores", "shared_atomics", "turns"};

// What one warp waits for, one thing after the other: intervals between two meetings in which it
// asked global memory (or shared memory), the requests of these, and warp operations.
struct Chain {
  uint64_t global_waits = 0, global_requests = 0, shared_waits = 0, shared_requests = 0,
           operations = 0, barriers = 0;
  void add(const Chain& other) {
    global_waits += other.global_waits;
    global_requests += other.global_requests;
    shared_waits += other.shared_waits;
    shared_requests += other.shared_requests;
    operations += other.operations;
    barriers += other.barriers;
  }
  // To choose the slowest of several by: about the cycles of a modern device.
  uint64_t weight() const {
    return 600 * global_waits + 4 * global_requests + 30 * shared_waits + 2 * shared_requests +
           25 * operations + 30 * barriers;
  }
};

struct Place {
  Request request = Request::kLoad;
  const char* loop = nullptr;
  std::array<uint32_t, kLanes> seen{};  // how often, since the last meeting
  std::vector<Pending> pending;
  size_t used = 0;
};

// From keys to indices of places; emptied often.
class Known {
 public:
  // The index of `key`; `next` where it is new.
  size_t find(uint64_t key, size_t next) {
    if (2 * (count_ + 1) > slots_.size()) {
      grow();
    }
    for (size_t i = key;; ++i) {
      Slot& slot = slots_[i % slots_.size()];
      if (slot.time != time_) {
        slot = {key, next, time_};
        ++count_;
        return next;
      }
      if (slot.key == key) {
        return slot.index;
      }
    }
  }
  void clear() {
    ++time_;
    count_ = 0;
  }

 private:
  struct Slot {
    uint64_t key = 0;
    size_t index = 0;
    uint64_t time = 0;
  };
  void grow() {
    std::vector<Slot> old(std::max<size_t>(64, 2 * slots_.size()));
    old.swap(slots_);
    count_ = 0;
    for (const Slot& slot : old) {
      if (slot.time == time_) {
        find(slot.key, slot.index);
      }
    }
  }
  std::vector<Slot> slots_;
  size_t count_ = 0;
  uint64_t time_ = 1;
};

struct Warp {
  std::vector<Place> places;  // the first `live` are in use
  size_t live = 0;
  Known known;
  Chain interval;  // since the last barrier
};

struct Launch {
  LaunchFacts facts{};
  uint64_t counted_blocks = 0;
  uint64_t warps = 0;
  std::array<Sums, kKinds> sums{};
  std::unordered_map<std::string, uint64_t> operations;
  std::unordered_map<std::string, Sums> turns;
  uint64_t operation_lanes = 0;
  uint64_t barriers = 0;
  TouchedMemory memory;
  Chain slowest, all;
};

struct Plan {
  uint64_t runs = 0, length = 0;    // of blocks, evenly apart; 0: all blocks
  std::vector<std::string> partly;  // begins of names of kernels of which only these are run
};

Plan plan;
Launch launch_;
std::vector<Warp> warps(kMostThreads / kLanes);
std::vector<std::vector<uint64_t>> calls(kMostThreads);  // of each thread: what led here
int block_threads = 0;
Chain block_chain;
bool in_block = false;
std::string results;
Addresses addresses;

uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15u ^ (b + 0x632be59bd9b4e019u);
  x ^= x >> 29;
  return x * 0xbf58476d1ce4e5b9u;
}

void close(Place& place, Warp& warp) {
  for (size_t i = 0; i < place.used; ++i) {
    const Pending& request = place.pending[i];
    Sums one;
    one.requests = 1;
    one.lanes = static_cast<uint64_t>(std::popcount(request.lanes));
    if (place.request == Request::kTurn) {
      Sums& sums = launch_.turns[place.loop];
      ++sums.requests;
      sums.lanes += one.lanes;
      continue;
    }
    if (is_shared(place.request)) {
      close_shared(request, place.request, &one);
    } else {
      close_global(request, place.request, &launch_.memory, &one);
    }
    Sums& sums = launch_.sums[static_cast<size_t>(place.request)];
    sums.requests += one.requests;
    sums.lanes += one.lanes;
    sums.bytes += one.bytes;
    sums.cost += one.cost;
    sums.ideal += one.ideal;
  }
  if (place.request == Request::kLoad || place.request == Request::kAtomic) {
    warp.interval.global_requests += place.used;
  } else if (is_shared(place.request)) {
    warp.interval.shared_requests += place.used;
  }
}

void write(std::ostream& out, const Sums& sums, const char* cost) {
  out << "{\"requests\": " << sums.requests << ", \"lanes\": " << sums.lanes
      << ", \"bytes\": " << sums.bytes << ", \"" << cost << "\": " << sums.cost
      << ", \"ideal\": " << sums.ideal << "}";
}

void write(std::ostream& out, const Chain& chain) {
  out << "{\"global_waits\": " << chain.global_waits
      << ", \"global_requests\": " << chain.global_requests
      << ", \"shared_waits\": " << chain.shared_waits
      << ", \"shared_requests\": " << chain.shared_requests
      << ", \"operations\": " << chain.operations << ", \"barriers\": " << chain.barriers << "}";
}

// An access by `thread` at `place`, to be joined with those of its warp.
void join(int thread, const void* place, uint64_t address, size_t bytes, Request request) {
  const auto& stack = calls[static_cast<size_t>(thread)];
  const uint64_t key = mix(mix(reinterpret_cast<uintptr_t>(place), static_cast<uint64_t>(request)),
                           stack.empty() ? 0 : stack.back());
  Warp& warp = warps[static_cast<size_t>(thread / kLanes)];
  const size_t found = warp.known.find(key, warp.live);
  if (found == warp.live) {
    if (warp.live == warp.places.size()) {
      warp.places.emplace_back();
    }
    Place& one = warp.places[warp.live++];
    one.request = request;
    one.loop = request == Request::kTurn ? static_cast<const char*>(place) : nullptr;
    one.seen.fill(0);
    one.used = 0;
  }
  Place& one = warp.places[found];
  const auto lane = static_cast<size_t>(thread % kLanes);
  const size_t turn = one.seen[lane]++;
  if (turn >= one.used) {
    if (one.used == one.pending.size()) {
      one.pending.emplace_back();
    }
    one.pending[one.used] = {};
    ++one.used;
  }
  Pending& pending = one.pending[turn];
  pending.lanes |= 1u << lane;
  pending.addresses[lane] = address;
  pending.widths[lane] = static_cast<uint8_t>(bytes);
  pending.bytes = std::max(pending.bytes, static_cast<uint32_t>(bytes));
}

void meet(int number) {
  Warp& warp = warps[static_cast<size_t>(number)];
  const Chain before = warp.interval;
  for (size_t i = 0; i < warp.live; ++i) {
    close(warp.places[i], warp);
  }
  warp.interval.global_waits += warp.interval.global_requests > before.global_requests ? 1 : 0;
  warp.interval.shared_waits += warp.interval.shared_requests > before.shared_requests ? 1 : 0;
  warp.live = 0;
  warp.known.clear();
}

// The block waits for the slowest of its warps.
void end_interval(bool barrier) {
  const Chain* slowest = nullptr;
  const int count = (block_threads + kLanes - 1) / kLanes;
  for (int w = 0; w < count; ++w) {
    meet(w);
    const Chain& chain = warps[static_cast<size_t>(w)].interval;
    if (slowest == nullptr || chain.weight() > slowest->weight()) {
      slowest = &chain;
    }
  }
  block_chain.add(*slowest);
  block_chain.barriers += barrier ? 1 : 0;
  for (int w = 0; w < count; ++w) {
    warps[static_cast<size_t>(w)].interval = {};
  }
}

std::string demangled(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

}  // namespace

void count_launch(const LaunchFacts& facts) {
  launch_ = {};
  launch_.facts = facts;
  addresses = Addresses();
  in_block = false;
}

BlockPlan plan_block(uint64_t index) {
  const uint64_t blocks = launch_.facts.blocks;
  if (plan.runs == 0 || blocks <= plan.runs * plan.length) {
    return {true, true};
  }
  const uint64_t run = index * plan.runs / blocks;
  const uint64_t begin = (run * blocks + plan.runs - 1) / plan.runs;
  const bool counted = index - begin < plan.length;
  const std::string_view name = launch_.facts.name;
  const bool partly = std::any_of(plan.partly.begin(), plan.partly.end(),
                                  [&](const std::string& one) { return name.starts_with(one); });
  return {counted || !partly, counted};
}

void count_block(int threads) {
  block_threads = threads;
  launch_.memory.next_block();
  ++launch_.counted_blocks;
  launch_.warps += static_cast<uint64_t>((threads + kLanes - 1) / kLanes);
  block_chain = {};
  for (auto& stack : calls) {
    stack.clear();
  }
  in_block = true;
}

void count_block_end() {
  end_interval(false);
  launch_.all.add(block_chain);
  if (block_chain.weight() >= launch_.slowest.weight()) {
    launch_.slowest = block_chain;
  }
  in_block = false;
}

void count_meeting(int warp) {
  meet(warp);
}

void count_barrier() {
  const Inside inside;
  end_interval(true);
  ++launch_.barriers;
}

void count_operation(const char* operation, size_t bytes, unsigned lanes, int warp) {
  const Inside inside;
  // A register of 32 bits at a time.
  const uint64_t words = std::max<uint64_t>(1, (bytes + 3) / 4);
  launch_.operations[operation] += words;
  launch_.operation_lanes += words * static_cast<uint64_t>(std::popcount(lanes));
  warps[static_cast<size_t>(warp)].interval.operations += words;
}

void count_turn(const char* loop) {
  const Inside inside;
  const int thread = counted_thread();
  if (in_block && thread >= 0) {
    join(thread, loop, 0, 0, Request::kTurn);
  }
}

void count_global(const void* pointer, size_t bytes, Request request, const void* place) {
  const Inside inside;
  const int thread = counted_thread();
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (in_block && thread >= 0 && addresses.are_global(address)) {
    join(thread, place, address, bytes, request);
  }
}

void count_shared(int64_t offset, size_t bytes, Request request, const void* place) {
  const Inside inside;
  const int thread = counted_thread();
  if (in_block && thread >= 0) {
    join(thread, place, static_cast<uint64_t>(offset), bytes, request);
  }
}

void count_launch_end() {
  const Launch& one = launch_;
  std::ostringstream out;
  out << "{\"name\": \"" << one.facts.name << "\", \"kernel\": \"" << demangled(one.facts.type)
      << "\", \"blocks\": " << one.facts.blocks << ", \"counted_blocks\": " << one.counted_blocks
      << ", \"threads\": " << one.facts.threads
      << ", \"assumed_blocks\": " << one.facts.blocks_assumed
      << ", \"shared_bytes\": " << one.facts.shared_bytes << ", \"warps\": " << one.warps;
  for (size_t kind = 0; kind + 1 < kKinds; ++kind) {
    out << ", \"" << kNames[kind] << "\": ";
    write(out, one.sums[kind], is_shared(static_cast<Request>(kind)) ? "wavefronts" : "sectors");
  }
  const auto write_map = [&](const char* name, const auto& map, const auto& value) {
    out << ", \"" << name << "\": {";
    const char* comma = "";
    for (const auto& [key, found] : map) {
      out << comma << "\"" << key << "\": " << value(found);
      comma = ", ";
    }
    out << "}";
  };
  write_map("turns", one.turns, [](const Sums& sums) { return sums.requests; });
  write_map("turn_lanes", one.turns, [](const Sums& sums) { return sums.lanes; });
  write_map("operations", one.operations, [](uint64_t count) { return count; });
  out << ", \"operation_lanes\": " << one.operation_lanes << ", \"barriers\": " << one.barriers
      << ", \"read_bytes\": " << one.memory.read_bytes()
      << ", \"written_bytes\": " << one.memory.written_bytes()
      << ", \"block_read_sectors\": " << one.memory.block_read_sectors()
      << ", \"block_written_sectors\": " << one.memory.block_written_sectors() << ", \"slowest\": ";
  write(out, one.slowest);
  out << ", \"chains\": ";
  write(out, one.all);
  out << "}\n";
  results += out.str();
  launch_ = {};
}

void set_plan(uint64_t runs, uint64_t length, const char* partly) {
  plan = {runs, length, {}};
  std::istringstream names(partly);
  for (std::string name; std::getline(names, name);) {
    plan.partly.push_back(name);
  }
}

std::string take_counts() {
  return std::exchange(results, {});
}

void count_call(const void* place) {
  const Inside inside;
  const int thread = in_block ? counted_thread() : -1;
  if (thread >= 0) {
    auto& stack = calls[static_cast<size_t>(thread)];
    stack.push_back(mix(stack.empty() ? 0 : stack.back(), reinterpret_cast<uintptr_t>(place)));
  }
}

void count_return() {
  const Inside inside;
  const int thread = in_block ? counted_thread() : -1;
  if (thread >= 0 && !calls[static_cast<size_t>(thread)].empty()) {
    calls[static_cast<size_t>(thread)].pop_back();
  }
}

void count_abandoned() {
  in_block = false;
  for (Warp& warp : warps) {
    warp.live = 0;
    warp.known.clear();
    warp.interval = {};
  }
}

}  // namespace tal_fast::emulator
