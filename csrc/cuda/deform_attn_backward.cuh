// SPDX-License-Identifier: Apache-2.0
// Backward of deform_attn and deform_attn_fused: one launch with two kinds of blocks that share
// nothing, so that neither waits for the other. No atomics on global memory, every sum in a fixed
// order: the same bits on every run.
//
// sample gradients  A block owns a head of a batch element and some of its queries: products of the
//                   output's gradient with both rows of every sample, summed over channels by
//                   shuffles; for the fused op the softmax's backward follows in registers. Staged:
//                   all channels of all rows are in shared memory; general: they are read from
//                   global memory, where they do not fit beside other blocks or samples are few.
// row gradients     A block owns a range of rows of one level, for a head of a batch element and a
//                   slice of its channels. Every group of lanes walks the samples of its own rows,
//                   which a kernel before has brought into the order of rows
//                   (deform_attn_sort.cuh): sums grow in registers, and each row is written once.
//
// Bytes, for D = 32, P = 4 in float32: gradient, value and samples are read once by the sample
// blocks, samples once more by the sort, which writes 12 bytes for each; those and the gradient are
// read once per sample by the row blocks (mostly from the caches: rows close by come close in
// time), and all gradients are written once. At B = 16, S = Q = 128, H = 8: 7.3 MB, 1.7 us at 4.3
// TB/s, so the launches are the floor and the aim 6 to 10 us; at B = 8, S = Q = 2304: 66 MB, 15 us,
// the aim 30; at B = 2, S = Q = 4536 on six levels: 56 MB, 13 us, but 2 * 223 MB of rows through
// the first-level caches, some 15 us more, the aim 80. All of this is computed, not measured.
#pragma once

#include "cuda/deform_attn_lanes.cuh"
#include "cuda/deform_attn_rows.cuh"

namespace tal_fast {

// ---- gradients of locations and weights, or of offsets and logits -------------------------------

template <typename T, typename Source, bool kStaged>
struct SampleGradients {
  using C = ComputeType<T>;
  using Problem = DeformAttnProblem<T, Source>;

  // Samples in a row whose products a lane sums at the same time, as registers allow.
  static constexpr int kDotsInFlight = kStaged || sizeof(T) == 4 ? 4 : 2;

  const T* value;  // [B, S, H, D]
  int lanes_log2;
  int packs_per_lane;
  int queries_per_block;
  int query_blocks;
  AnyOutput<C> by_position;  // [B, Q, H, L, P] of locations, or of offsets
  AnyOutput<C> by_weight;    // [B, Q, H, L, P] of weights, or of logits; together with the former
  C* by_location;            // [B, Q, H, L, P] or null: of locations, for the reference points
  C* weight_memory;          // [B, Q, H, L, P]: gradients of weights until their sum is known; null
                             // where a lane has one sample at most, or for the op that is not fused

  TAL_FAST_DEVICE void run(const Problem& problem, int block) const {
    constexpr int N = kPackSize<T>;
    const DeformAttnSizes& sizes = problem.sizes;
    const int pair = block / query_blocks;
    const int b = pair / static_cast<int>(sizes.heads);
    const int h = pair % static_cast<int>(sizes.heads);
    const T* head = value + (int64_t{b} * sizes.rows * sizes.heads + h) * sizes.channels;
    const int64_t stride = sizes.heads * sizes.channels;
    const bool* padded = problem.padding == nullptr ? nullptr : problem.padding + b * sizes.rows;
    if constexpr (kStaged) {
      SharedMemory shared;
      const int width = (N << lanes_log2) * packs_per_lane;
      const StagedRows<T> rows{shared.take<T>((static_cast<int>(sizes.rows) + 1) * width), width};
      rows.stage(head, stride, padded, static_cast<int>(sizes.rows), sizes.channels,
                 problem.aligned);
      wait_for_copies();
      __syncthreads();
      walk(problem, rows, block % query_blocks, b, h);
    } else {
      walk(problem, GlobalRows<T>{head, stride, padded, sizes.channels, problem.aligned},
           block % query_blocks, b, h);
    }
  }

