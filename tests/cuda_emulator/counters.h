// SPDX-License-Identifier: Apache-2.0
// What a profiler would count, from the emulator: requests of warps to global and shared memory and
// what they cost, barriers, warp operations, turns of marked loops, distinct bytes. Only in a build
// of its own (TAL_FAST_COUNTED), so that it costs other tests nothing.
//
// Raw accesses of global memory are plain C++, so the compiler has to tell of them: the kernels are
// compiled with -fsanitize=thread, whose hooks are defined here (libtsan is not linked). What goes
// to stacks, parameters, constants and shared memory is left out by its address.
//
// The threads of a warp run one after another. A request of the warp is what its lanes do at one
// place (an address in the code, and the calls that led there) for the n-th time since the last
// operation of the whole warp or barrier of the block. Lanes that did not come there, or not that
// often, are inactive in it. So a branch that half of the lanes take costs requests with half of
// the lanes, and a loop that turns five times for one lane and once for the others has four turns
// of one lane: what hardware does when lanes meet again behind every branch and loop. Where lanes
// reach one place by turns that differ (a `continue` that skips it), hardware would ask more often.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tal_fast::emulator {

#if defined(TAL_FAST_COUNTED)
extern bool counting;
#else
constexpr bool counting = false;
#endif
void set_counting(bool on);

// While one lives, hooks are not heeded: what the emulator itself does, in templates that the
// linker may take from a kernel's file, is no access of a kernel.
#if defined(TAL_FAST_COUNTED)
extern bool inside_emulator;
class Inside {
 public:
  Inside() : before_(inside_emulator) { inside_emulator = true; }
  ~Inside() { inside_emulator = before_; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  bool before_;
};
inline void enter_emulator(bool enter) {
  inside_emulator = enter;
}
#else
struct Inside {
  Inside() {}
};
inline void enter_emulator(bool) {}
#endif

enum class Request { kLoad, kStore, kAtomic, kSharedLoad, kSharedStore, kSharedAtomic, kTurn };

struct LaunchFacts {
  const char* name;
  const char* type;  // mangled, of the kernel
  uint64_t blocks;
  int threads;
  int blocks_assumed;  // per multiprocessor
  size_t shared_bytes;
};

void count_launch(const LaunchFacts& facts);
void count_launch_end();
// Whether block `index` of the launch is run, and whether it is counted.
struct BlockPlan {
  bool run, counted;
};
BlockPlan plan_block(uint64_t index);
void count_block(int threads);
void count_block_end();
void count_abandoned();  // the launch failed
// `place` identifies the instruction.
void count_global(const void* pointer, size_t bytes, Request request, const void* place);
void count_shared(int64_t offset, size_t bytes, Request request, const void* place);
// The running thread calls a function from `place`, or returns from it.
void count_call(const void* place);
void count_return();
// All lanes of the warp that still run have passed an operation together, ...
void count_meeting(int warp);
// ... or the whole block a barrier.
void count_barrier();
// `lanes` of a warp exchanged a value of so many bytes.
void count_operation(const char* operation, size_t bytes, unsigned lanes, int warp);
void count_turn(const char* loop);

// What is counted of a launch with more than runs * length blocks: so many, evenly spread in runs
// of neighbours. The others are run, too, but for those of the kernels named in `partly`, one per
// line. 0 runs: all blocks are counted.
void set_plan(uint64_t runs, uint64_t length, const char* partly);
// The launches since, a line of JSON each; forgets them.
std::string take_counts();

// The emulator's side: the running thread, or -1, and whether an address is neither of a stack nor
// of the block's shared memory.
int counted_thread();
bool outside_of_block(uintptr_t address);

}  // namespace tal_fast::emulator
