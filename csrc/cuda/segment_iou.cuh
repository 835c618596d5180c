// SPDX-License-Identifier: Apache-2.0
// Kernels of segment_iou and its backward. The forward is bound by the bytes it writes: a thread
// keeps a few columns in registers and goes down the rows, so that every store of a warp is one
// whole line.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/segment_iou_ordinary.cuh"
#include "math/segment_overlap.h"

namespace tal_fast {

// kWidth columns per thread: kPackSize<T> where rows of the output are aligned to 16 bytes, else 1.
template <IouKind kind, typename T, int kWidth>
struct SegmentIouPairwise {
  static constexpr const char* kName = "segment_iou pairwise";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = sizeof(ComputeType<T>) == 8 ? 2 : 4;

  using C = ComputeType<T>;

  const T* a;  // [N, 2]
  const T* b;  // [M, 2], packs of 2 * kWidth aligned as load_pack has them
  int64_t n, m;
  C eps;
  T* out;  // [N, M]

  static size_t shared_bytes(int threads) { return SharedSize().take<C>(2 * threads).bytes(); }

  // Rows are split evenly between the blocks of a column.
  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const Shared<C> of_rows = memory.take<C>(2 * threads);  // [threads, 2]
    const int64_t column = (static_cast<int64_t>(blockIdx.x) * threads + thread) * int64_t{kWidth};
    const bool inside = column < m;
    C starts[kWidth] = {};
    C ends[kWidth] = {};
    if (inside) {
      read_columns(column, starts, ends);
    }
    bool ordinary_columns = kMayBeOrdinary;
    if constexpr (kMayBeOrdinary) {
      for (int i = 0; i < kWidth; ++i) {
        ordinary_columns = ordinary_columns && ordinary_segment(starts[i], ends[i]);
      }
    }
    const int64_t last = n * (static_cast<int64_t>(blockIdx.y) + 1) / gridDim.y;
    for (int64_t first = n * blockIdx.y / gridDim.y; first < last; first += threads) {
      const int count = static_cast<int>(last - first < threads ? last - first : threads);
      bool ordinary = ordinary_columns;
      if (thread < count) {
        const C start = widen(read(a + 2 * (first + thread)));
        const C end = widen(read(a + 2 * (first + thread) + 1));
        of_rows.template store_pack<2>(2 * thread, Pack<C, 2>{{start, end}});
        if constexpr (kMayBeOrdinary) {
          ordinary = ordinary && ordinary_row(start, end, eps);
        }
      }
      const bool all_ordinary = __syncthreads_and(ordinary) != 0;
      T* target = out + first * m + column;
      if constexpr (kMayBeOrdinary) {
        if (inside && all_ordinary) {
          int row = 0;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
          for (; row + kAtOnce <= count; row += kAtOnce, target += kAtOnce * m) {  // hot: rows
            for (int i = 0; i < kAtOnce; ++i) {
              write_row<OrdinaryArithmetic>(of_rows, row + i, starts, ends, target + i * m);
            }
          }
          if (row < count) {
            write_row<OrdinaryArithmetic>(of_rows, row, starts, ends, target);
          }
        }
      }
      if (inside && !all_ordinary) {
#if defined(__CUDACC__)
#pragma unroll 1
#endif
        for (int row = 0; row < count; ++row, target += m) {  // hot: any row
          write_row<PlainArithmetic>(of_rows, row, starts, ends, target);
        }
      }
      __syncthreads();
    }
  }

 private:
  // For double there are no faster instructions.
  static constexpr bool kMayBeOrdinary = sizeof(C) == 4;
  static constexpr int kAtOnce = kWidth > 4 ? 1 : 2;  // rows

  TAL_FAST_DEVICE void read_columns(int64_t column, C* starts, C* ends) const {
    constexpr int kPart = kWidth > 1 ? kWidth : 2;  // of the ends of the columns
    Pack<T, kPart> ends_of[2 * kWidth / kPart];
    for (int i = 0; i < 2 * kWidth / kPart; ++i) {
      if constexpr (kWidth > 1) {
        ends_of[i] = read_pack<kPart>(b + 2 * column + i * kPart);
      } else {
        ends_of[i] = {read(b + 2 * column), read(b + 2 * column + 1)};
      }
    }
    for (int i = 0; i < kWidth; ++i) {
      starts[i] = widen(ends_of[2 * i / kPart][2 * i % kPart]);
      ends[i] = widen(ends_of[2 * i / kPart][2 * i % kPart + 1]);
    }
  }

