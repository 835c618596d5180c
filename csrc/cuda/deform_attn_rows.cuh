// SPDX-License-Identifier: Apache-2.0
// The gradient of value: the row blocks of deform_attn_backward.cuh.
#pragma once

#include "cuda/deform_attn_lanes.cuh"
#include "cuda/deform_attn_sort.cuh"

namespace tal_fast {

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

// `kPacks`: rows are whole aligned packs, and every lane of a slice has one.
template <typename T, typename Source, bool kPacks = false>
struct RowGradients {
  using C = ComputeType<T>;
  using Problem = DeformAttnProblem<T, Source>;

  T* by_value;              // [B, S, H, D]
  SortedSamples<C> sorted;  // null where there is no sample
  int lanes_log2;
  int slices;
  int rows_per_block;
  int ranges;  // of all levels together
  // The groups of lanes divide the work by rows, some neighbouring ones each; where that leaves
  // groups idle, every row goes to `parts` groups, each with its part of the samples.
  int parts;

  // Of a block; run_block() takes the same.
  static size_t shared_bytes(int rows, int parts, int width) {
    return SharedSize().take<C>(parts > 1 ? int64_t{parts} * rows * width : 0).bytes();
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
    here.level = problem.levels.get(0);
    int level = 0;
    for (;;) {
      const int in_level = (here.level.length + rows_per_block - 1) / rows_per_block;
      if (range < in_level) {
        break;
      }
      range -= in_level;
      here.level = problem.levels.get(++level);
    }
    here.first = range * rows_per_block;
    here.count = here.level.length - here.first < rows_per_block ? here.level.length - here.first
                                                                 : rows_per_block;
    if (sorted.begins != nullptr) {
      here.begins = sorted.begins + sorted.first_begin(sizes, pair, level, here.level) + here.first;
      const int64_t first = sorted.first_sample(sizes, pair, level);
      here.query = sorted.query + first;
      here.shares = sorted.shares + 2 * first;
    }

    SharedMemory shared;
    const Shared<C> sums =
        shared.take<C>(parts > 1 ? parts * rows_per_block * (N << lanes_log2) : 0);
    add_rows(problem, sums, here);
    if (parts > 1) {
      __syncthreads();
      join_rows(problem, sums, here);
    }
  }

 private:
  struct Range {
    int b, h;
    int first_channel;
    Level level;
    int first, count;  // rows, from the level's first one on
    // The bin t from here on has the samples with their left tap at row `first + t - 1`.
    const int32_t* begins;  // null without samples
    const int32_t* query;   // of the level
    const C* shares;
  };

  // Between queries; within 32 bits if the host says so.
  using Stride = std::conditional_t<kPacks, int, int64_t>;

  TAL_FAST_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  TAL_FAST_DEVICE static int threads() { return static_cast<int>(blockDim.x); }

  TAL_FAST_DEVICE void add_rows(const Problem& problem, Shared<C> sums, const Range& here) const {
    constexpr int N = kPackSize<T>;
    const DeformAttnSizes& sizes = problem.sizes;
    const int lane = thread() & ((1 << lanes_log2) - 1);
    const int64_t channel = here.first_channel + lane * N;
    const int64_t available = sizes.channels - channel;
    const T* grad = problem.grad + sizes.unit(here.b, 0, here.h) * sizes.channels + channel;
    const Stride stride = static_cast<Stride>(sizes.heads * sizes.channels);
    // Of the rows that there are: those of a short level are fewer than rows_per_block.
    const int groups = (threads() >> lanes_log2) / parts;
    const int run = groups > 1 ? (here.count + groups - 1) / groups : here.count;
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
      int begin = here.begins != nullptr ? read(here.begins + first_row) : 0;
      for (int t = first_row; t <= last_row; ++t) {  // hot: bin
        const int end = here.begins != nullptr ? read(here.begins + t + 1) : 0;
        const int place = parts > 1 ? begin + (end - begin) * part / parts : begin;
        const int stop = parts > 1 ? begin + (end - begin) * (part + 1) / parts : end;
        begin = end;
        C current[N];
        for (int i = 0; i < N; ++i) {
          current[i] = C(0);
        }
        add_samples(here, grad, stride, available, problem.aligned, place, stop, previous, current);
        if (t > first_row) {
          if (parts > 1) {
            const int row = (part * here.count + t - 1) * (N << lanes_log2) + lane * N;
            for (int i = 0; i < N; i += kPackSize<C>) {
              Pack<C, kPackSize<C>> pack;
              for (int j = 0; j < kPackSize<C>; ++j) {
                pack[j] = previous[i + j];
              }
              sums.template store_pack<kPackSize<C>>(row + i, pack);
            }
          } else {
            write_row(problem, here, t - 1, channel, previous);
          }
        }
        for (int i = 0; i < N; ++i) {
          previous[i] = current[i];
        }
      }
    }
  }

