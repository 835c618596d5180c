// SPDX-License-Identifier: Apache-2.0
// The backward of deform_attn where nothing about the layout is left to ask while it runs, as
// deform_attn_packs.cuh has it for the forward. Two kinds of blocks, and sums in the order of
// deform_attn_backward.cuh, whose bits they have.
#pragma once

#include "cuda/deform_attn_backward.cuh"
#include "cuda/deform_attn_typed.cuh"

namespace tal_fast {

// As registers allow: a lane has eight channels in 16 bits, four in float32.
template <typename T>
constexpr int kBackwardPackBlocks = sizeof(T) == 2 ? 2 : 3;

// `kOnce`: no lane has a second sample of a query.
template <typename T, typename Source, int kLog2, bool kStaged, bool kOnce>
struct PackSampleGradients {
  using Problem = DeformAttnProblem<T, Source>;

  static constexpr int N = kPackSize<T>;
  static constexpr int kLanes = 1 << kLog2;
  static constexpr int kInFlight = 4;  // samples whose products a lane sums at the same time

  const T* value;  // [B, S, H, D]
  int queries_per_block;
  int query_blocks;
  int per_point;       // of typed_sample()
  float* by_location;  // [B, Q, H, L, P], or null: not wanted
  T* by_weight;        // [B, Q, H, L, P], together with the former

  TAL_FAST_DEVICE void run(const Problem& problem, int block) const {
    const DeformAttnSizes& sizes = problem.sizes;
    const int pair = block / query_blocks;
    const int64_t b = pair / static_cast<int>(sizes.heads);
    const int64_t h = pair % static_cast<int>(sizes.heads);
    const int64_t first = int64_t{block % query_blocks} * queries_per_block;
    const int count = first + queries_per_block < sizes.queries
                          ? queries_per_block
                          : static_cast<int>(sizes.queries - first);
    const Here here = {b, h, first, count};
    const int lane = static_cast<int>(threadIdx.x) & (kLanes - 1);
    const T* rows = value + (b * sizes.rows * sizes.heads + h) * sizes.channels + lane * N;
    const bool* padded = problem.padding == nullptr ? nullptr : problem.padding + b * sizes.rows;
    with_packs<kLog2, kStaged>(sizes, rows, padded, [&](auto place_of, int none, auto load) {
      walk(problem, here, place_of, none, load);
    });
  }

 private:
  // What a block works on.
  struct Here {
    int64_t b, h;
    int64_t first;  // query
    int count;      // of queries
  };

  // The last three as with_packs() has them.
  template <typename PlaceOf, typename Load>
  TAL_FAST_DEVICE void walk(const Problem& problem, const Here& here, PlaceOf place_of, int none,
                            Load load) const {
    const DeformAttnSizes& sizes = problem.sizes;
    const Source& source = problem.source;
    const int lane = pinned(static_cast<int>(threadIdx.x) & (kLanes - 1));
    const int side = pinned(static_cast<int>(threadIdx.x) >> kLog2 & 1);
    const int group = static_cast<int>(threadIdx.x) >> (kLog2 + 1);
    const int groups = pinned(static_cast<int>(blockDim.x) >> (kLog2 + 1));
    const int samples = pinned(sizes.samples);
    const int behind = kOnce ? 0 : (samples - 1) / kLanes * kLanes;
    auto stream = source.stream(sizes, here.b, here.first + group, here.h, lane, groups, behind);
    int64_t unit = sizes.unit(here.b, here.first + group, here.h);
    const T* grad = problem.grad + unit * sizes.channels + lane * N;
    const int to_grad = pinned(groups * static_cast<int>(sizes.heads * sizes.channels));
    int64_t at = unit * samples + lane;  // of the lane's first sample
    const int to_query = pinned(groups * static_cast<int>(sizes.heads) * samples);

    // Lanes without a query go on with what they had and write nothing: shuffles need the warp.
    // `more` is how many queries the lane's is away from the end of the block's.
    int more = here.count - group;
    TypedSample sample = typed_sample(sizes, problem.levels, per_point, lane);
    typename Source::Raw raw{};
    if (more > 0 && sample.k < samples) {
      raw = stream.fetch(sample.level);
    }
    Pack<T, N> next_grad{};
    if (more > 0) {
      next_grad = read_pack<N>(grad);
    }
    if constexpr (kStaged) {
      wait_for_copies();
      __syncthreads();
    }
    for (int base = 0; base < here.count; base += groups) {  // hot: query
      const LaneSoftmax softmax = source.template softmax<kLanes, kOnce>(
          stream, raw, lane, kOnce || more > 0 ? samples : 0);
      float wide_grad[N];
      widen_pack(next_grad, wide_grad);
      grad += to_grad;
      if (more > groups) {
        next_grad = read_pack<N>(grad);
      }
      const bool writes = more > 0 && side == 0;
      const auto turn = [&](int k, bool last) {
        const bool exists = sample.k < samples;
        const float length = sample.as_float;
        const Position<float> position = position_at(source.location(raw, length), length);
        const float weight = exists ? source.template weight<kOnce>(raw, softmax) : 0.0f;
        const int row = position.tap + side;
        const bool inside =
            exists && static_cast<unsigned>(row) < static_cast<unsigned>(sample.length);
        const int place = inside ? place_of(sample.start + row) : none;
        // What comes next is on its way while this is gathered, and not looked at before.
        if constexpr (!kOnce) {
          sample = typed_sample(sizes, problem.levels, per_point, last ? lane : sample.k + kLanes);
        }
        stream.template step<kLanes>(last);
        if (more > (last ? groups : 0) && sample.k < samples) {
          raw = stream.fetch(sample.level);
        }
        float mine = 0.0f;
        for (int j = 0; j < kLanes; j += kInFlight) {
          if (j == 0 || k + j < samples) {
            const float dot = dots(place, j, load, wide_grad);
            mine = (lane & ~(kInFlight - 1)) == j ? dot : mine;
          }
        }
        const float other = __shfl_xor_sync(kAllLanes, mine, kLanes);
        const float left = side == 0 ? mine : other;
        const float right = side == 0 ? other : mine;
        // The slope right of the sample: at a row itself, the one towards the next row.
        const float step = right - left;
        const float gradient = left + position.fraction * step;
        if (exists && writes) {
          by_location[at + k] = length * weight * step;
          by_weight[at + k] = narrow<T>(gradient);
        }
      };
      if constexpr (kOnce) {
        turn(0, true);
      } else {
        for (int k = 0; k < samples; k += kLanes) {  // hot: round
          turn(k, k + kLanes >= samples);
        }
      }
      at += to_query;
      more -= groups;
    }
  }

