// SPDX-License-Identifier: Apache-2.0
// The gradient of value: the row blocks of deform_attn_backward.cuh.
#pragma once

#include "cuda/deform_attn_lanes.cuh"

namespace tal_fast {

// Samples of a window per thread of a block.
constexpr int kSamplesPerThread = 4;
// A sample's rank among those of its warp with the same tap fits.
constexpr int kRankBits = 8;
static_assert(kSamplesPerThread * kWarp <= 1 << kRankBits);

// What both kinds of blocks know.
template <typename T, typename Source>
struct DeformAttnProblem {
  DeformAttnSizes sizes;
  Source source;
  const T* grad;        // [B, Q, H, D]
  const bool* padding;  // [B, S] or null
  bool aligned;         // D and all addresses of rows are multiples of 16 bytes
  Levels levels;
};

template <typename T, typename Source>
struct RowGradients {
  using C = ComputeType<T>;
  using Problem = DeformAttnProblem<T, Source>;

  T* by_value;  // [B, S, H, D]
  int lanes_log2;
  int slices;
  int rows_per_block;
  int ranges;  // of all levels together
  // How the groups of lanes divide the work: `run` neighbouring rows each; where that leaves groups
  // idle, every row goes to `parts` groups, each with its part of the samples.
  int run;
  int parts;

  // Of a block; run_block() takes the same.
  static size_t shared_bytes(int rows, int parts, int width, int threads, int points) {
    const int window = kSamplesPerThread * threads;
    SharedSize size;
    size.take<C>(int64_t{parts} * rows * width);
    size.take<int32_t>(int64_t{threads / kWarp} * (rows + 1));
    size.take<int32_t>(rows + 2);
    size.take<int32_t>(window);
    size.take<C>(window);
    size.take<C>(window);
    size.take<C>(Source::kFused ? 2 * queries_per_window(window, points) : 0);
    return size.bytes();
  }

  // At most: the first and the last one may be cut.
  TAL_FAST_HD static int queries_per_window(int window, int points) {
    const int whole = window / (points > 0 ? points : 1) + 2;
    return whole < window ? whole : window;
  }

  TAL_FAST_DEVICE void run_block(const Problem& problem, int block) const {
    constexpr int N = kPackSize<T>;
    const DeformAttnSizes& sizes = problem.sizes;
    const int slice = block % slices;
    int range = block / slices % ranges;
    const int pair = block / slices / ranges;
    Range here{};
    here.b = pair / static_cast<int>(sizes.heads);
    here.h = pair % static_cast<int>(sizes.heads);
    here.first_channel = slice * (N << lanes_log2);
    here.level_index = 0;
    here.level = problem.levels.get(0);
    for (;;) {
      const int in_level = (here.level.length + rows_per_block - 1) / rows_per_block;
      if (range < in_level) {
        break;
      }
      range -= in_level;
      here.level = problem.levels.get(++here.level_index);
    }
    here.first = range * rows_per_block;
    here.count = here.level.length - here.first < rows_per_block ? here.level.length - here.first
                                                                 : rows_per_block;

    const int width = N << lanes_log2;
    const int window = kSamplesPerThread * static_cast<int>(blockDim.x);
    SharedMemory shared;
    Memory memory{};
    memory.sums = shared.take<C>(parts * rows_per_block * width);
    memory.counts =
        shared.take<int32_t>(static_cast<int>(blockDim.x) / kWarp * (rows_per_block + 1));
    memory.begins = shared.take<int32_t>(rows_per_block + 2);
    memory.query = shared.take<int32_t>(window);
    memory.left = shared.take<C>(window);
    memory.right = shared.take<C>(window);
    memory.softmax =
        shared.take<C>(Source::kFused ? 2 * queries_per_window(window, sizes.points) : 0);

    for (int i = thread(); i < parts * here.count * width; i += threads()) {
      memory.sums.store(i, C(0));
    }
    const int64_t samples = sizes.queries * sizes.points;
    for (int64_t first = 0; first < samples; first += window) {
      const int64_t end = first + window < samples ? first + window : samples;
      sort_window(problem, memory, here, first, end);
      add_rows(problem, memory, here, first / sizes.points);
      __syncthreads();  // before the next window takes the place of this one
    }
    __syncthreads();
    write_rows(problem, memory, here);
  }

 private:
  struct Range {
    int b, h;
    int first_channel;
    int level_index;
    Level level;
    int first, count;  // rows, from the level's first one on
  };

  struct Memory {
    Shared<C> sums;          // [parts, count, width]
    Shared<int32_t> counts;  // [warps, rows_per_block + 1] samples of a tap, then those before them
    Shared<int32_t> begins;  // [rows_per_block + 2] where a tap's samples begin in ...
    Shared<int32_t> query;   // [window] ... the sorted samples: query, from the window's first on,
    Shared<C> left;          // and what the sample's two rows get of the query's gradient
    Shared<C> right;
    Shared<C> softmax;  // [queries, 2] highest logit and sum
  };