 private:
  template <typename Rows>
  TAL_FAST_DEVICE void walk(const Problem& problem, const Rows& rows, int query_block, int b,
                            int h) const {
    constexpr int N = kPackSize<T>;
    const DeformAttnSizes& sizes = problem.sizes;
    const Source& source = problem.source;
    const Lanes lanes(lanes_log2);
    const int64_t first = int64_t{query_block} * queries_per_block;
    const int count = first + queries_per_block < sizes.queries
                          ? queries_per_block
                          : static_cast<int>(sizes.queries - first);
    for (int base = 0; base < count; base += lanes.groups) {  // hot: query
      // Lanes without a query repeat the last one and write nothing: shuffles need the whole warp.
      const bool writes = base + lanes.group < count && lanes.side == 0;
      const int64_t q = first + (base + lanes.group < count ? base + lanes.group : count - 1);
      const int64_t unit = sizes.unit(b, q, h);
      const T* grad_row = problem.grad + unit * sizes.channels;
      const Pack<T, N> grad_pack = load_channels(grad_row + lanes.index * N,
                                                 sizes.channels - lanes.index * N, problem.aligned);
      const QuerySamples query = source.query(sizes, b, q, h);
      auto fetched = fetch_sample(sizes, problem.levels, source, query, lanes.index);
      const Softmax<C> softmax =
          source.softmax(sizes, query, fetched.raw, lanes.index, lanes.count);
      C weighted = C(0);  // the lane's part of the sum of weight * gradient
      C own_weight = C(0);
      C own_gradient = C(0);
      for (int k = 0; k < sizes.samples; k += lanes.count) {
        if (k > 0) {
          fetched = fetch_sample(sizes, problem.levels, source, query, k + lanes.index);
        }
        const auto sample = prepare_sample<C, false>(source, rows, lanes, fetched, softmax);
        const int round = sizes.samples - k < lanes.count ? sizes.samples - k : lanes.count;
        C mine = C(0);
        for (int j = 0; j < round; j += kDotsInFlight) {
          add_dots(problem, rows, lanes, sample.row, j, grad_row, grad_pack, &mine);
        }
        const C other = __shfl_xor_sync(kAllLanes, mine, lanes.count);
        const C left = lanes.side == 0 ? mine : other;
        const C right = lanes.side == 0 ? other : mine;
        // The slope right of the sample: at a row itself, the one towards the next row.
        const C step = right - left;
        const C gradient = left + sample.fraction * step;
        const int64_t i = unit * sizes.samples + k + lanes.index;
        if (fetched.exists && writes) {
          const C location = sample.length * sample.weight * step;
          if (by_location != nullptr) {
            by_location[i] = location;
          }
          if constexpr (Source::kFused) {
            if (by_position.data != nullptr) {
              by_position.store(i, location * sample.scale);
            }
            if (weight_memory != nullptr) {
              weight_memory[i] = gradient;
            }
          } else {
            by_position.store(i, location);
            by_weight.store(i, gradient);
          }
        }
        if constexpr (Source::kFused) {
          weighted += fetched.exists ? sample.weight * gradient : C(0);
          own_weight = sample.weight;
          own_gradient = gradient;
        }
      }
      if constexpr (Source::kFused) {
        const C sum = lanes.sum(weighted);
        if (by_weight.data == nullptr || !writes) {
          continue;
        }
        const int64_t i = unit * sizes.samples;
        if (weight_memory == nullptr) {
          if (lanes.index < sizes.samples) {
            by_weight.store(i + lanes.index, own_weight * (own_gradient - sum));
          }
          continue;
        }
        // Every lane reads what it wrote itself.
        for (int k = lanes.index; k < sizes.samples; k += lanes.count) {
          const C weight = source.weight(source.logits.load(query.logits + k), softmax);
          by_weight.store(i + k, weight * (weight_memory[i + k] - sum));
        }
      }
    }
  }