  // The products of four samples from the `first`th on; the lane whose number among four neighbours
  // is that of a sample among the four gets that one's. Lanes hand over half of their sums before
  // they add the other half, so that a sum over all of them takes a shuffle instead of four.
  template <typename Load>
  TAL_FAST_DEVICE static float dots(int place, int first, Load load, const float* grad) {
    Pack<T, N> packs[kInFlight];
    for (int j = 0; j < kInFlight; ++j) {
      packs[j] = load(__shfl_sync(kAllLanes, place, first + j, kLanes));
    }
    float sums[kInFlight];
    for (int j = 0; j < kInFlight; ++j) {
      float wide[N];
      widen_pack(packs[j], wide);
      sums[j] = 0.0f;
      for (int i = 0; i < N; ++i) {
        sums[j] = multiply_add(grad[i], wide[i], sums[j]);
      }
    }
    const int lane = static_cast<int>(threadIdx.x) & (kLanes - 1);
    const bool upper = (lane & kLanes / 2) != 0;
    const bool odd = (lane & kLanes / 4) != 0;
    float pair[2];
    for (int j = 0; j < 2; ++j) {
      const float given = upper ? sums[j] : sums[j + 2];
      pair[j] = (upper ? sums[j + 2] : sums[j]) + __shfl_xor_sync(kAllLanes, given, kLanes / 2);
    }
    const float given = odd ? pair[0] : pair[1];
    float sum = (odd ? pair[1] : pair[0]) + __shfl_xor_sync(kAllLanes, given, kLanes / 4);
    if constexpr (kLanes == 8) {
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      // Two neighbours have the sum of one sample.
      sum = __shfl_sync(kAllLanes, sum, 2 * lane & 7, kLanes);
    }
    return sum;
  }
};

template <typename T, typename Source, int kLog2, bool kStaged, bool kOnce>
struct DeformAttnBackwardPacks {
  static_assert(kLog2 == 2 || kLog2 == 3, "of four or eight lanes");
  static constexpr const char* kName = kStaged ? "deform_attn backward, staged packs"
                                       : kOnce ? "deform_attn backward, packs once"
                                               : "deform_attn backward, packs in rounds";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = kBackwardPackBlocks<T>;
  static constexpr int kRounds = kOnce ? 8 : 4;  // of the queries of a block without staged rows

  DeformAttnProblem<T, Source> problem;
  RowGradients<T, Source, true> rows;
  PackSampleGradients<T, Source, kLog2, kStaged, kOnce> samples;
  int row_blocks;  // they come first: they take longer

  TAL_FAST_DEVICE void operator()() const {
    const int block = static_cast<int>(blockIdx.x);
    if (block < row_blocks) {  // hot: block of rows
      rows.run_block(problem, block);
    } else {  // hot: block of samples
      samples.run(problem, block - row_blocks);
    }
  }
};

}  // namespace tal_fast