  TAL_FAST_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  TAL_FAST_DEVICE static int threads() { return static_cast<int>(blockDim.x); }

  // A sample with its left tap at row `first - 1 + bin` goes to `bin`, from 0 to count. Samples of
  // a bin keep their order.
  TAL_FAST_DEVICE void sort_window(const Problem& problem, const Memory& memory, const Range& here,
                                   int64_t first, int64_t end) const {
    const DeformAttnSizes& sizes = problem.sizes;
    const int lane = lane_index();
    const int warp = warp_index();
    const int warps = threads() / kWarp;
    const int row_of_counts = rows_per_block + 1;
    const int bins = here.count + 1;
    const int64_t first_query = first / sizes.points;
    const int first_point = static_cast<int>(first - first_query * sizes.points);
    const int count = static_cast<int>(end - first);
    // A warp has kSamplesPerThread * 32 samples in a row, of which each lane takes every 32nd.
    // They are on their way while the counts are cleared and the softmax is found.
    typename Source::Raw raw[kSamplesPerThread];
    for (int s = 0; s < kSamplesPerThread; ++s) {
      const int i = (warp * kSamplesPerThread + s) * kWarp + lane;
      raw[s] = {};
      if (i < count) {
        const int q = (first_point + i) / sizes.points;
        const int k = here.level_index * sizes.points + first_point + i - q * sizes.points;
        raw[s] = problem.source.fetch(problem.source.query(sizes, here.b, first_query + q, here.h),
                                      k, here.level_index);
      }
    }
    for (int i = thread(); i < warps * row_of_counts; i += threads()) {
      memory.counts.store(i, 0);
    }
    if constexpr (Source::kFused) {
      const int queries = (first_point + count - 1) / sizes.points + 1;
      for (int i = thread(); i < queries; i += threads()) {
        const Softmax<C> softmax = problem.source.serial_softmax(
            sizes, problem.source.query(sizes, here.b, first_query + i, here.h));
        memory.softmax.store(2 * i, softmax.highest);
        memory.softmax.store(2 * i + 1, softmax.sum);
      }
    }
    __syncthreads();

    int place[kSamplesPerThread];  // bin and rank within warp and bin; -1: none of ours
    C left[kSamplesPerThread];
    C right[kSamplesPerThread];
    for (int s = 0; s < kSamplesPerThread; ++s) {
      const int i = (warp * kSamplesPerThread + s) * kWarp + lane;
      int bin = -1;
      left[s] = C(0);
      right[s] = C(0);
      if (i < count) {
        const C length = static_cast<C>(here.level.length);
        const Position<C> position = locate(problem.source.location(raw[s], length), length);
        const int offset = position.tap - (here.first - 1);
        if (offset >= 0 && offset < bins) {
          Softmax<C> softmax{};
          if constexpr (Source::kFused) {
            const int q = (first_point + i) / sizes.points;
            softmax = {memory.softmax.load(2 * q), memory.softmax.load(2 * q + 1)};
          }
          const C weight = problem.source.weight(raw[s], softmax);
          bin = offset;
          right[s] = weight * position.fraction;
          left[s] = weight - right[s];
        }
      }
      const unsigned same = __match_any_sync(kAllLanes, static_cast<unsigned>(bin));
      const int before = __popc(same & ((1u << lane) - 1u));
      const int slot = warp * row_of_counts + bin;
      const int counted = bin >= 0 ? memory.counts.load(slot) : 0;
      __syncwarp();
      if (bin >= 0 && before == 0) {
        memory.counts.store(slot, counted + __popc(same));
      }
      __syncwarp();
      place[s] = bin >= 0 ? bin << kRankBits | (counted + before) : -1;
    }
    __syncthreads();

    // From counts to places: over the warps within a bin, then over the bins.
    for (int t = thread(); t < bins; t += threads()) {
      int total = 0;
      for (int w = 0; w < warps; ++w) {
        const int slot = w * row_of_counts + t;
        const int counted = memory.counts.load(slot);
        memory.counts.store(slot, total);
        total += counted;
      }
      memory.begins.store(t, total);
    }
    __syncthreads();
    if (warp == 0) {
      // Each lane has some bins in a row; one after the last says where all samples end.
      const int each = (bins + kWarp) / kWarp;
      int own = 0;
      for (int t = lane * each; t < (lane + 1) * each && t < bins; ++t) {
        own += memory.begins.load(t);
      }
      int upto = own;
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(kAllLanes, upto, static_cast<unsigned>(offset));
        upto += lane >= offset ? other : 0;
      }
      int before = upto - own;
      for (int t = lane * each; t < (lane + 1) * each && t <= bins; ++t) {
        const int counted = t < bins ? memory.begins.load(t) : 0;
        memory.begins.store(t, before);
        before += counted;
      }
    }
    __syncthreads();
    for (int s = 0; s < kSamplesPerThread; ++s) {
      if (place[s] >= 0) {
        const int i = (warp * kSamplesPerThread + s) * kWarp + lane;
        const int bin = place[s] >> kRankBits;
        const int rank = place[s] & ((1 << kRankBits) - 1);
        const int target =
            memory.begins.load(bin) + memory.counts.load(warp * row_of_counts + bin) + rank;
        memory.query.store(target, (first_point + i) / sizes.points);
        memory.left.store(target, left[s]);
        memory.right.store(target, right[s]);
      }
    }
    __syncthreads();
  }

