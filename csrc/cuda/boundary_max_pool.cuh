// SPDX-License-Identifier: Apache-2.0
// Kernels of boundary_max_pool. Channels that share their ranges lie in the lanes of a warp, as on
// a CPU: then a maximum takes one comparison per row, without divergence.
#pragma once

#include "cuda/platform.cuh"
#include "math/boundary_max_pool.h"
#include "math/half.h"

namespace tal_fast {

enum class PositionType { kFloat, kDouble, kInt, kLong };

// In elements.
struct PoolStrides {
  int64_t batch;
  int64_t channel;
  int64_t row;
};

template <typename T>
TAL_FAST_DEVICE T not_a_number() {
  return narrow<T>(static_cast<ComputeType<T>>(bits_to_float(0x7fc00000u)));
}

// A block takes kGroup channels of one half of one item, and chunks of the segments. If kStaged,
// all rows of the group are first brought into shared memory, where a channel is a column.
template <typename T, int kGroup, bool kStaged>
struct BoundaryPoolForward {
  static constexpr const char* kName = !kStaged       ? "boundary_max_pool forward, general"
                                       : kGroup == 32 ? "boundary_max_pool forward, wide"
                                                      : "boundary_max_pool forward, narrow";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kSegments = 64;               // per chunk
  static constexpr int kStride = kGroup + 1;         // of staged rows
  static constexpr int kTileStride = kSegments + 1;  // of results, channel by channel

  using C = ComputeType<T>;

  const T* features;  // [B, C, T], strided
  PoolStrides strides;
  bool packs;            // rows of a channel may be read 16 bytes at a time
  const void* segments;  // [B, K, 4]
  PositionType position;
  int64_t half;     // C / 2
  int64_t groups;   // of a half
  int64_t rows;     // T
  int64_t count;    // K
  T* out;           // [B, C, K], or null
  int32_t* argmax;  // [B, C, K], or null

  static SharedSize shared_size(int64_t rows) {
    SharedSize size;
    size.take<int32_t>(2 * kSegments);
    size.take<T>(kGroup * kTileStride);
    size.take<int32_t>(kGroup * kTileStride);
    return kStaged ? size.take<T>(rows * kStride) : size;
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int32_t> ranges = memory.take<int32_t>(2 * kSegments);
    const Shared<T> maxima = memory.take<T>(kGroup * kTileStride);
    const Shared<int32_t> places = memory.take<int32_t>(kGroup * kTileStride);
    Shared<T> staged;
    if constexpr (kStaged) {
      staged = memory.take<T>(static_cast<int>(rows) * kStride);
    }
    const int64_t b = blockIdx.x / (2 * groups);
    const int64_t second = blockIdx.x / groups % 2;
    const int64_t within = blockIdx.x % groups * kGroup;
    const int64_t channel = second * half + within;
    const int channels = static_cast<int>(half - within < kGroup ? half - within : kGroup);
    const T* source = features + b * strides.batch + channel * strides.channel;
    if constexpr (kStaged) {
      stage(source, channels, staged);
    }

    const int64_t target = (b * 2 * half + channel) * count;
    for (int64_t first = int64_t{blockIdx.y} * kSegments; first < count;
         first += int64_t{gridDim.y} * kSegments) {
      const int some = static_cast<int>(count - first < kSegments ? count - first : kSegments);
      for (int k = threadIdx.x; k < some; k += kThreads) {
        read_range(4 * (b * count + first + k) + 2 * second, ranges, k);
      }
      __syncthreads();
      const int c = static_cast<int>(threadIdx.x) % kGroup;
      for (int k = static_cast<int>(threadIdx.x) / kGroup; k < some; k += kThreads / kGroup) {
        if (c < channels) {
          const int begin = ranges.load(2 * k);
          const int end = ranges.load(2 * k + 1);
          if constexpr (kStaged) {
            range_max([&](int t) { return staged.load(t * kStride + c); }, begin, end,
                      c * kTileStride + k, maxima, places);
          } else {
            range_max([&](int t) { return source[c * strides.channel + t * strides.row]; }, begin,
                      end, c * kTileStride + k, maxima, places);
          }
        }
      }
      __syncthreads();
      for (int i = warp_index(); i < channels; i += kWarps) {
        for (int k = lane_index(); k < some; k += kWarp) {
          const int64_t to = target + i * count + first + k;
          if (out != nullptr) {
            out[to] = maxima.load(i * kTileStride + k);
          }
          if (argmax != nullptr) {
            argmax[to] = places.load(i * kTileStride + k);
          }
        }
      }
      // The next chunk writes its ranges only now, and its results after another barrier.
      __syncthreads();
    }
  }

