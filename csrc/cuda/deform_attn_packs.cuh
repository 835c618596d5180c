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

// A lane works with 1 << kLog2 - 1 neighbours on the left taps of a query, and as many lanes on the
// right ones, as in deform_attn_lanes.cuh.
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
  static constexpr int kInFlight = 4;        // loads of a lane; sums do not depend on it

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
      const int index = turn * static_cast<int>(gridDim.x) + (all ? block : block / query_blocks);
      const int64_t first = all ? 0 : int64_t{block % query_blocks} * queries_per_block;
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
    const int pair = index / slices;
    const int64_t b = pair / static_cast<int>(sizes.heads);
    const int64_t h = pair % static_cast<int>(sizes.heads);
    const int lane = static_cast<int>(threadIdx.x) & (kLanes - 1);
    const int channel = index % slices * kWidth + lane * N;
    const int stride = pinned(static_cast<int>(sizes.heads * sizes.channels));
    const T* rows = value + (b * sizes.rows * sizes.heads + h) * sizes.channels + channel;
    const bool* padded = padding == nullptr ? nullptr : padding + b * sizes.rows;
    const Here here = {b, h, first, count, channel};
    if constexpr (kStaged) {
      SharedMemory shared;
      const Shared<T> memory = shared.take<T>((static_cast<int>(sizes.rows) + 1) * kWidth);
      const Shared<T> column = memory + lane * N;
      stage_packs<kLog2>(column, rows, static_cast<int>(sizes.rows), stride, padded);
      constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(T));
      const PinnedShared<T> packs(column);
      attend(
          here, [](int row) { return (1 + row) * kRowBytes; }, 0,
          [&](int place) { return packs.load(place); });
    } else {
      const T* from = pinned(rows);
      attend(
          here,
          [&](int row) { return padded != nullptr && read(padded + row) ? -1 : row * stride; }, -1,
          [&](int place) { return read_or_zeros(from, place); });
    }
  }

  // What a block works on.
  struct Here {
    int64_t b, h;
    int64_t first;  // query
    int count;      // of queries
    int channel;    // the lane's first
  };

  // `place_of` a row that exists, the place `none` of zeros, and what `load` finds at a place.
  template <typename PlaceOf, typename Load>
  TAL_FAST_DEVICE void attend(const Here& here, PlaceOf place_of, int none, Load load) const {
    constexpr bool kOnce = kPath == PackPath::kOnce;
    const int lane = pinned(static_cast<int>(threadIdx.x) & (kLanes - 1));
    const int side = pinned(static_cast<int>(threadIdx.x) >> kLog2 & 1);
    const int group = static_cast<int>(threadIdx.x) >> (kLog2 + 1);
    const int groups = pinned(static_cast<int>(blockDim.x) >> (kLog2 + 1));
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
    for (int base = 0; base < here.count; base += groups) {  // hot: query
      const LaneSoftmax softmax = source.template softmax<kLanes, kOnce>(
          stream, raw, lane, kOnce || more > 0 ? samples : 0);
      float sums[N];
      for (int i = 0; i < N; ++i) {
        sums[i] = 0.0f;
      }
      const auto turn = [&](int k, bool last) {
        // Without a branch, after which the warp would have to meet again.
        const bool exists = sample.k < samples;
        const Position<float> position =
            locate(source.location(raw, sample.as_float), sample.as_float);
        const float weight = exists ? source.template weight<kOnce>(raw, softmax) : 0.0f;
        const float right = weight * position.fraction;
        const float share = side == 0 ? weight - right : right;
        const int row = position.tap + side;
        const bool inside =
            exists && static_cast<unsigned>(row) < static_cast<unsigned>(sample.length);
        const int place = inside ? place_of(sample.start + row) : none;
        // What comes next is on its way while this is gathered, and not looked at before.
        if constexpr (!kOnce) {
          sample = typed_sample(sizes, levels, per_point, last ? lane : sample.k + kLanes);
        }
        stream.template step<kLanes>(last);
        if (more > (last ? groups : 0) && sample.k < samples) {
          raw = stream.fetch(sample.level);
        }
        for (int j = 0; j < kLanes; j += kInFlight) {
          if (j == 0 || k + j < samples) {
            add(place, share, j, load, sums);
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
        result[i] = narrow<T>(sums[i] + __shfl_xor_sync(kAllLanes, sums[i], kLanes));
      }
      if (more > 0 && side == 0) {
        store_pack<N>(target, result);
      }
      target += to_target;
      more -= groups;
    }
  }

  template <typename Load>
  TAL_FAST_DEVICE static void add(int place, float share, int first, Load load, float* sums) {
    Pack<T, N> packs[kInFlight];
    float shares[kInFlight];
    for (int j = 0; j < kInFlight; ++j) {
      const int from = __shfl_sync(kAllLanes, place, first + j, kLanes);
      shares[j] = __shfl_sync(kAllLanes, share, first + j, kLanes);
      packs[j] = load(from);
    }
    for (int j = 0; j < kInFlight; ++j) {
      float wide[N];
      widen_pack(packs[j], wide);
      for (int i = 0; i < N; ++i) {
        sums[i] = multiply_add(shares[j], wide[i], sums[i]);
      }
    }
  }
};

}  // namespace tal_fast
