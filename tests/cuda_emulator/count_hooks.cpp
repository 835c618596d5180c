// SPDX-License-Identifier: Apache-2.0
// Who tells the counters: the hooks that -fsanitize=thread calls, and the switch for Python.
#include <cstddef>
#include <cstdint>
#include <string>

#include "counters.h"

// ---- for Python ---------------------------------------------------------------------------------

// From now on launches are counted as set_plan() says, or not; what was counted before is
// forgotten. Where blocks are left out, what the ops return is no result.
extern "C" __attribute__((visibility("default"))) void tal_fast_emulator_count(bool on,
                                                                               uint64_t runs,
                                                                               uint64_t length,
                                                                               const char* partly) {
  tal_fast::emulator::set_plan(runs, length, partly);
  tal_fast::emulator::take_counts();
  tal_fast::emulator::set_counting(on);
}

// The launches since, a line of JSON each; forgets them.
extern "C" __attribute__((visibility("default"))) const char* tal_fast_emulator_counts() {
  static std::string taken;
  taken = tal_fast::emulator::take_counts();
  return taken.c_str();
}

// Whose code decides which raw accesses there are.
extern "C" __attribute__((visibility("default"))) const char* tal_fast_emulator_compiler() {
#define TAL_FAST_TEXT_OF(x) #x
#define TAL_FAST_TEXT(x) TAL_FAST_TEXT_OF(x)
#if defined(__clang__)
  return "clang " TAL_FAST_TEXT(__clang_major__);
#else
  return "gcc " TAL_FAST_TEXT(__GNUC__);
#endif
}

namespace {

bool heeded() {
  return tal_fast::emulator::counting && !tal_fast::emulator::inside_emulator;
}

}  // namespace

// ---- what -fsanitize=thread calls ---------------------------------------------------------------

#define TAL_FAST_HOOK extern "C" __attribute__((visibility("hidden"))) void
#define TAL_FAST_ACCESS(name, bytes, request)                                                 \
  TAL_FAST_HOOK name(void* pointer) {                                                         \
    if (heeded()) {                                                                           \
      tal_fast::emulator::count_global(pointer, bytes, request, __builtin_return_address(0)); \
    }                                                                                         \
  }
#define TAL_FAST_ACCESSES(bytes)                                                             \
  TAL_FAST_ACCESS(__tsan_read##bytes, bytes, tal_fast::emulator::Request::kLoad)             \
  TAL_FAST_ACCESS(__tsan_write##bytes, bytes, tal_fast::emulator::Request::kStore)           \
  TAL_FAST_ACCESS(__tsan_unaligned_read##bytes, bytes, tal_fast::emulator::Request::kLoad)   \
  TAL_FAST_ACCESS(__tsan_unaligned_write##bytes, bytes, tal_fast::emulator::Request::kStore) \
  TAL_FAST_ACCESS(__tsan_volatile_read##bytes, bytes, tal_fast::emulator::Request::kLoad)    \
  TAL_FAST_ACCESS(__tsan_volatile_write##bytes, bytes, tal_fast::emulator::Request::kStore)

TAL_FAST_ACCESSES(1)
TAL_FAST_ACCESSES(2)
TAL_FAST_ACCESSES(4)
TAL_FAST_ACCESSES(8)
TAL_FAST_ACCESSES(16)

TAL_FAST_HOOK __tsan_read_range(void* pointer, size_t bytes) {
  if (heeded()) {
    tal_fast::emulator::count_global(pointer, bytes, tal_fast::emulator::Request::kLoad,
                                     __builtin_return_address(0));
  }
}
TAL_FAST_HOOK __tsan_write_range(void* pointer, size_t bytes) {
  if (heeded()) {
    tal_fast::emulator::count_global(pointer, bytes, tal_fast::emulator::Request::kStore,
                                     __builtin_return_address(0));
  }
}
TAL_FAST_HOOK __tsan_func_entry(void* pc) {
  if (heeded()) {
    tal_fast::emulator::count_call(pc);
  }
}
TAL_FAST_HOOK __tsan_func_exit() {
  if (heeded()) {
    tal_fast::emulator::count_return();
  }
}
TAL_FAST_HOOK __tsan_init() {}
TAL_FAST_HOOK __tsan_vptr_update(void**, void*) {}
TAL_FAST_HOOK __tsan_vptr_read(void**) {}

// Of the host's code in the same files (reference counts).
#define TAL_FAST_ATOMICS(bits, type)                                                           \
  extern "C" __attribute__((visibility("hidden"))) type __tsan_atomic##bits##_load(            \
      const volatile type* a, int) {                                                           \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                                               \
  }                                                                                            \
  TAL_FAST_HOOK __tsan_atomic##bits##_store(volatile type* a, type v, int) {                   \
    __atomic_store_n(a, v, __ATOMIC_SEQ_CST);                                                  \
  }                                                                                            \
  extern "C" __attribute__((visibility("hidden"))) type __tsan_atomic##bits##_exchange(        \
      volatile type* a, type v, int) {                                                         \
    return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST);                                        \
  }                                                                                            \
  extern "C" __attribute__((visibility("hidden"))) type __tsan_atomic##bits##_fetch_add(       \
      volatile type* a, type v, int) {                                                         \
    return __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST);                                         \
  }                                                                                            \
  extern "C" __attribute__((visibility("hidden"))) type __tsan_atomic##bits##_fetch_sub(       \
      volatile type* a, type v, int) {                                                         \
    return __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST);                                         \
  }                                                                                            \
  extern "C" __attribute__((visibility("hidden"))) bool                                        \
  __tsan_atomic##bits##_compare_exchange_strong(volatile type* a, type* c, type v, int, int) { \
    return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
  }                                                                                            \
  extern "C" __attribute__((visibility("hidden"))) bool                                        \
  __tsan_atomic##bits##_compare_exchange_weak(volatile type* a, type* c, type v, int, int) {   \
    return __atomic_compare_exchange_n(a, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
  }
TAL_FAST_ATOMICS(8, uint8_t)
TAL_FAST_ATOMICS(32, uint32_t)
TAL_FAST_ATOMICS(64, uint64_t)