  TAL_FAST_DEVICE static void add_samples(const Range& here, const T* grad, Stride stride,
                                          int64_t available, bool aligned, int place, int stop,
                                          C* previous, C* current) {
    constexpr int N = kPackSize<T>;
    constexpr int kAhead = 4;                // loads in flight
    for (; place < stop; place += kAhead) {  // hot: samples of a bin
      Pack<T, N> packs[kAhead];
      Pack<C, 2> shares[kAhead];
      for (int j = 0; j < kAhead; ++j) {
        // Past the end the last one again, of which nothing is taken.
        const int p = place + j < stop ? place + j : stop - 1;
        shares[j] = read_pack<2>(here.shares + 2 * int64_t{p});
        if constexpr (kPacks) {
          packs[j] = read_pack<N>(grad + int64_t{read(here.query + p)} * stride);
        } else {
          packs[j] = load_channels(grad + read(here.query + p) * stride, available, aligned);
        }
      }
      for (int j = 0; j < kAhead; ++j) {
        if (place + j < stop) {
          C wide[N];
          if constexpr (kPacks) {
            widen_pack(packs[j], wide);
          }
          for (int i = 0; i < N; ++i) {
            const C g = kPacks ? wide[i] : widen(packs[j][i]);
            previous[i] = multiply_add(shares[j][0], g, previous[i]);
            current[i] = multiply_add(shares[j][1], g, current[i]);
          }
        }
      }
    }
  }

  // Row j of the range.
  TAL_FAST_DEVICE void write_row(const Problem& problem, const Range& here, int j, int64_t channel,
                                 const C* sum) const {
    constexpr int N = kPackSize<T>;
    const DeformAttnSizes& sizes = problem.sizes;
    const int64_t row = here.b * sizes.rows + here.level.start + here.first + j;
    const bool padded = problem.padding != nullptr && problem.padding[row];
    Pack<T, N> result;
    for (int i = 0; i < N; ++i) {
      result[i] = narrow<T>(padded ? C(0) : sum[i]);
    }
    if constexpr (kPacks) {
      store_pack<N>(by_value + (row * sizes.heads + here.h) * sizes.channels + channel, result);
    } else {
      store_channels(by_value + (row * sizes.heads + here.h) * sizes.channels + channel, result,
                     sizes.channels - channel, problem.aligned);
    }
  }

  TAL_FAST_DEVICE void join_rows(const Problem& problem, Shared<C> sums, const Range& here) const {
    constexpr int N = kPackSize<T>;
    const int width = N << lanes_log2;
    for (int i = thread(); i < here.count << lanes_log2; i += threads()) {
      const int j = i >> lanes_log2;
      const int column = (i & ((1 << lanes_log2) - 1)) * N;
      C sum[N];
      for (int c = 0; c < N; c += kPackSize<C>) {
        auto pack = sums.template load_pack<kPackSize<C>>(j * width + column + c);
        for (int part = 1; part < parts; ++part) {
          const auto more =
              sums.template load_pack<kPackSize<C>>((part * here.count + j) * width + column + c);
          for (int k = 0; k < kPackSize<C>; ++k) {
            pack[k] += more[k];
          }
        }
        for (int k = 0; k < kPackSize<C>; ++k) {
          sum[c + k] = pack[k];
        }
      }
      write_row(problem, here, j, here.first_channel + column, sum);
    }
  }
};

}  // namespace tal_fast
