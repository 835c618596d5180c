// SPDX-License-Identifier: Apache-2.0
// Forward of deform_attn and deform_attn_fused; known layouts have deform_attn_packs.cuh.
//
// A block owns a head of a batch element, a slice of its channels and some of its queries. Softmax,
// locations, mask, gather and sum happen in one kernel; nothing but the output is written.
//
// staged   The slice's rows go to shared memory first. Global memory moves value once per block of
//          queries (the second time from L2), samples and output once: for D = 32, P = 4 in float32
//          at B = 16, S = Q = 128, H = 8 that is 4.7 MB, 1.1 us at 4.3 TB/s. Shared memory delivers
//          two rows per sample, 16.8 MB, 0.6 us at 29.6 TB/s: the floor is the launch, some 4 us.
//          At B = 8, S = Q = 2304: 42.5 MB, 9.9 us, the aim being 15; at B = 2, S = Q = 4536 on six
//          levels rows do not fit: 446 MB through the first-level caches, some 15 us as they would
//          be in shared memory, the aim being 30.
// general  Rows come from global memory, which caches may serve: for slices of less than 64 bytes
//          per row (S above some 3600), and where the samples are fewer than the rows, so that
//          staging would move more. Two rows per sample from L2 at worst.
//
// All of this is computed, not measured.
#pragma once

#include "cuda/deform_attn_lanes.cuh"

namespace tal_fast {

// Samples between two uses: as many loads of a lane are in flight.
constexpr int kSamplesInFlight = 4;

template <typename T, typename Source, bool kStaged>
struct DeformAttnForward {
  static constexpr const char* kName =
      Source::kFused
          ? (kStaged ? "deform_attn_fused forward, staged" : "deform_attn_fused forward, general")
          : (kStaged ? "deform_attn forward, staged" : "deform_attn forward, general");
  static constexpr int kThreads = kStaged ? 1024 : 256;
  static constexpr int kBlocks = kStaged ? 1 : sizeof(T) == 4 && !Source::kFused ? 3 : 2;

  using C = ComputeType<T>;

  DeformAttnSizes sizes;
  Source source;
  const T* value;       // [B, S, H, D]
  const bool* padding;  // [B, S] or null
  T* out;               // [B, Q, H, D]
  bool aligned;         // D and the addresses are multiples of 16 bytes
  int lanes_log2;
  int slices;
  int queries_per_block;
  int query_blocks;
  Levels levels;

  TAL_FAST_DEVICE void operator()() const {
    constexpr int N = kPackSize<T>;
    const int query_block = static_cast<int>(blockIdx.x) % query_blocks;
    const int rest = static_cast<int>(blockIdx.x) / query_blocks;
    const int64_t first_channel = int64_t{rest % slices} * (N << lanes_log2);
    const int64_t pair = rest / slices;
    const int64_t b = pair / sizes.heads;
    const int64_t h = pair % sizes.heads;
    const T* slice = value + (b * sizes.rows * sizes.heads + h) * sizes.channels + first_channel;
    const int64_t stride = sizes.heads * sizes.channels;
    const bool* padded = padding == nullptr ? nullptr : padding + b * sizes.rows;
    const int64_t channels = sizes.channels - first_channel;
    if constexpr (kStaged) {
      SharedMemory shared;
      const int width = N << lanes_log2;
      const StagedRows<T> rows{shared.take<T>((static_cast<int>(sizes.rows) + 1) * width), width};
      rows.stage(slice, stride, padded, static_cast<int>(sizes.rows), channels, aligned);
      attend(rows, query_block, b, h, first_channel);
    } else {
      attend(GlobalRows<T>{slice, stride, padded, channels, aligned}, query_block, b, h,
             first_channel);
    }
  }

 private:
  template <typename Rows>
  TAL_FAST_DEVICE void attend(const Rows& rows, int query_block, int64_t b, int64_t h,
                              int64_t first_channel) const {
    constexpr int N = kPackSize<T>;
    const Lanes lanes(lanes_log2);
    const int64_t first = int64_t{query_block} * queries_per_block;
    const int count = first + queries_per_block < sizes.queries
                          ? queries_per_block
                          : static_cast<int>(sizes.queries - first);
    const int column = lanes.index * N;

    // Lanes without a query repeat the last one and write nothing: shuffles need the whole warp.
    const auto query_at = [&](int base) {
      const int in_block = base + lanes.group < count ? base + lanes.group : count - 1;
      return source.query(sizes, b, first + in_block, h);
    };
    const auto begin_query = [&](int base, Softmax<C>* softmax) {
      const QuerySamples query = query_at(base);
      const auto fetched = fetch_sample(sizes, levels, source, query, lanes.index);
      *softmax = source.softmax(sizes, query, fetched.raw, lanes.index, lanes.count);
      return prepare_sample<C, true>(source, rows, lanes, fetched, *softmax);
    };
    // One query ahead, so that its samples arrive during the work on the one before; the first ones
    // arrive during the staging.
    Softmax<C> softmax;
    auto sample = begin_query(0, &softmax);
    if constexpr (kStaged) {
      wait_for_copies();
      __syncthreads();
    }
    for (int base = 0; base < count; base += lanes.groups) {  // hot: query
      Softmax<C> next_softmax = softmax;
      auto next_sample = sample;
      if (base + lanes.groups < count) {
        next_sample = begin_query(base + lanes.groups, &next_softmax);
      }
      C sums[N];
      for (int i = 0; i < N; ++i) {
        sums[i] = C(0);
      }
      for (int k = 0; k < sizes.samples; k += lanes.count) {
        if (k > 0) {
          const auto fetched = fetch_sample(sizes, levels, source, query_at(base), k + lanes.index);
          sample = prepare_sample<C, true>(source, rows, lanes, fetched, softmax);
        }
        const int round = sizes.samples - k < lanes.count ? sizes.samples - k : lanes.count;
        for (int j = 0; j < round; j += kSamplesInFlight) {
          add_samples(rows, lanes, sample, j, column, sums);
        }
      }
      Pack<T, N> result;
      for (int i = 0; i < N; ++i) {
        result[i] = narrow<T>(sums[i] + __shfl_xor_sync(kAllLanes, sums[i], lanes.count));
      }
      if (base + lanes.group < count && lanes.side == 0) {
        const int64_t q = first + base + lanes.group;
        const int64_t channel = first_channel + column;
        store_channels(out + sizes.unit(b, q, h) * sizes.channels + channel, result,
                       sizes.channels - channel, aligned);
      }
      softmax = next_softmax;
      sample = next_sample;
    }
  }

  template <typename Rows, typename Sample>
  TAL_FAST_DEVICE void add_samples(const Rows& rows, const Lanes& lanes, const Sample& sample,
                                   int first, int column, C* sums) const {
    constexpr int N = kPackSize<T>;
    Pack<T, N> packs[kSamplesInFlight];
    C shares[kSamplesInFlight];
    for (int j = 0; j < kSamplesInFlight; ++j) {
      // Lanes past the last sample hold a row of zeros; those past the lanes count as such.
      const auto row = __shfl_sync(kAllLanes, sample.row, first + j, lanes.count);
      const C share = __shfl_sync(kAllLanes, sample.share, first + j, lanes.count);
      const bool exists = first + j < lanes.count;
      shares[j] = exists ? share : C(0);
      packs[j] = rows.load(exists ? row : Rows::kNone, column);
    }
    for (int j = 0; j < kSamplesInFlight; ++j) {
      for (int i = 0; i < N; ++i) {
        sums[i] = multiply_add(shares[j], widen(packs[j][i]), sums[i]);
      }
    }
  }
};

}  // namespace tal_fast
