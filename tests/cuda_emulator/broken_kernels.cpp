// SPDX-License-Identifier: Apache-2.0
// Kernels broken on purpose, one per fault that the emulator must find, and sound ones that it must
// let pass. tests/ops/test_cuda_emulator.py runs them by name.
#include <cstring>
#include <stdexcept>
#include <string>
#include <typeinfo>

#include "cuda/platform.cuh"

namespace tal_fast {
namespace {

struct Fault {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 2;
  int* out;  // [128]
};

struct SharedOutOfBounds : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> first = memory.take<int>(32);
    const Shared<int> second = memory.take<int>(32);
    if (threadIdx.x < 32) {
      second.store(static_cast<int>(threadIdx.x), 0);
    }
    if (threadIdx.x == 0) {
      first.store(32, 1);  // the first element of `second`
    }
  }
};

struct SharedBelowBounds : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    memory.take<int>(32);
    const Shared<int> second = memory.take<int>(32);
    if (threadIdx.x == 5) {
      second.store(-1, 1);
    }
  }
};

struct SharedMoreThanAsked : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    memory.take<int>(1000);
  }
};

struct SharedUninitialised : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<float> values = memory.take<float>(32);
    const int i = static_cast<int>(threadIdx.x);
    if (i < 31) {
      values.store(i, 1.0f);
    }
    __syncthreads();
    out[i] = static_cast<int>(values.load(i % 32));
  }
};

// Every block must write again: what the one before left does not count.
struct SharedLeftByAnotherBlock : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> values = memory.take<int>(32);
    const int i = static_cast<int>(threadIdx.x);
    if (blockIdx.x == 0 && i < 32) {
      values.store(i, i);
    }
    __syncthreads();
    out[i] = values.load(i % 32);
  }
};

struct MisalignedPack : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<float> values = memory.take<float>(32);
    if (threadIdx.x == 0) {
      values.store_pack<4>(2, Pack<float, 4>{});
    }
  }
};

struct MisalignedGlobal : Fault {
  TAL_FAST_DEVICE void operator()() const {
    if (threadIdx.x == 0) {
      store_pack<4>(out + 1, Pack<int, 4>{});
    }
  }
};

struct RaceReadAfterWrite : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> values = memory.take<int>(128);
    const int i = static_cast<int>(threadIdx.x);
    values.store(i, 0);
    __syncthreads();
    values.store(i, i);
    out[i] = values.load((i + 64) % 128);
  }
};

struct RaceWriteAfterRead : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> values = memory.take<int>(128);
    const int i = static_cast<int>(threadIdx.x);
    values.store(i, i);
    __syncthreads();
    out[i] = values.load(127 - i);
    values.store(i, 0);
  }
};

struct RaceWriteAfterWrite : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    memory.take<int>(1).store(0, static_cast<int>(threadIdx.x));
  }
};

struct RaceWithinWarp : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> values = memory.take<int>(128);
    const int i = static_cast<int>(threadIdx.x);
    values.store(i, 0);
    __syncthreads();
    values.store(i, i);
    out[i] = values.load(i ^ 1);
  }
};

struct RaceOfWarpOrderAcrossWarps : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> values = memory.take<int>(128);
    const int i = static_cast<int>(threadIdx.x);
    values.store(i, 0);
    __syncthreads();
    values.store(i, i);
    __syncwarp();
    out[i] = values.load(i ^ 32);
  }
};

struct RaceAtomicAndPlain : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> sum = memory.take<int>(1);
    if (threadIdx.x == 0) {
      sum.store(0, 0);
    }
    __syncthreads();
    sum.atomic_add(0, 1);
    out[threadIdx.x] = sum.load(0);
  }
};

struct DivergentBarrier : Fault {
  TAL_FAST_DEVICE void operator()() const {
    if (threadIdx.x < 64) {
      __syncthreads();
    }
  }
};

struct TwoBarriers : Fault {
  TAL_FAST_DEVICE void operator()() const {
    if (threadIdx.x < 64) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
};

struct DivergentShuffle : Fault {
  TAL_FAST_DEVICE void operator()() const {
    if (threadIdx.x % 32 != 3) {
      out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
    }
  }
};

struct ShuffleAgainstBarrier : Fault {
  TAL_FAST_DEVICE void operator()() const {
    if (threadIdx.x % 2 == 0) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

struct ShuffleOutsideMask : Fault {
  TAL_FAST_DEVICE void operator()() const {
    if (threadIdx.x < 4) {
      out[threadIdx.x] = __shfl_sync(0xfu, 1, 8);
    }
  }
};

struct MaskWithoutCaller : Fault {
  TAL_FAST_DEVICE void operator()() const { __syncwarp(0x1u); }
};

struct CopyNotWaitedFor : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> values = memory.take<int>(4);
    if (threadIdx.x == 0) {
      values.copy_async(0, out);
    }
  }
};

struct UnboundedStack : Fault {
  TAL_FAST_DEVICE void operator()() const {
    volatile char bytes[254 * 1024];
    for (size_t i = 0; i < sizeof(bytes); i += 8) {
      bytes[i] = 1;
    }
    out[0] = bytes[0];
  }
};

// Global memory is plain memory here: AddressSanitizer finds this one.
struct GlobalOutOfBounds : Fault {
  TAL_FAST_DEVICE void operator()() const {
    if (threadIdx.x == 127) {
      out[threadIdx.x + 1] = 1;
    }
  }
};

// ---- sound ones
// -----------------------------------------------------------------------------------

// A sum over the block: shuffles within warps, shared memory between them.
struct BlockSum : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> parts = memory.take<int>(4);
    const int sum = warp_sum(static_cast<int>(threadIdx.x) + static_cast<int>(blockIdx.x));
    if (lane_index() == 0) {
      parts.store(warp_index(), sum);
    }
    __syncthreads();
    int total = 0;
    for (int w = 0; w < 4; ++w) {
      total += parts.load(w);
    }
    out[threadIdx.x] = total;
  }
};