  // The products of the samples from the `first`th on, each given to the lane that has its number.
  template <typename Rows, typename Row>
  TAL_FAST_DEVICE void add_dots(const Problem& problem, const Rows& rows, const Lanes& lanes,
                                Row own_row, int first, const T* grad_row,
                                const Pack<T, kPackSize<T>>& grad_pack, C* mine) const {
    constexpr int N = kPackSize<T>;
    Row row[kDotsInFlight];
    C dots[kDotsInFlight];
    for (int j = 0; j < kDotsInFlight; ++j) {
      const Row found = __shfl_sync(kAllLanes, own_row, first + j, lanes.count);
      row[j] = first + j < lanes.count ? found : Rows::kNone;
      dots[j] = C(0);
    }
    for (int pack = 0; pack < packs_per_lane; ++pack) {
      const int column = (pack * lanes.count + lanes.index) * N;
      const Pack<T, N> g =
          pack == 0
              ? grad_pack
              : load_channels(grad_row + column, problem.sizes.channels - column, problem.aligned);
      Pack<T, N> packs[kDotsInFlight];
      for (int j = 0; j < kDotsInFlight; ++j) {
        packs[j] = rows.load(row[j], column);
      }
      for (int j = 0; j < kDotsInFlight; ++j) {
        for (int i = 0; i < N; ++i) {
          dots[j] = multiply_add(widen(g[i]), widen(packs[j][i]), dots[j]);
        }
      }
    }
    for (int offset = lanes.count / 2; offset > 0; offset /= 2) {
      for (int j = 0; j < kDotsInFlight; ++j) {
        dots[j] += __shfl_xor_sync(kAllLanes, dots[j], offset);
      }
    }
    for (int j = 0; j < kDotsInFlight; ++j) {
      *mine = first + j == lanes.index ? dots[j] : *mine;
    }
  }
};

// ---- the launch ---------------------------------------------------------------------------------

template <typename T, typename Source, bool kStaged>
struct DeformAttnBackward {
  static constexpr const char* kName =
      Source::kFused
          ? (kStaged ? "deform_attn_fused backward, staged" : "deform_attn_fused backward, general")
          : (kStaged ? "deform_attn backward, staged" : "deform_attn backward, general");
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = kStaged && sizeof(T) == 4 && !Source::kFused ? 3 : 2;
  static constexpr int kRounds = 4;  // of the queries of a block without staged rows

  DeformAttnProblem<T, Source> problem;
  RowGradients<T, Source> rows;
  SampleGradients<T, Source, kStaged> samples;
  int row_blocks;  // they come first: they take longer

  TAL_FAST_DEVICE void operator()() const {
    const int block = static_cast<int>(blockIdx.x);
    if (block < row_blocks) {
      rows.run_block(problem, block);
    } else {
      samples.run(problem, block - row_blocks);
    }
  }
};

// The reference points' gradient, from that of the locations: a thread per batch element, query and
// level adds up heads and points in order. Reads 4 bytes and an offset per sample.
template <typename C>
struct DeformAttnReferenceGradient {
  static constexpr const char* kName = "deform_attn_fused backward, reference points";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;

  DeformAttnSizes sizes;
  ProjectedSamples<C> source;
  const C* by_location;       // [B, Q, H, L, P]
  AnyOutput<C> by_reference;  // [B, Q, L, components]

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= sizes.batch * sizes.queries * sizes.levels) {
      return;
    }
    const int64_t l = i % sizes.levels;
    const int64_t q = i / sizes.levels % sizes.queries;
    const int64_t b = i / sizes.levels / sizes.queries;
    C by_centre = C(0);
    C by_width = C(0);
    for (int64_t h = 0; h < sizes.heads; ++h) {
      const C* locations = by_location + sizes.unit(b, q, h) * sizes.samples;
      const QuerySamples query = source.query(sizes, b, q, h);
      C head_centre = C(0);
      C head_width = C(0);
      for (int64_t k = l * sizes.points; k < (l + 1) * sizes.points; ++k) {
        head_centre += locations[k];
        if (source.components == 2) {
          head_width += locations[k] * (source.offsets.load(query.offsets + k) * source.part);
        }
      }
      by_centre += head_centre;
      by_width += head_width;
    }
    by_reference.store(i * source.components, by_centre);
    if (source.components == 2) {
      by_reference.store(i * 2 + 1, by_width);
    }
  }
};

}  // namespace tal_fast
