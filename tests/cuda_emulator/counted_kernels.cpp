// SPDX-License-Identifier: Apache-2.0
// Small kernels whose counts are known by hand: sound ones, the same made worse on purpose, and
// ones whose lanes part. tests/ops/test_cuda_counters.py runs them by name.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>

#include "cuda/platform.cuh"

namespace tal_fast {
namespace {

constexpr int kNumbers = 1 << 14;  // of `in` and of `out`, which begin at multiples of 512 bytes

struct Made {
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 2;
  const float* in;
  float* out;

 protected:
  static TAL_FAST_DEVICE int index() {
    return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  }
};

// ---- global memory ------------------------------------------------------------------------------

struct Copy : Made {
  TAL_FAST_DEVICE void operator()() const { out[index()] = in[index()]; }
};

struct CopyStrided : Made {
  TAL_FAST_DEVICE void operator()() const { out[index()] = in[8 * index()]; }
};

struct CopyMisaligned : Made {
  TAL_FAST_DEVICE void operator()() const { out[index()] = in[index() + 1]; }
};

struct CopyPacks : Made {
  TAL_FAST_DEVICE void operator()() const {
    store_pack<4>(out + 4 * index(), read_pack<4>(in + 4 * index()));
  }
};

// What a pack becomes where its elements are copied one by one.
struct CopyPacksByElements : Made {
  TAL_FAST_DEVICE void operator()() const {
    for (int i = 0; i < 4; ++i) {
      out[4 * index() + i] = in[4 * index() + i];
    }
  }
};

// Every block reads what all blocks read.
struct Rescan : Made {
  TAL_FAST_DEVICE void operator()() const {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < gridDim.x * blockDim.x; i += blockDim.x) {
      sum += in[i];
    }
    out[index()] = sum;
  }
};

struct AddToOne : Made {
  TAL_FAST_DEVICE void operator()() const { atomicAdd(reinterpret_cast<int*>(out), 1); }
};

// ---- shared memory ------------------------------------------------------------------------------

// Columns of a square of which the rows are kStride apart.
template <int kStride>
struct Columns : Made {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<float> square = memory.take<float>(32 * kStride);
    for (int row = 0; row < 32; ++row) {
      square.store(row * kStride + static_cast<int>(threadIdx.x), 1.0f);
    }
    __syncthreads();
    out[threadIdx.x] = square.load(static_cast<int>(threadIdx.x) * kStride);
  }
};
using ColumnsInOneBank = Columns<32>;
using ColumnsPadded = Columns<33>;

// Lane i reads N elements from kStep * i on.
template <int N, int kStep>
struct SharedPacks : Made {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<float> row = memory.take<float>(32 * 32);
    for (int i = static_cast<int>(threadIdx.x); i < 32 * 32; i += 32) {
      row.store(i, 1.0f);
    }
    __syncthreads();
    out[threadIdx.x] = row.load_pack<N>(static_cast<int>(threadIdx.x) * kStep)[0];
  }
};
using SharedPairs = SharedPacks<2, 2>;
using SharedQuads = SharedPacks<4, 4>;
using SharedQuadsApart = SharedPacks<4, 32>;
using SharedBroadcast = SharedPacks<1, 0>;

struct SharedAdds : Made {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int> bins = memory.take<int>(32);
    bins.store(static_cast<int>(threadIdx.x), 0);
    __syncthreads();
    bins.atomic_add(static_cast<int>(threadIdx.x) % 4, 1);
  }
};

struct AsyncCopy : Made {
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<float> row = memory.take<float>(4 * 32);
    row.copy_async(4 * static_cast<int>(threadIdx.x), in + 4 * threadIdx.x);
    wait_for_copies();
    out[threadIdx.x] = row.load(4 * static_cast<int>(threadIdx.x));
  }
};

// ---- lanes that part ----------------------------------------------------------------------------

struct HalfTakesIt : Made {
  TAL_FAST_DEVICE void operator()() const {
    if (index() % 2 == 0) {
      out[index()] = 1.0f;
    }
  }
};

struct BothSides : Made {
  TAL_FAST_DEVICE void operator()() const {
    if (lane_index() < 16) {
      out[index()] = 1.0f;
    } else {
      out[index() + 64] = 2.0f;
    }
  }
};

// Lane l turns l % 4 times.
struct RaggedLoop : Made {
  TAL_FAST_DEVICE void operator()() const {
    for (int turn = 0; turn < lane_index() % 4; ++turn) {
      emulator::turn("ragged");
      out[32 * turn + lane_index()] = 1.0f;
    }
  }
};

