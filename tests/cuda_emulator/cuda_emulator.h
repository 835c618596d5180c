// SPDX-License-Identifier: Apache-2.0
// CUDA's device language for a C++ compiler, as far as csrc/cuda/platform.cuh uses it: kernels run
// on the CPU, one block at a time, every thread a fiber that gives way only at barriers and warp
// operations. Slow, deterministic, and stricter than hardware. A launch throws std::runtime_error
// for
//
//  * a grid, block, shared memory or parameter size that hardware refuses, or a block larger than
//    the kernel's launch bound;
//  * shared memory touched outside the array it was carved as, misaligned, or read before any
//  thread
//    of the block wrote it;
//  * shared memory touched by two threads, one of them writing, without a barrier (or, within a
//    warp, a warp operation) between them;
//  * a barrier or a warp operation that not all its threads reach, or reach at different places;
//  * misaligned wide accesses of global memory, and reads of asynchronous copies not waited for.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  constexpr dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Set before a fiber goes on.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tal_fast::emulator {

using Site = std::source_location;

struct Bounds {
  int threads;  // per block at most
  int blocks;   // per multiprocessor, assumed by the design
};

// `type`: the mangled name of the kernel.
void launch(const char* name, const char* type, Bounds bounds, dim3 grid, dim3 block,
            size_t shared_bytes, size_t parameter_bytes, const std::function<void()>& kernel);

// Bytes that read as NaN in every floating-point type.
void poison(void* data, size_t bytes);

// A turn of a loop that the source marks, by the running thread; mark_loops.py writes the calls.
void turn(const char* loop);

// The names of the kernels launched since the last call, one per line.
extern "C" __attribute__((visibility("default"))) const char* tal_fast_emulator_launches();

[[noreturn]] void fail(const char* what, Site site);
void check_alignment(const void* pointer, size_t bytes, Site site = Site::current());

// ---- global memory: what is wider than an element, or atomic, says so itself
// ---------------------------
enum class Access { kRead, kWrite, kAtomic };

// `place`: of the instruction (counters.h).
void access_global(const void* pointer, size_t bytes, Access access, const void* place);

// Where accesses are counted, not looked into by the hooks of counters.h, which would see several
// narrow ones, and with a place of its own at every call.
#if defined(TAL_FAST_COUNTED)
#define TAL_FAST_ONE_ACCESS __attribute__((noinline, no_sanitize("thread")))
#else
#define TAL_FAST_ONE_ACCESS inline
#endif

template <typename T>
TAL_FAST_ONE_ACCESS T load_global(const void* source) {
  access_global(source, sizeof(T), Access::kRead, __builtin_return_address(0));
  return *static_cast<const T*>(source);
}

template <typename T>
TAL_FAST_ONE_ACCESS void store_global(void* target, T value) {
  access_global(target, sizeof(T), Access::kWrite, __builtin_return_address(0));
  *static_cast<T*>(target) = value;
}

// ---- shared memory: a place is an offset into the block's memory and the array it belongs to
// ------
struct SharedArray {
  uint32_t begin = 0;
  uint32_t end = 0;
};

// Checks an access by the running thread and returns where the bytes are.
void* touch(SharedArray array, int64_t offset, size_t bytes, Access access, Site site);

SharedArray take_shared(uint32_t* next, size_t bytes, Site site);

void copy_async(SharedArray array, int64_t offset, const void* source, Site site);
void wait_for_copies();

// ---- barriers and warp operations
// ----------------------------------------------------------------- Returns the number of threads
// whose predicate holds.
int block_barrier(bool predicate, Site site);

constexpr size_t kLaneBytes = 16;
// Every lane of `mask` gives `bytes` at `value` and gets all lanes' values, kLaneBytes apart.
const std::byte* exchange(unsigned mask, const void* value, size_t bytes, const char* operation,
                          Site site);
void check_lane(unsigned mask, int lane, Site site);
int lane();

template <typename T>
T shuffle(unsigned mask, T value, int source, const char* operation, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kLaneBytes);
  const std::byte* all = exchange(mask, &value, sizeof(T), operation, site);
  check_lane(mask, source, site);
  T result;
  std::memcpy(&result, all + static_cast<size_t>(source) * kLaneBytes, sizeof(T));
  return result;
}

}  // namespace tal_fast::emulator

