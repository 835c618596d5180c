// SPDX-License-Identifier: Apache-2.0
// The forward of deform_attn and deform_attn_fused where nothing about the layout is left to ask
// while it runs: rows are whole aligned packs, the lanes of a query and the dtypes of its samples
// are template parameters, indices within a block fit into 32 bits. Such a kernel is bound by the
// instructions it issues, so each that a query need not repeat stands before the loops. The sums
// are those of DeformAttnForward, in its order, and have its bits.
#pragma once

#include "cuda/deform_attn_typed.cuh"

namespace tal_fast {

enum class PackPath {
  kOnce,    // staged rows, and no lane has a second sample of a query
  kRounds,  // staged rows, any number of samples
  kGlobal,  // rows in global memory, any number of samples
};

// A query is worked on by 1 << kLog2 lanes. Each prepares a sample, both its taps, and has a pack
// of channels, whose sum over the taps in even rows it keeps apart from that over those in odd
// rows. Half of these groups of lanes begin with the tap in an even row, half with the one in an
// odd row: so two groups with rows of 64 bytes read shared memory together without a bank conflict.
template <typename T, typename Source, int kLog2, PackPath kPath>
struct DeformAttnForwardPacks {
  static constexpr bool kStaged = kPath != PackPath::kGlobal;
  static constexpr const char* kName =
      Source::kFused ? (kPath == PackPath::kOnce     ? "deform_attn_fused forward, packs once"
                        : kPath == PackPath::kRounds ? "deform_attn_fused forward, packs in rounds"
                                                     : "deform_attn_fused forward, global packs")
                     : (kPath == PackPath::kOnce     ? "deform_attn forward, packs once"
                        : kPath == PackPath::kRounds ? "deform_attn forward, packs in rounds"
                                                     : "deform_attn forward, global packs");
  static constexpr int kThreads = kStaged ? 1024 : 256;
  static constexpr int kBlocks = kStaged ? 1 : 4;

  static constexpr int N = kPackSize<T>;
  static constexpr int kLanes = 1 << kLog2;
  static constexpr int kWidth = N << kLog2;  // channels of a slice
  // Samples whose loads may be in flight; sums do not depend on it.
  static constexpr int kInFlight = !kStaged && Source::kFused ? 2 : 4;

  DeformAttnSizes sizes;
  Source source;
  const T* value;       // [B, S, H, D]
  const bool* padding;  // [B, S] or null
  T* out;               // [B, Q, H, D]
  int slices;
  int heads_and_slices;  // B * H * slices
  int whole;
  int queries_per_block;
  int query_blocks;
  Divisor by_query_blocks, by_slices, by_heads;
  int per_point;  // 65536 / points, rounded up: k / points is k * per_point >> 16
  Levels levels;

  // Where there are more heads and slices than blocks at a time, a block takes `whole` of them, one
  // after the other; then `query_blocks` blocks share each of the rest.
  TAL_FAST_DEVICE void operator()() const {
    const int block = static_cast<int>(blockIdx.x);
#if defined(__CUDACC__)
#pragma unroll 1
#endif
    for (int turn = 0; turn <= whole; ++turn) {
      const bool all = turn < whole;
      const int part = by_query_blocks.divide(block);
      const int index = turn * static_cast<int>(gridDim.x) + (all ? block : part);
      const int64_t first = all ? 0 : int64_t{block - part * query_blocks} * queries_per_block;
      const int64_t behind = all ? sizes.queries : first + queries_per_block;
      if (index >= heads_and_slices) {
        return;
      }
      if (turn > 0) {
        __syncthreads();  // rows take the place of those of the turn before
      }
      run(index, first,
          static_cast<int>((behind < sizes.queries ? behind : sizes.queries) - first));
    }
  }

 private:
  TAL_FAST_DEVICE void run(int index, int64_t first, int count) const {
    const int pair = by_slices.divide(index);
    const int b = by_heads.divide(pair);
    const int h = pair - b * static_cast<int>(sizes.heads);
    const int lane = static_cast<int>(threadIdx.x) & (kLanes - 1);
    const int channel = (index - pair * slices) * kWidth + lane * N;
    const T* rows = value + (b * sizes.rows * sizes.heads + h) * sizes.channels + channel;
    const bool* padded = padding == nullptr ? nullptr : padding + b * sizes.rows;
    const Here here = {b, h, first, count, channel};
    with_packs<kLog2, kStaged>(sizes, rows, padded, [&](auto place_of, int none, auto load) {
      attend(here, place_of, none, load);
    });
  }

  // What a block works on.
  struct Here {
    int64_t b, h;
    int64_t first;  // query
    int count;      // of queries
    int channel;    // the lane's first
  };

  // A sample's taps in the order in which the lanes of its query read them.
  struct Taps {
    int places[2];
    float shares[2];
  };

