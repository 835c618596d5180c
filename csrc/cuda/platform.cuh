// SPDX-License-Identifier: Apache-2.0
// What a kernel is written in. Kernels are plain CUDA C++ (threadIdx, __syncthreads,
// __shfl_xor_sync) with three rules, so that the same source compiles under nvcc and, for machines
// without a GPU, under a C++ compiler with tests/cuda_emulator:
//
//  * A kernel is a struct whose members are its parameters and whose operator() is its body:
//
//      template <typename T>
//      struct Scale {
//        static constexpr const char* kName = "scale";  // of the NVTX range and of errors
//        static constexpr int kThreads = 256;           // launch bound: threads per block at most
//        static constexpr int kBlocks = 4;              // blocks per multiprocessor assumed
//        const T* in;                                   // [N]
//        T* out;                                        // [N]
//        int64_t n;
//        TAL_FAST_DEVICE void operator()() const { ... }
//      };
//
//    launched by launch(scope, grid, threads, shared_bytes, Scale<float>{in, out, n}) (launch.h).
//  * Shared memory is dynamic, carved by SharedMemory and touched through Shared<T> alone. Under
//    nvcc that is a pointer; the emulator checks bounds, initialisation and races behind it.
//  * No thread waits for another block, and none for another thread but at a barrier or a warp
//    operation (those with a mask).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "math/half.h"

#if defined(__CUDACC__)
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>
#define TAL_FAST_DEVICE __device__ __forceinline__
#else
// On the include path of the emulated build alone.
#include "cuda_emulator.h"
#define TAL_FAST_DEVICE inline
#endif

namespace tal_fast {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// N values that one instruction loads or stores: N * sizeof(T) is a power of two up to 16.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16, "the widest access of a thread has 16 bytes");
  T values[N];
  TAL_FAST_HD T& operator[](int i) { return values[i]; }
  TAL_FAST_HD const T& operator[](int i) const { return values[i]; }
};

// Elements of T in the widest access.
template <typename T>
constexpr int kPackSize = 16 / static_cast<int>(sizeof(T));

#if defined(__CUDACC__)

// A place in shared memory. Elements have at least two bytes.
template <typename T>
class Shared {
 public:
  Shared() = default;
  TAL_FAST_DEVICE explicit Shared(T* pointer) : pointer_(pointer) {}
  TAL_FAST_DEVICE T load(int i) const { return pointer_[i]; }
  TAL_FAST_DEVICE void store(int i, T value) const { pointer_[i] = value; }
  // Not atomic: for elements that this thread alone touches between two barriers.
  TAL_FAST_DEVICE void add(int i, T value) const { pointer_[i] += value; }
  // N elements from i on, aligned to their size.
  template <int N>
  TAL_FAST_DEVICE Pack<T, N> load_pack(int i) const {
    return *reinterpret_cast<const Pack<T, N>*>(pointer_ + i);
  }
  template <int N>
  TAL_FAST_DEVICE void store_pack(int i, const Pack<T, N>& pack) const {
    *reinterpret_cast<Pack<T, N>*>(pointer_ + i) = pack;
  }
  // Return the old value.
  TAL_FAST_DEVICE T atomic_add(int i, T value) const { return atomicAdd(pointer_ + i, value); }
  TAL_FAST_DEVICE T atomic_max(int i, T value) const { return atomicMax(pointer_ + i, value); }
  TAL_FAST_DEVICE T atomic_or(int i, T value) const { return atomicOr(pointer_ + i, value); }
  // 16 bytes from global memory to element i on, both aligned to 16 bytes, without a register in
  // between; visible to this thread after wait_for_copies() and to others after a barrier as well.
  TAL_FAST_DEVICE void copy_async(int i, const T* source) const {
    __pipeline_memcpy_async(pointer_ + i, source, 16);
  }
  TAL_FAST_DEVICE Shared operator+(int i) const { return Shared(pointer_ + i); }
  // Within the shared memory of the block.
  TAL_FAST_DEVICE unsigned address() const {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer_));
  }

 private:
  T* pointer_;
};

TAL_FAST_DEVICE void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// Hands out the dynamic shared memory of a block, in the order in which SharedSize counted it.
class SharedMemory {
 public:
  TAL_FAST_DEVICE SharedMemory() {
    extern __shared__ __align__(128) unsigned char tal_fast_shared_memory[];
    next_ = tal_fast_shared_memory;
  }
  template <typename T>
  TAL_FAST_DEVICE Shared<T> take(int count) {
    T* here = reinterpret_cast<T*>(next_);
    next_ += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return Shared<T>(here);
  }

 private:
  unsigned char* next_;
};

#endif

