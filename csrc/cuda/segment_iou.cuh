// SPDX-License-Identifier: Apache-2.0
// Kernels of segment_iou. Bound by the bytes they write: a thread keeps a few columns in registers
// and goes down the rows, so that every store of a warp is one whole line.
#pragma once

#include "cuda/platform.cuh"
#include "math/segment_overlap.h"

namespace tal_fast {

// kWidth columns per thread: kPackSize<T> where rows of the output are aligned to 16 bytes, else 1.
template <IouKind kind, typename T, int kWidth>
struct SegmentIouPairwise {
  static constexpr const char* kName = "segment_iou pairwise";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = sizeof(ComputeType<T>) == 8 ? 2 : 4;
  static constexpr int kRows = 8;  // per block and turn

  using C = ComputeType<T>;

  const T* a;  // [N, 2]
  const T* b;  // [M, 2]
  int64_t n, m;
  C eps;
  T* out;  // [N, M]

  TAL_FAST_DEVICE void operator()() const {
    const int64_t column =
        (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * int64_t{kWidth};
    if (column >= m) {
      return;
    }
    C starts[kWidth];
    C ends[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      starts[i] = widen(b[2 * (column + i)]);
      ends[i] = widen(b[2 * (column + i) + 1]);
    }
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * kRows; first < n;
         first += static_cast<int64_t>(gridDim.y) * kRows) {
      const int64_t last = first + kRows < n ? first + kRows : n;
      for (int64_t row = first; row < last; ++row) {
        // The same for the whole warp: one broadcast from the cache.
        const C start = widen(a[2 * row]);
        const C end = widen(a[2 * row + 1]);
        Pack<T, kWidth> values;
        for (int i = 0; i < kWidth; ++i) {
          values[i] = narrow<T>(overlap<kind>(start, end, starts[i], ends[i], eps));
        }
        store_pack<kWidth>(out + row * m + column, values);
      }
    }
  }
};

template <IouKind kind, typename T>
struct SegmentIouAligned {
  static constexpr const char* kName = "segment_iou aligned";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;

  using C = ComputeType<T>;

  const T* a;  // [N, 2]
  const T* b;  // [N, 2]
  int64_t n;
  C eps;
  T* out;  // [N]

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
      out[i] = narrow<T>(overlap<kind>(widen(a[2 * i]), widen(a[2 * i + 1]), widen(b[2 * i]),
                                       widen(b[2 * i + 1]), eps));
    }
  }
};

}  // namespace tal_fast