  // Channel by channel where the rows of a channel follow each other, row by row elsewhere.
  TAL_FAST_DEVICE void stage(const T* source, int channels, Shared<T> staged) const {
    constexpr int kWidth = kPackSize<T>;
    const int last = static_cast<int>(rows);
    if (packs) {
      // 8 packs of 4 channels per warp: no two lanes store to one bank.
      const int fours = (channels + 3) / 4;
      const int eights = (last / kWidth + 7) / 8;
      for (int task = warp_index(); task < fours * eights; task += kWarps) {
        const int c = task % fours * 4 + lane_index() / 8;
        const int t = (task / fours * 8 + lane_index() % 8) * kWidth;
        if (c < channels && t < last) {
          const auto pack = load_pack<kWidth>(source + c * strides.channel + t);
          for (int j = 0; j < kWidth; ++j) {
            staged.store((t + j) * kStride + c, pack[j]);
          }
        }
      }
    } else if (strides.row == 1) {
      for (int c = warp_index(); c < channels; c += kWarps) {
        for (int t = lane_index(); t < last; t += kWarp) {
          staged.store(t * kStride + c, source[c * strides.channel + t]);
        }
      }
    } else {
      const int c = static_cast<int>(threadIdx.x) % kGroup;
      for (int t = static_cast<int>(threadIdx.x) / kGroup; c < channels && t < last;
           t += kThreads / kGroup) {
        staged.store(t * kStride + c, source[c * strides.channel + t * strides.row]);
      }
    }
  }

  // A range that ends before it starts is its start alone; one without a number is -1.
  template <typename Position>
  TAL_FAST_DEVICE void read_range(const Position* positions, Shared<int32_t> ranges, int k) const {
    const Position start = positions[0];
    const Position end = positions[1];
    const int32_t first = pooled_row(start, rows);
    const int32_t last = pooled_row(end, rows);
    const bool numbers = start == start && end == end;
    ranges.store(2 * k, numbers ? first : -1);
    ranges.store(2 * k + 1, last > first ? last : first);
  }

  TAL_FAST_DEVICE void read_range(int64_t i, Shared<int32_t> ranges, int k) const {
    switch (position) {
      case PositionType::kFloat:
        return read_range(static_cast<const float*>(segments) + i, ranges, k);
      case PositionType::kDouble:
        return read_range(static_cast<const double*>(segments) + i, ranges, k);
      case PositionType::kInt:
        return read_range(static_cast<const int32_t*>(segments) + i, ranges, k);
      case PositionType::kLong:
        return read_range(static_cast<const int64_t*>(segments) + i, ranges, k);
    }
  }

  // A NaN beats every number and, like every other maximum, is beaten by none that comes later.
  template <typename Load>
  TAL_FAST_DEVICE static void range_max(Load&& load, int begin, int end, int place,
                                        Shared<T> maxima, Shared<int32_t> places) {
    if (begin < 0) {
      maxima.store(place, not_a_number<T>());
      places.store(place, 0);
      return;
    }
    T best = load(begin);
    C wide = widen(best);
    int where = begin;
    for (int t = begin + 1; t <= end; ++t) {
      const T value = load(t);
      const C candidate = widen(value);
      const bool wins = !(candidate <= wide) && wide == wide;
      best = wins ? value : best;
      wide = wins ? candidate : wide;
      where = wins ? t : where;
    }
    maxima.store(place, best);
    places.store(place, where);
  }
};

// A block owns a slice of the rows of 32 channels, a warp an eighth of it, a lane its channel. Each
// goes through all segments and adds what falls into its rows: in the order of the segments, as on
// a CPU.
template <typename T>
struct BoundaryPoolBackward {
  static constexpr const char* kName = "boundary_max_pool backward";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 3;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kSegments = 64;       // per chunk
  static constexpr int kStride = kWarp + 1;  // of rows and segments in shared memory

