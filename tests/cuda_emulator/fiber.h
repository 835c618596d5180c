// SPDX-License-Identifier: Apache-2.0
// A stack of its own and a switch to and from it: what a thread of an emulated block needs.
#pragma once

#include <cstddef>

namespace tal_fast::emulator {

// The saved state of something that does not run.
struct Context {
  void* stack_pointer = nullptr;
#if !defined(__x86_64__)
  void* portable = nullptr;  // a ucontext_t
#endif
};

class Fiber {
 public:
  explicit Fiber(size_t stack_bytes);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() begins `entry`, which must not return but switch away for good.
  void prepare(void (*entry)());
  // Runs the fiber until it calls pause().
  void resume();
  // Called on the fiber, before all else.
  void begin();
  // Called on the fiber: back to where resume() was called.
  void pause();
  bool holds(const void* address) const;  // whether it is on the stack
  bool overflowed() const;                // whether the lowest bytes of the stack were written

 private:
  void* stack_ = nullptr;
  size_t bytes_;
  Context inside_;
  Context outside_;
  // The stack that resume() was called on, which AddressSanitizer has to know.
  const void* outer_stack_ = nullptr;
  size_t outer_bytes_ = 0;
};

}  // namespace tal_fast::emulator