// The host's side of SharedMemory: the same calls of take, and bytes() is what to launch with.
class SharedSize {
 public:
  template <typename T>
  SharedSize& take(int64_t count) {
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return *this;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

#if defined(__CUDACC__)
template <typename Bits, typename T, int N>
TAL_FAST_DEVICE Bits pack_to_bits(const Pack<T, N>& pack) {
  static_assert(sizeof(Bits) == sizeof(pack));
  Bits bits;
  memcpy(&bits, &pack, sizeof(bits));
  return bits;
}

template <typename T, int N, typename Bits>
TAL_FAST_DEVICE Pack<T, N> bits_to_pack(const Bits& bits) {
  static_assert(sizeof(Bits) == sizeof(Pack<T, N>));
  Pack<T, N> pack;
  memcpy(&pack, &bits, sizeof(pack));
  return pack;
}
#endif

// N elements of global memory from `source` on, which must be aligned to their size.
template <int N, typename T>
TAL_FAST_DEVICE Pack<T, N> load_pack(const T* source) {
#if defined(__CUDACC__)
  return *reinterpret_cast<const Pack<T, N>*>(source);
#else
  return emulator::load_global<Pack<T, N> >(source);
#endif
}

// The same for what nobody writes while the kernel runs: such loads may pass stores.
template <int N, typename T>
TAL_FAST_DEVICE Pack<T, N> read_pack(const T* source) {
#if defined(__CUDACC__)
  if constexpr (sizeof(T) * N == 16) {
    return bits_to_pack<T, N>(__ldg(reinterpret_cast<const uint4*>(source)));
  } else if constexpr (sizeof(T) * N == 8) {
    return bits_to_pack<T, N>(__ldg(reinterpret_cast<const uint2*>(source)));
  } else if constexpr (sizeof(T) * N == 4) {
    return bits_to_pack<T, N>(__ldg(reinterpret_cast<const unsigned*>(source)));
  } else if constexpr (sizeof(T) * N == 2) {
    return bits_to_pack<T, N>(__ldg(reinterpret_cast<const unsigned short*>(source)));
  } else {
    static_assert(sizeof(T) * N == 1);
    return bits_to_pack<T, N>(__ldg(reinterpret_cast<const unsigned char*>(source)));
  }
#else
  return load_pack<N>(source);
#endif
}

template <typename T>
TAL_FAST_DEVICE T read(const T* source) {
  return read_pack<1>(source)[0];
}

// In PTX, since nvcc splits the assignment of a struct into scalar stores as soon as its elements
// come from different places.
template <int N, typename T>
TAL_FAST_DEVICE void store_pack(T* target, const Pack<T, N>& pack) {
#if !defined(__CUDACC__)
  emulator::store_global(target, pack);
#else
  if constexpr (sizeof(T) * N == 16) {
    const auto bits = pack_to_bits<uint4>(pack);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(bits.x), "r"(bits.y),
                 "r"(bits.z), "r"(bits.w)
                 : "memory");
  } else if constexpr (sizeof(T) * N == 8) {
    const auto bits = pack_to_bits<uint2>(pack);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(target), "r"(bits.x), "r"(bits.y)
                 : "memory");
  } else if constexpr (sizeof(T) * N == 4) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(target), "r"(pack_to_bits<unsigned>(pack))
                 : "memory");
  } else {
    *reinterpret_cast<Pack<T, N>*>(target) = pack;
  }
#endif
}

// All of a pack at once: of two 16-bit values in a register each takes one instruction.
template <typename T, int N>
TAL_FAST_DEVICE void widen_pack(const Pack<T, N>& pack, ComputeType<T>* wide) {
#if defined(__CUDACC__)
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    struct Words {
      unsigned words[N / 2];
    };
    const Words bits = pack_to_bits<Words>(pack);
    for (int i = 0; i < N / 2; ++i) {
      const unsigned word = bits.words[i];
      if constexpr (std::is_same_v<T, BFloat16>) {
        wide[2 * i] = __uint_as_float(word << 16);
        wide[2 * i + 1] = __uint_as_float(word & 0xffff0000u);
      } else {
        __half2 two;
        memcpy(&two, &word, sizeof(two));
        const float2 both = __half22float2(two);
        wide[2 * i] = both.x;
        wide[2 * i + 1] = both.y;
      }
    }
  } else
#endif
  {
    for (int i = 0; i < N; ++i) {
      wide[i] = widen(pack[i]);
    }
  }
}

// A number that stays in a register: without, nvcc computes it again in every turn of a loop.
TAL_FAST_DEVICE int pinned(int value) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// nvcc forgets where it points: to be read and stored by read_pack() and store_pack().
template <typename T>
TAL_FAST_DEVICE T* pinned(T* pointer) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(pointer));
#endif
  return pointer;
}

// The same for a place in shared memory that packs of 16 bytes are loaded from.
template <typename T>
class PinnedShared {
 public:
  static constexpr int kWidth = kPackSize<T>;
#if defined(__CUDACC__)
  TAL_FAST_DEVICE explicit PinnedShared(Shared<T> place) : address_(place.address()) {
    asm volatile("" : "+r"(address_));
  }
  // The pack that begins `bytes` behind the place.
  TAL_FAST_DEVICE Pack<T, kWidth> load(int bytes) const {
    uint4 bits;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "r"(address_ + static_cast<unsigned>(bytes))
                 : "memory");
    return bits_to_pack<T, kWidth>(bits);
  }

 private:
  unsigned address_;
#else
  explicit PinnedShared(Shared<T> place) : place_(place) {}
  Pack<T, kWidth> load(int bytes) const {
    return place_.template load_pack<kWidth>(bytes / static_cast<int>(sizeof(T)));
  }

 private:
  Shared<T> place_;
#endif
};

TAL_FAST_DEVICE int lane_index() {
  return static_cast<int>(threadIdx.x) % kWarp;
}

TAL_FAST_DEVICE int warp_index() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

// The sum over `width` neighbouring lanes (a power of two), in every one of them, always added in
// the same order. All lanes of the warp must call it.
template <int width = kWarp, typename T>
TAL_FAST_DEVICE T warp_sum(T value) {
  for (int offset = width / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <int width = kWarp, typename T>
TAL_FAST_DEVICE T warp_max(T value) {
  for (int offset = width / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, offset);
    value = value > other ? value : other;
  }
  return value;
}

}  // namespace tal_fast