  using C = ComputeType<T>;

  const T* grad;          // [channels, K]
  const int32_t* argmax;  // [channels, K]
  int64_t channels;       // of all items
  int64_t count;          // K
  int64_t rows;           // that argmax counts in
  int slice;              // rows of a block, a multiple of kWarps
  int64_t slices;
  bool packs;        // rows may be written 16 bytes at a time
  T* grad_features;  // [channels, rows]

  static SharedSize shared_size(int64_t slice) {
    SharedSize size;
    size.take<C>(kSegments * kStride);
    size.take<int32_t>(kSegments * kStride);
    return size.take<C>(slice * kStride);
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<C> grads = memory.take<C>(kSegments * kStride);
    const Shared<int32_t> places = memory.take<int32_t>(kSegments * kStride);
    const Shared<C> sums = memory.take<C>(slice * kStride);
    const int64_t channel0 = blockIdx.x / slices * kWarp;
    const int64_t row0 = blockIdx.x % slices * slice;
    const int some_channels =
        static_cast<int>(channels - channel0 < kWarp ? channels - channel0 : kWarp);
    const int own_begin = warp_index() * (slice / kWarps);
    const int own_end = own_begin + slice / kWarps;
    for (int t = own_begin; t < own_end; ++t) {
      sums.store(t * kStride + lane_index(), C(0));
    }
    bool outside = false;
    for (int64_t first = 0; first < count; first += kSegments) {
      const int some = static_cast<int>(count - first < kSegments ? count - first : kSegments);
      for (int c = warp_index(); c < some_channels; c += kWarps) {
        const int64_t from = (channel0 + c) * count + first;
        for (int k = lane_index(); k < some; k += kWarp) {
          grads.store(k * kStride + c, widen(grad[from + k]));
          places.store(k * kStride + c, argmax[from + k]);
        }
      }
      __syncthreads();
      for (int k = 0; lane_index() < some_channels && k < some; ++k) {
        const int32_t row = places.load(k * kStride + lane_index());
        outside = outside || row < 0 || row >= rows;
        const int64_t t = row - row0;
        if (t >= own_begin && t < own_end) {
          sums.add(static_cast<int>(t) * kStride + lane_index(),
                   grads.load(k * kStride + lane_index()));
        }
      }
      __syncthreads();
    }
    // A CPU refuses an argmax that is no row. A GPU cannot without waiting for it.
    for (int t = own_begin; outside && t < own_end; ++t) {
      sums.store(t * kStride + lane_index(), not_a_number<C>());
    }
    __syncthreads();
    write(channel0, row0, some_channels, sums);
  }

  TAL_FAST_DEVICE void write(int64_t channel0, int64_t row0, int some_channels,
                             Shared<C> sums) const {
    constexpr int kWidth = kPackSize<T>;
    const int last = static_cast<int>(rows - row0 < slice ? rows - row0 : slice);
    T* target = grad_features + channel0 * rows + row0;
    if (packs) {
      // 8 packs of 4 channels per warp: no two lanes load from one bank.
      const int fours = (some_channels + 3) / 4;
      const int eights = (last / kWidth + 7) / 8;
      for (int task = warp_index(); task < fours * eights; task += kWarps) {
        const int c = task % fours * 4 + lane_index() / 8;
        const int t = (task / fours * 8 + lane_index() % 8) * kWidth;
        if (c < some_channels && t < last) {
          Pack<T, kWidth> pack;
          for (int j = 0; j < kWidth; ++j) {
            pack[j] = narrow<T>(sums.load((t + j) * kStride + c));
          }
          store_pack<kWidth>(target + c * rows + t, pack);
        }
      }
    } else {
      for (int c = warp_index(); c < some_channels; c += kWarps) {
        for (int t = lane_index(); t < last; t += kWarp) {
          target[c * rows + t] = narrow<T>(sums.load(t * kStride + c));
        }
      }
    }
  }
};

}  // namespace tal_fast