  // Adds the sorted window to the sums.
  TAL_FAST_DEVICE void add_rows(const Problem& problem, const Memory& memory, const Range& here,
                                int64_t first_query) const {
    constexpr int N = kPackSize<T>;
    const DeformAttnSizes& sizes = problem.sizes;
    const int lane = thread() & ((1 << lanes_log2) - 1);
    const int64_t channel = here.first_channel + lane * N;
    const int64_t available = sizes.channels - channel;
    const T* grad =
        problem.grad + sizes.unit(here.b, first_query, here.h) * sizes.channels + channel;
    const int64_t stride = sizes.heads * sizes.channels;
    const int runs = (here.count + run - 1) / run;
    for (int item = thread() >> lanes_log2; item < runs * parts; item += threads() >> lanes_log2) {
      const int part = item / runs;
      const int first_row = item % runs * run;
      const int last_row = first_row + run < here.count ? first_row + run : here.count;
      // Samples of bin t have their left tap at row t - 1 and their right one at row t: one pass
      // over the bins serves both.
      C previous[N];
      for (int i = 0; i < N; ++i) {
        previous[i] = C(0);
      }
      int begin = memory.begins.load(first_row);
      for (int t = first_row; t <= last_row; ++t) {
        const int end = memory.begins.load(t + 1);
        const int place = begin + (end - begin) * part / parts;
        const int stop = begin + (end - begin) * (part + 1) / parts;
        begin = end;
        C current[N];
        for (int i = 0; i < N; ++i) {
          current[i] = C(0);
        }
        add_samples(memory, grad, stride, available, problem.aligned, place, stop, previous,
                    current);
        if (t > first_row) {
          const int row = (part * here.count + t - 1) * (N << lanes_log2) + lane * N;
          for (int i = 0; i < N; ++i) {
            memory.sums.add(row + i, previous[i]);
          }
        }
        for (int i = 0; i < N; ++i) {
          previous[i] = current[i];
        }
      }
    }
  }

  TAL_FAST_DEVICE static void add_samples(const Memory& memory, const T* grad, int64_t stride,
                                          int64_t available, bool aligned, int place, int stop,
                                          C* previous, C* current) {
    constexpr int N = kPackSize<T>;
    constexpr int kAhead = 4;  // loads in flight
    for (; place < stop; place += kAhead) {
      Pack<T, N> packs[kAhead];
      for (int j = 0; j < kAhead; ++j) {
        // Past the end the last one again, of which nothing is taken.
        const int p = place + j < stop ? place + j : stop - 1;
        packs[j] = load_channels(grad + memory.query.load(p) * stride, available, aligned);
      }
      for (int j = 0; j < kAhead; ++j) {
        if (place + j < stop) {
          const C left = memory.left.load(place + j);
          const C right = memory.right.load(place + j);
          for (int i = 0; i < N; ++i) {
            const C g = widen(packs[j][i]);
            previous[i] = multiply_add(left, g, previous[i]);
            current[i] = multiply_add(right, g, current[i]);
          }
        }
      }
    }
  }

  TAL_FAST_DEVICE void write_rows(const Problem& problem, const Memory& memory,
                                  const Range& here) const {
    constexpr int N = kPackSize<T>;
    const DeformAttnSizes& sizes = problem.sizes;
    const int width = N << lanes_log2;
    for (int i = thread(); i < here.count << lanes_log2; i += threads()) {
      const int j = i >> lanes_log2;
      const int column = (i & ((1 << lanes_log2) - 1)) * N;
      const int64_t row = here.b * sizes.rows + here.level.start + here.first + j;
      const bool padded = problem.padding != nullptr && problem.padding[row];
      Pack<T, N> result;
      for (int c = 0; c < N; ++c) {
        C sum = memory.sums.load(j * width + column + c);
        for (int part = 1; part < parts; ++part) {
          sum += memory.sums.load((part * here.count + j) * width + column + c);
        }
        result[c] = narrow<T>(padded ? C(0) : sum);
      }
      const int64_t channel = here.first_channel + column;
      store_channels(by_value + (row * sizes.heads + here.h) * sizes.channels + channel, result,
                     sizes.channels - channel, problem.aligned);
    }
  }
};

}  // namespace tal_fast