// All lanes read before a warp operation, one of them reads again and writes after it.
struct ReadsAgainThenWrites : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> totals = memory.take<int>(4);
    if (lane_index() == 0) {
      totals.store(warp_index(), 1);
    }
    __syncwarp();
    const int before = totals.load(warp_index());
    __syncwarp();
    if (lane_index() == 0) {
      totals.add(warp_index(), 1);
    }
    __syncwarp();
    out[threadIdx.x] = before + totals.load(warp_index());
  }
};

// The same without an operation between.
struct RaceOfReadAgain : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> totals = memory.take<int>(4);
    if (lane_index() == 0) {
      totals.store(warp_index(), 1);
    }
    __syncwarp();
    out[threadIdx.x] = totals.load(warp_index());
    if (lane_index() == 0) {
      totals.add(warp_index(), 1);
    }
  }
};

struct EveryOperation : Fault {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> counts = memory.take<int>(4);
    const Shared<int> copied = memory.take<int>(4 * 128);
    const int i = static_cast<int>(threadIdx.x);
    if (i < 4) {
      counts.store(i, 0);
    }
    __syncthreads();
    counts.atomic_add(i % 4, i);
    counts.atomic_max(3, 0);
    copied.copy_async(4 * i, out);
    wait_for_copies();
    __syncthreads();
    const int first = copied.load(4 * ((i + 1) % 128));
    const bool fine = counts.load(1) == 32 * 63 && first == out[0] &&
                      __ballot_sync(kAllLanes, i % 2) == 0xaaaaaaaau &&
                      __match_any_sync(kAllLanes, static_cast<unsigned>(i % 32) / 16) ==
                          (i % 32 < 16 ? 0xffffu : 0xffff0000u) &&
                      __shfl_up_sync(kAllLanes, i, 1) == (i % 32 == 0 ? i : i - 1) &&
                      __shfl_down_sync(kAllLanes, i, 2, 16) == (i % 16 >= 14 ? i : i + 2) &&
                      __shfl_sync(kAllLanes, i, 5, 8) == i / 8 * 8 + 5 &&
                      warp_max(i) == (i / 32 + 1) * 32 - 1 && __syncthreads_count(i < 7) == 7 &&
                      __syncthreads_or(i == 9) && !__syncthreads_and(i != 9);
    __syncthreads();
    out[i] = fine ? 1 : 0;
  }
};

template <typename Kernel>
void run(const char* name, unsigned blocks, unsigned threads, size_t shared, int* out) {
  const Kernel kernel{{out}};
  emulator::launch(name, typeid(Kernel).name(), {Kernel::kThreads, Kernel::kBlocks}, blocks,
                   threads, shared, sizeof(kernel), [&] { kernel(); });
}

}  // namespace
}  // namespace tal_fast

// Runs one kernel; null when it went through, else the error. `out` has 128 elements.
extern "C" __attribute__((visibility("default"))) const char* tal_fast_emulator_run(
    const char* name, unsigned blocks, unsigned threads, size_t shared, int* out) {
  using namespace tal_fast;
  static std::string error;
  try {
#define TAL_FAST_RUN(kernel)                         \
  if (std::strcmp(name, #kernel) == 0) {             \
    run<kernel>(name, blocks, threads, shared, out); \
    return nullptr;                                  \
  }
    TAL_FAST_RUN(SharedOutOfBounds)
    TAL_FAST_RUN(SharedBelowBounds)
    TAL_FAST_RUN(SharedMoreThanAsked)
    TAL_FAST_RUN(SharedUninitialised)
    TAL_FAST_RUN(SharedLeftByAnotherBlock)
    TAL_FAST_RUN(MisalignedPack)
    TAL_FAST_RUN(MisalignedGlobal)
    TAL_FAST_RUN(RaceReadAfterWrite)
    TAL_FAST_RUN(RaceWriteAfterRead)
    TAL_FAST_RUN(RaceWriteAfterWrite)
    TAL_FAST_RUN(RaceWithinWarp)
    TAL_FAST_RUN(RaceOfWarpOrderAcrossWarps)
    TAL_FAST_RUN(RaceAtomicAndPlain)
    TAL_FAST_RUN(DivergentBarrier)
    TAL_FAST_RUN(TwoBarriers)
    TAL_FAST_RUN(DivergentShuffle)
    TAL_FAST_RUN(ShuffleAgainstBarrier)
    TAL_FAST_RUN(ShuffleOutsideMask)
    TAL_FAST_RUN(MaskWithoutCaller)
    TAL_FAST_RUN(CopyNotWaitedFor)
    TAL_FAST_RUN(UnboundedStack)
    TAL_FAST_RUN(GlobalOutOfBounds)
    TAL_FAST_RUN(BlockSum)
    TAL_FAST_RUN(ReadsAgainThenWrites)
    TAL_FAST_RUN(RaceOfReadAgain)
    TAL_FAST_RUN(EveryOperation)
#undef TAL_FAST_RUN
    error = std::string("no kernel ") + name;
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  return error.c_str();
}
