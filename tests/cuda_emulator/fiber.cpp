// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include <cstdint>
#include <new>

namespace tal_fast::emulator {
namespace {

// Written over the lowest part of every stack, this far apart.
constexpr uint64_t kCanary = 0x7a5c3e9d1b2f4861u;
constexpr size_t kCanaryBytes = 4096;
constexpr size_t kCanaryStep = 512;

}  // namespace

#if defined(__x86_64__)

// Saves the registers that a call must preserve on the running stack and loads those of another.
extern "C" void tal_fast_switch_context(void** save, void* load);
asm(R"(
.text
.globl tal_fast_switch_context
.hidden tal_fast_switch_context
.type tal_fast_switch_context, @function
tal_fast_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tal_fast_switch_context, .-tal_fast_switch_context
)");

#endif

Fiber::Fiber(size_t stack_bytes) : bytes_(stack_bytes) {
  stack_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack_ == MAP_FAILED) {
    throw std::bad_alloc();
  }
#if !defined(__x86_64__)
  inside_.portable = new ucontext_t;
  outside_.portable = new ucontext_t;
#endif
}

Fiber::~Fiber() {
  munmap(stack_, bytes_);
#if !defined(__x86_64__)
  delete static_cast<ucontext_t*>(inside_.portable);
  delete static_cast<ucontext_t*>(outside_.portable);
#endif
}

void Fiber::prepare(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  // A block that failed left its frames behind.
  __asan_unpoison_memory_region(stack_, bytes_);
#endif
  for (size_t i = 0; i < kCanaryBytes; i += kCanaryStep) {
    *reinterpret_cast<uint64_t*>(static_cast<std::byte*>(stack_) + i) = kCanary;
  }
#if defined(__x86_64__)
  // What tal_fast_switch_context pops: six registers and the address of `entry`. Above it the
  // return address of `entry`, which never returns; it aligns the stack as at any call.
  auto* top = reinterpret_cast<uint64_t*>(static_cast<std::byte*>(stack_) + bytes_);
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) {
    *--top = 0;
  }
  inside_.stack_pointer = top;
#else
  auto* context = static_cast<ucontext_t*>(inside_.portable);
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = bytes_;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
#endif
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, bytes_);
#endif
#if defined(__x86_64__)
  tal_fast_switch_context(&outside_.stack_pointer, inside_.stack_pointer);
#else
  swapcontext(static_cast<ucontext_t*>(outside_.portable),
              static_cast<ucontext_t*>(inside_.portable));
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::begin() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &outer_stack_, &outer_bytes_);
#endif
}

void Fiber::pause() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, outer_stack_, outer_bytes_);
#endif
#if defined(__x86_64__)
  tal_fast_switch_context(&inside_.stack_pointer, outside_.stack_pointer);
#else
  swapcontext(static_cast<ucontext_t*>(inside_.portable),
              static_cast<ucontext_t*>(outside_.portable));
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &outer_stack_, &outer_bytes_);
#endif
}

bool Fiber::holds(const void* address) const {
  const auto begin = reinterpret_cast<uintptr_t>(stack_);
  const auto place = reinterpret_cast<uintptr_t>(address);
  return place >= begin && place < begin + bytes_;
}

bool Fiber::overflowed() const {
  for (size_t i = 0; i < kCanaryBytes; i += kCanaryStep) {
    if (*reinterpret_cast<const uint64_t*>(static_cast<const std::byte*>(stack_) + i) != kCanary) {
      return true;
    }
  }
  return false;
}

}  // namespace tal_fast::emulator