  // The last three as with_packs() has them.
  template <typename PlaceOf, typename Load>
  TAL_FAST_DEVICE void attend(const Here& here, PlaceOf place_of, int none, Load load) const {
    constexpr bool kOnce = kPath == PackPath::kOnce;
    const int lane = pinned(static_cast<int>(threadIdx.x) & (kLanes - 1));
    const int odd_first = pinned(static_cast<int>(threadIdx.x) >> kLog2 & 1);
    const int group = static_cast<int>(threadIdx.x) >> kLog2;
    const int groups = pinned(static_cast<int>(blockDim.x) >> kLog2);
    const int samples = pinned(sizes.samples);
    const int behind = kOnce ? 0 : (samples - 1) / kLanes * kLanes;
    auto stream = source.stream(sizes, here.b, here.first + group, here.h, lane, groups, behind);
    T* target =
        out + sizes.unit(here.b, here.first + group, here.h) * sizes.channels + here.channel;
    const int to_target = pinned(groups * static_cast<int>(sizes.heads * sizes.channels));

    // Lanes without a query go on with what they had and write nothing: shuffles need the warp.
    // `more` is how many queries the lane's is away from the end of the block's.
    int more = here.count - group;
    TypedSample sample = typed_sample(sizes, levels, per_point, lane);
    typename Source::Raw raw{};
    if (more > 0 && sample.k < samples) {
      raw = stream.fetch(sample.level);
    }
    if constexpr (kStaged) {
      wait_for_copies();
      __syncthreads();
    }
    // A warp without any more queries is done. The vote tells nvcc that its lanes stay together.
    while (__any_sync(kAllLanes, more > 0)) {  // hot: query
      const LaneSoftmax softmax = source.template softmax<kLanes, kOnce>(
          stream, raw, lane, kOnce || more > 0 ? samples : 0);
      float sums[2][N];
      for (int i = 0; i < N; ++i) {
        sums[0][i] = sums[1][i] = 0.0f;
      }
      const auto turn = [&](int k, bool last) {
        // Without a branch, after which the warp would have to meet again.
        const bool exists = sample.k < samples;
        const Position<float> position =
            position_at(source.location(raw, sample.as_float), sample.as_float);
        const float weight = exists ? source.template weight<kOnce>(raw, softmax) : 0.0f;
        const float right = weight * position.fraction;
        const float left = weight - right;
        const auto length = static_cast<unsigned>(sample.length);
        const int row = sample.start + position.tap;
        const bool has_left = exists && static_cast<unsigned>(position.tap) < length;
        const bool has_right = exists && static_cast<unsigned>(position.tap + 1) < length;
        const int at_left = has_left ? place_of(row) : none;
        const int at_right = has_right ? place_of(row + 1) : none;
        const bool left_first = ((row ^ odd_first) & 1) == 0;
        const Taps taps = {{left_first ? at_left : at_right, left_first ? at_right : at_left},
                           {left_first ? left : right, left_first ? right : left}};
        // What comes next is on its way while this is gathered, and not looked at before.
        if constexpr (!kOnce) {
          sample = typed_sample(sizes, levels, per_point, last ? lane : sample.k + kLanes);
        }
        stream.template step<kLanes>(last);
        if (more > (last ? groups : 0) && sample.k < samples) {
          raw = stream.fetch(sample.level);
        }
#if defined(__CUDACC__)
#pragma unroll
#endif
        for (int j = 0; j < kLanes; j += kInFlight) {
          if (j == 0 || k + j < samples) {
            add(taps, j, load, sums);
          }
        }
      };
      if constexpr (kOnce) {
        turn(0, true);
      } else {
        for (int k = 0; k < samples; k += kLanes) {  // hot: round
          turn(k, k + kLanes >= samples);
        }
      }
      Pack<T, N> result;
      for (int i = 0; i < N; ++i) {
        result[i] = narrow<T>(sums[0][i] + sums[1][i]);
      }
      if (more > 0) {
        store_pack<N>(target, result);
      }
      target += to_target;
      more -= groups;
    }
  }

  template <typename Load>
  TAL_FAST_DEVICE static void add(const Taps& taps, int first, Load load, float (&sums)[2][N]) {
    for (int j = 0; j < kInFlight; ++j) {
      Pack<T, N> packs[2];
      float shares[2];
      for (int t = 0; t < 2; ++t) {
        const int from = __shfl_sync(kAllLanes, taps.places[t], first + j, kLanes);
        shares[t] = __shfl_sync(kAllLanes, taps.shares[t], first + j, kLanes);
        packs[t] = load(from);
      }
      for (int t = 0; t < 2; ++t) {
        float wide[N];
        widen_pack(packs[t], wide);
        for (int i = 0; i < N; ++i) {
          sums[t][i] = multiply_add(shares[t], wide[i], sums[t][i]);
        }
      }
    }
  }
};

}  // namespace tal_fast