// ---- CUDA's names
// ---------------------------------------------------------------------------------
inline void __syncthreads(std::source_location site = std::source_location::current()) {
  tal_fast::emulator::block_barrier(false, site);
}
inline int __syncthreads_count(int predicate,
                               std::source_location site = std::source_location::current()) {
  return tal_fast::emulator::block_barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate,
                            std::source_location site = std::source_location::current()) {
  return tal_fast::emulator::block_barrier(predicate != 0, site) > 0;
}
inline int __syncthreads_and(int predicate,
                             std::source_location site = std::source_location::current()) {
  return tal_fast::emulator::block_barrier(predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location site = std::source_location::current()) {
  tal_fast::emulator::exchange(mask, nullptr, 0, "__syncwarp", site);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              std::source_location site = std::source_location::current()) {
  const int first = tal_fast::emulator::lane() / width * width;
  return tal_fast::emulator::shuffle(mask, value, first + (source & (width - 1)), "__shfl_sync",
                                     site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  std::source_location site = std::source_location::current()) {
  const int self = tal_fast::emulator::lane();
  const int source = self ^ lanes;
  return tal_fast::emulator::shuffle(mask, value, source / width > self / width ? self : source,
                                     "__shfl_xor_sync", site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 std::source_location site = std::source_location::current()) {
  const int self = tal_fast::emulator::lane();
  const int source = self - static_cast<int>(delta);
  return tal_fast::emulator::shuffle(mask, value, source < self / width * width ? self : source,
                                     "__shfl_up_sync", site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   std::source_location site = std::source_location::current()) {
  const int self = tal_fast::emulator::lane();
  const int source = self + static_cast<int>(delta);
  return tal_fast::emulator::shuffle(
      mask, value, source >= (self / width + 1) * width ? self : source, "__shfl_down_sync", site);
}
unsigned __ballot_sync(unsigned mask, int predicate,
                       std::source_location site = std::source_location::current());
inline int __any_sync(unsigned mask, int predicate,
                      std::source_location site = std::source_location::current()) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      std::source_location site = std::source_location::current()) {
  return __ballot_sync(mask, predicate == 0, site) == 0;
}
inline int __reduce_max_sync(unsigned mask, int value,
                             std::source_location site = std::source_location::current()) {
  using namespace tal_fast::emulator;
  const std::byte* all = exchange(mask, &value, sizeof(value), "__reduce_max_sync", site);
  for (unsigned l = 0; l < 32; ++l) {
    int other = value;
    if ((mask >> l & 1u) != 0) {
      std::memcpy(&other, all + l * kLaneBytes, sizeof(other));
    }
    value = other > value ? other : value;
  }
  return value;
}
// Lanes of `mask` that hold the same 32 or 64 bits.
unsigned __match_any_sync(unsigned mask, unsigned value,
                          std::source_location site = std::source_location::current());

inline int __popc(unsigned value) {
  return __builtin_popcount(value);
}
inline int __popcll(unsigned long long value) {
  return __builtin_popcountll(value);
}
// Positions from 1 on; 0 if no bit is set.
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline int __ffsll(long long value) {
  return __builtin_ffsll(value);
}
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
template <typename To, typename From>
To tal_fast_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}
inline unsigned __float_as_uint(float value) {
  return tal_fast_bits<unsigned>(value);
}
inline int __float_as_int(float value) {
  return tal_fast_bits<int>(value);
}
inline float __uint_as_float(unsigned value) {
  return tal_fast_bits<float>(value);
}
inline float __int_as_float(int value) {
  return tal_fast_bits<float>(value);
}
inline long long __double_as_longlong(double value) {
  return tal_fast_bits<long long>(value);
}
inline double __longlong_as_double(long long value) {
  return tal_fast_bits<double>(value);
}
// One thread runs at a time, so that plain updates of global memory are atomic.
template <typename T>
TAL_FAST_ONE_ACCESS T atomicAdd(T* target, T value) {
  using tal_fast::emulator::Access;
  tal_fast::emulator::access_global(target, sizeof(T), Access::kAtomic,
                                    __builtin_return_address(0));
  const T old = *target;
  *target = old + value;
  return old;
}
template <typename T>
TAL_FAST_ONE_ACCESS T atomicMax(T* target, T value) {
  using tal_fast::emulator::Access;
  tal_fast::emulator::access_global(target, sizeof(T), Access::kAtomic,
                                    __builtin_return_address(0));
  const T old = *target;
  *target = old > value ? old : value;
  return old;
}
template <typename T>
TAL_FAST_ONE_ACCESS T atomicOr(T* target, T value) {
  using tal_fast::emulator::Access;
  tal_fast::emulator::access_global(target, sizeof(T), Access::kAtomic,
                                    __builtin_return_address(0));
  const T old = *target;
  *target = old | value;
  return old;
}
template <typename T>
TAL_FAST_ONE_ACCESS T atomicCAS(T* target, T expected, T value) {
  using tal_fast::emulator::Access;
  tal_fast::emulator::access_global(target, sizeof(T), Access::kAtomic,
                                    __builtin_return_address(0));
  const T old = *target;
  if (old == expected) {
    *target = value;
  }
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace tal_fast {

template <typename T, int N>
struct Pack;

// csrc/cuda/platform.cuh documents the members.
template <typename T>
class Shared {
  static_assert(sizeof(T) >= 2 && sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  using Site = std::source_location;

 public:
  Shared() = default;
  Shared(emulator::SharedArray array, int64_t offset) : array_(array), offset_(offset) {}
  T load(int i, Site site = Site::current()) const {
    return *at(i, sizeof(T), emulator::Access::kRead, site);
  }
  void store(int i, T value, Site site = Site::current()) const {
    *at(i, sizeof(T), emulator::Access::kWrite, site) = value;
  }
  void add(int i, T value, Site site = Site::current()) const {
    at(i, sizeof(T), emulator::Access::kRead, site);
    *at(i, sizeof(T), emulator::Access::kWrite, site) += value;
  }
  template <int N>
  Pack<T, N> load_pack(int i, Site site = Site::current()) const {
    return *reinterpret_cast<const Pack<T, N>*>(
        at(i, sizeof(Pack<T, N>), emulator::Access::kRead, site));
  }
  template <int N>
  void store_pack(int i, const Pack<T, N>& pack, Site site = Site::current()) const {
    *reinterpret_cast<Pack<T, N>*>(at(i, sizeof(Pack<T, N>), emulator::Access::kWrite, site)) =
        pack;
  }
  T atomic_add(int i, T value, Site site = Site::current()) const {
    return atomicAdd(at(i, sizeof(T), emulator::Access::kAtomic, site), value);
  }
  T atomic_max(int i, T value, Site site = Site::current()) const {
    return atomicMax(at(i, sizeof(T), emulator::Access::kAtomic, site), value);
  }
  T atomic_or(int i, T value, Site site = Site::current()) const {
    return atomicOr(at(i, sizeof(T), emulator::Access::kAtomic, site), value);
  }
  void copy_async(int i, const T* source, Site site = Site::current()) const {
    emulator::copy_async(array_, offset_ + i * static_cast<int64_t>(sizeof(T)), source, site);
  }
  Shared operator+(int i) const { return {array_, offset_ + i * static_cast<int64_t>(sizeof(T))}; }

 private:
  T* at(int i, size_t bytes, emulator::Access access, Site site) const {
    return static_cast<T*>(emulator::touch(array_, offset_ + i * static_cast<int64_t>(sizeof(T)),
                                           bytes, access, site));
  }

  emulator::SharedArray array_;
  int64_t offset_ = 0;  // bytes, from the start of the block's memory
};

inline void wait_for_copies() {
  emulator::wait_for_copies();
}

class SharedMemory {
 public:
  template <typename T>
  Shared<T> take(int count, std::source_location site = std::source_location::current()) {
    const emulator::SharedArray array =
        emulator::take_shared(&next_, static_cast<size_t>(count) * sizeof(T), site);
    return Shared<T>(array, array.begin);
  }

 private:
  uint32_t next_ = 0;
};

}  // namespace tal_fast