  template <typename Arithmetic>
  TAL_FAST_DEVICE void write_row(Shared<C> of_rows, int row, const C* starts, const C* ends,
                                 T* target) const {
    const Pack<C, 2> of_row = of_rows.template load_pack<2>(2 * row);
    Pack<T, kWidth> values;
    for (int i = 0; i < kWidth; ++i) {
      values[i] =
          narrow<T>(overlap<kind, Arithmetic>(of_row[0], of_row[1], starts[i], ends[i], eps));
    }
    store_pack<kWidth>(target, values);
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

// Both gradients in one pass over the pairs, added in the order of math/segment_overlap.h. A block
// owns a tile of rows: a lane of a row sums every kLanes-th column for a in registers, and what its
// pairs give to b meets that of the other rows in shared memory.
template <IouKind kind, typename T>
struct SegmentIouPairwiseBackward {
  using C = ComputeType<T>;

  static constexpr const char* kName = "segment_iou_backward pairwise";
  static constexpr int kLanes = kOverlapLanes<C>;
  static constexpr int kThreads = kOverlapTile * kLanes;
  static constexpr int kBlocks = 3;
  static constexpr int kGroups = kOverlapTile / 2;
  static constexpr int kColumns = kLanes * kGroups;  // per turn: both ends of each keep all threads
  static constexpr int kStride = kColumns + kLanes;  // rows of a warp begin at different banks

  const T* grad;  // [N, M], strided
  int64_t grad_row_stride, grad_column_stride;
  const T* a;  // [N, 2]
  const T* b;  // [M, 2]
  int64_t n, m;
  C eps;
  T* grad_a;  // [N, 2] or null
  C* tiles;   // [tiles, 2, M] or null: the sums for b over the rows of each tile

  // Two buffers: one is summed while the next is filled.
  static size_t shared_bytes() {
    return SharedSize()
        .take<C>(2 * kOverlapTile * kStride)
        .template take<C>(2 * kOverlapTile * kStride)
        .bytes();
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<C> by_end[2] = {memory.take<C>(2 * kOverlapTile * kStride),
                                 memory.take<C>(2 * kOverlapTile * kStride)};
    const int thread = static_cast<int>(threadIdx.x);
    const int row_in_tile = thread / kLanes;
    const int lane = thread % kLanes;
    const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kOverlapTile;
    const int64_t row = first_row + row_in_tile;
    const int num_rows =
        static_cast<int>(n - first_row < kOverlapTile ? n - first_row : int64_t{kOverlapTile});
    const bool has_row = row < n;
    const C start = has_row ? widen(a[2 * row]) : C(0);
    const C end = has_row ? widen(a[2 * row + 1]) : C(0);
    C sum_start = 0;
    C sum_end = 0;
    int buffer = 0;
    for (int64_t first = 0; first < m; first += kColumns) {
      const int place = (buffer * kOverlapTile + row_in_tile) * kStride + lane;
      // All loads of a turn before the first use.
      C weights[kGroups];
      C starts[kGroups];
      C ends[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        const int64_t column = first + g * kLanes + lane;
        const bool inside = has_row && column < m;
        weights[g] =
            inside ? widen(grad[row * grad_row_stride + column * grad_column_stride]) : C(0);
        starts[g] = inside ? widen(b[2 * column]) : C(0);
        ends[g] = inside ? widen(b[2 * column + 1]) : C(0);
      }
      for (int g = 0; g < kGroups; ++g) {
        const bool inside = has_row && first + g * kLanes + lane < m;
        const PairGradient<C> part =
            overlap_gradient<kind, C, C>(start, end, starts[g], ends[g], eps);
        // Where there is no pair 0 / 0 may have come out.
        sum_start += inside ? part.a_start * weights[g] : C(0);
        sum_end += inside ? part.a_end * weights[g] : C(0);
        if (tiles != nullptr) {
          by_end[0].store(place + g * kLanes, part.b_start * weights[g]);
          by_end[1].store(place + g * kLanes, part.b_end * weights[g]);
        }
      }
      if (tiles == nullptr) {
        continue;
      }
      __syncthreads();
      static_assert(kThreads == 2 * kColumns);
      const bool of_ends = thread >= kColumns;
      const int column_in_turn = thread % kColumns;
      const int64_t column = first + column_in_turn;
      if (column < m) {
        const Shared<C> parts =
            (of_ends ? by_end[1] : by_end[0]) + (buffer * kOverlapTile * kStride + column_in_turn);
        C sum = 0;
        for (int r = 0; r < num_rows; ++r) {
          sum += parts.load(r * kStride);
        }
        tiles[(2 * static_cast<int64_t>(blockIdx.x) + (of_ends ? 1 : 0)) * m + column] = sum;
      }
      buffer ^= 1;
    }
    // Before the test for null: all lanes of a warp must take part.
    sum_start = warp_sum<kLanes>(sum_start);
    sum_end = warp_sum<kLanes>(sum_end);
    if (grad_a != nullptr && has_row && lane == 0) {
      store_pack<2>(grad_a + 2 * row, Pack<T, 2>{{narrow<T>(sum_start), narrow<T>(sum_end)}});
    }
  }
};

// Adds up the tiles of every part, a warp each, and then the parts.
template <typename T>
struct SegmentIouJoin {
  static constexpr const char* kName = "segment_iou_backward join";
  static constexpr int kThreads = 1024;
  static constexpr int kBlocks = 1;

  using C = ComputeType<T>;

  const C* tiles;  // [tiles, 2, M]
  int64_t num_tiles, tiles_per_part;
  int num_parts;  // the warps of a block
  int64_t m;
  T* grad_b;  // [M, 2]

  static size_t shared_bytes() { return SharedSize().take<C>(kThreads).bytes(); }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<C> parts = memory.take<C>(kThreads);  // [num_parts, kWarp]
    const int64_t end = static_cast<int64_t>(blockIdx.x) * kWarp + lane_index();  // of 2 * M
    const bool inside = end < 2 * m;
    if (inside) {
      const int64_t first = warp_index() * tiles_per_part;
      const int64_t last = first + tiles_per_part < num_tiles ? first + tiles_per_part : num_tiles;
      C sum = 0;
      for (int64_t tile = first; tile < last; ++tile) {
        sum += tiles[2 * tile * m + end];
      }
      parts.store(static_cast<int>(threadIdx.x), sum);
    }
    __syncthreads();
    if (inside && warp_index() == 0) {
      C sum = 0;
      for (int p = 0; p < num_parts; ++p) {
        sum += parts.load(p * kWarp + lane_index());
      }
      grad_b[end < m ? 2 * end : 2 * (end - m) + 1] = narrow<T>(sum);
    }
  }
};

template <IouKind kind, typename T>
struct SegmentIouAlignedBackward {
  static constexpr const char* kName = "segment_iou_backward aligned";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;

  using C = ComputeType<T>;

  const T* grad;  // [N], strided
  int64_t grad_stride;
  const T* a;  // [N, 2]
  const T* b;  // [N, 2]
  int64_t n;
  C eps;
  T* grad_a;  // [N, 2] or null
  T* grad_b;  // [N, 2] or null

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) {
      return;
    }
    const C weight = widen(grad[i * grad_stride]);
    const PairGradient<C> part = overlap_gradient<kind, C, C>(
        widen(a[2 * i]), widen(a[2 * i + 1]), widen(b[2 * i]), widen(b[2 * i + 1]), eps);
    if (grad_a != nullptr) {
      store_pack<2>(grad_a + 2 * i,
                    Pack<T, 2>{{narrow<T>(weight * part.a_start), narrow<T>(weight * part.a_end)}});
    }
    if (grad_b != nullptr) {
      store_pack<2>(grad_b + 2 * i,
                    Pack<T, 2>{{narrow<T>(weight * part.b_start), narrow<T>(weight * part.b_end)}});
    }
  }
};

}  // namespace tal_fast