__attribute__((noinline)) void store_from(float* target, float value) {
  *target = value;
}

// Half of the lanes skip the first of two calls of one function.
struct TwoCalls : Made {
  TAL_FAST_DEVICE void operator()() const {
    if (lane_index() < 16) {
      store_from(out + lane_index(), 1.0f);
    }
    store_from(out + 32 + lane_index(), 2.0f);
  }
};

// The halves of a warp exchange values each for itself; what they read belongs to one request.
struct HalvesMeet : Made {
  TAL_FAST_DEVICE void operator()() const {
    const unsigned half = lane_index() < 16 ? 0xffffu : 0xffff0000u;
    const int other = __shfl_xor_sync(half, index(), 1);
    out[index()] = in[other];
  }
};

// ---- barriers and warp operations ---------------------------------------------------------------

struct Operations : Made {
  TAL_FAST_DEVICE void operator()() const {
    double sum = 0.0;
    for (int i = 0; i < 3; ++i) {
      sum += __shfl_xor_sync(kAllLanes, 1.0, 1);
      __syncthreads();
    }
    out[index()] = static_cast<float>(sum) + static_cast<float>(__ballot_sync(kAllLanes, 1));
  }
};

// Each load waits for the one before, since an operation of the warp stands between.
struct OneAfterTheOther : Made {
  TAL_FAST_DEVICE void operator()() const {
    float sum = 0.0f;
    for (int i = 0; i < 5; ++i) {
      sum = __shfl_xor_sync(kAllLanes, sum + in[32 * i + lane_index()], 1);
    }
    out[index()] = sum;
  }
};

template <typename Kernel>
void run(const char* name, unsigned blocks, unsigned threads, size_t shared, const float* in,
         float* out) {
  const Kernel kernel{{in, out}};
  emulator::launch(name, typeid(Kernel).name(), {Kernel::kThreads, Kernel::kBlocks}, blocks,
                   threads, shared, sizeof(kernel), [&] { kernel(); });
}

}  // namespace
}  // namespace tal_fast

// Runs one kernel; null when it went through, else the error.
extern "C" __attribute__((visibility("default"))) const char* tal_fast_emulator_run_made(
    const char* name, unsigned blocks, unsigned threads, size_t shared) {
  using namespace tal_fast;
  // Not within the library, whose own data are taken for constants.
  const auto allocated = [] {
    return std::unique_ptr<float, decltype(&std::free)>(
        static_cast<float*>(std::aligned_alloc(512, kNumbers * sizeof(float))), &std::free);
  };
  const auto in = allocated();
  const auto out = allocated();
  std::memset(in.get(), 0, kNumbers * sizeof(float));
  std::memset(out.get(), 0, kNumbers * sizeof(float));
  static std::string error;
  try {
#define TAL_FAST_RUN(kernel)                                         \
  if (std::strcmp(name, #kernel) == 0) {                             \
    run<kernel>(name, blocks, threads, shared, in.get(), out.get()); \
    return nullptr;                                                  \
  }
    TAL_FAST_RUN(Copy)
    TAL_FAST_RUN(CopyStrided)
    TAL_FAST_RUN(CopyMisaligned)
    TAL_FAST_RUN(CopyPacks)
    TAL_FAST_RUN(CopyPacksByElements)
    TAL_FAST_RUN(Rescan)
    TAL_FAST_RUN(AddToOne)
    TAL_FAST_RUN(ColumnsInOneBank)
    TAL_FAST_RUN(ColumnsPadded)
    TAL_FAST_RUN(SharedPairs)
    TAL_FAST_RUN(SharedQuads)
    TAL_FAST_RUN(SharedQuadsApart)
    TAL_FAST_RUN(SharedBroadcast)
    TAL_FAST_RUN(SharedAdds)
    TAL_FAST_RUN(AsyncCopy)
    TAL_FAST_RUN(HalfTakesIt)
    TAL_FAST_RUN(BothSides)
    TAL_FAST_RUN(RaggedLoop)
    TAL_FAST_RUN(TwoCalls)
    TAL_FAST_RUN(HalvesMeet)
    TAL_FAST_RUN(Operations)
    TAL_FAST_RUN(OneAfterTheOther)
#undef TAL_FAST_RUN
    error = std::string("no kernel ") + name;
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  return error.c_str();
}
