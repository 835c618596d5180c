// SPDX-License-Identifier: Apache-2.0
// The samples of a level in the order of the rows they touch, for the gradient of value: found
// once, so that no block of rows has to look for its own among all of them.
#pragma once

#include "cuda/deform_attn_samples.cuh"

namespace tal_fast {

// What the sort writes. A sample with its left tap at row r of its level is in bin r + 1: bins 0 to
// T. Samples that touch no row are in none.
template <typename C>
struct SortedSamples {
  int32_t* begins;  // [B, H, S + 2 * L], T + 2 per level: where bins begin, and where the last ends
  int32_t* query;   // [B, H, L, Q * P] by bin; within a bin in the order of query and point
  C* shares;        // [B, H, L, Q * P, 2] the parts of the weight for the left and the right tap

  TAL_FAST_DEVICE int64_t first_begin(const DeformAttnSizes& sizes, int64_t pair, int level,
                                      const Level& of) const {
    return pair * (sizes.rows + 2 * sizes.levels) + of.start + 2 * level;
  }
  TAL_FAST_DEVICE int64_t first_sample(const DeformAttnSizes& sizes, int64_t pair,
                                       int level) const {
    return (pair * sizes.levels + level) * sizes.queries * sizes.points;
  }
};

// Softmax of every query and head: a thread each.
template <typename C>
struct DeformAttnSoftmaxTable {
  static constexpr const char* kName = "deform_attn_fused backward, softmax";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;

  DeformAttnSizes sizes;
  ProjectedSamples<C> source;
  C* table;  // [B, Q, H, 2] highest logit and sum

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= sizes.batch * sizes.queries * sizes.heads) {
      return;
    }
    const int64_t h = i % sizes.heads;
    const int64_t q = i / sizes.heads % sizes.queries;
    const int64_t b = i / sizes.heads / sizes.queries;
    const Softmax<C> softmax = source.serial_softmax(sizes, source.query(sizes, b, q, h));
    store_pack<2>(table + 2 * i, Pack<C, 2>{{softmax.highest, softmax.sum}});
  }
};

// A stable counting sort by one block per head of a batch element and level. Every warp has samples
// in a row and counts for itself, so that places depend on nothing but the samples.
template <typename C, typename Source, bool kShared>
struct DeformAttnSort {
  static constexpr const char* kName =
      Source::kFused ? (kShared ? "deform_attn_fused backward, sort"
                                : "deform_attn_fused backward, sort in global memory")
                     : (kShared ? "deform_attn backward, sort"
                                : "deform_attn backward, sort in global memory");
  static constexpr int kThreads = 1024;
  static constexpr int kBlocks = 1;
  static constexpr int kAhead = sizeof(C) == 8 ? 2 : 4;  // loads of a lane in flight

  DeformAttnSizes sizes;
  Source source;
  const C* softmax;  // [B, Q, H, 2], for the fused op
  SortedSamples<C> sorted;
  int32_t* counts;     // [blocks, warps, bins] unless they are in shared memory
  int bins;            // of the longest level
  uint32_t per_point;  // 2^32 / points, rounded up, for typed samples
  Levels levels;

  static size_t shared_bytes(int warps, int bins) {
    SharedSize size;
    size.take<int32_t>(kWarp);
    size.take<int32_t>(kShared ? int64_t{warps} * bins : 0);
    return size.bytes();
  }

  TAL_FAST_DEVICE void operator()() const {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    Here here{};
    here.level_index = static_cast<int>(blockIdx.x) % sizes.levels;
    here.level = levels.get(here.level_index);
    here.pair = static_cast<int>(blockIdx.x) / sizes.levels;
    here.b = here.pair / sizes.heads;
    here.h = here.pair % sizes.heads;
    SharedMemory memory;
    const Shared<int32_t> totals = memory.take<int32_t>(kWarp);
    Counts count{};
    if constexpr (kShared) {
      count.shared = memory.take<int32_t>(warps * bins);
    } else {
      count.global = counts + int64_t{blockIdx.x} * warps * bins;
    }
    count.row = warp_index() * bins;
    int32_t* begins =
        sorted.begins + sorted.first_begin(sizes, here.pair, here.level_index, here.level);
    const int64_t first = sorted.first_sample(sizes, here.pair, here.level_index);
    const int here_bins = here.level.length + 1;

    for (int t = thread(); t < warps * bins; t += threads()) {
      count.store(t, 0);
    }
    __syncthreads();
    walk(here, [&](int bin, int, C, C) {
      const unsigned same = __match_any_sync(kAllLanes, static_cast<unsigned>(bin));
      if (bin >= 0 && (same & lanes_before()) == 0) {
        count.store(count.row + bin, count.load(count.row + bin) + __popc(same));
      }
      __syncwarp();
    });
    __syncthreads();
    for (int t = thread(); t < here_bins; t += threads()) {
      int total = 0;
      for (int w = 0; w < warps; ++w) {
        const int counted = count.load(w * bins + t);
        count.store(w * bins + t, total);
        total += counted;
      }
      begins[t] = total;
    }
    __syncthreads();
    scan(begins, here_bins, totals);
    __syncthreads();
    walk(here, [&](int bin, int q, C left, C right) {
      const unsigned same = __match_any_sync(kAllLanes, static_cast<unsigned>(bin));
      const int before = __popc(same & lanes_before());
      const int counted = bin >= 0 ? count.load(count.row + bin) : 0;
      __syncwarp();
      if (bin >= 0) {
        if (before == 0) {
          count.store(count.row + bin, counted + __popc(same));
        }
        const int64_t place = first + begins[bin] + counted + before;
        sorted.query[place] = q;
        store_pack<2>(sorted.shares + 2 * place, Pack<C, 2>{{left, right}});
      }
      __syncwarp();
    });
  }

 private:
  struct Here {
    int64_t pair, b, h;
    int level_index;
    Level level;
  };

  // Samples of a warp by bin, then how many of the warps before it have.
  struct Counts {
    Shared<int32_t> shared;
    int32_t* global;
    int row;  // of the warp

    TAL_FAST_DEVICE int load(int i) const {
      if constexpr (kShared) {
        return shared.load(i);
      } else {
        return global[i];
      }
    }
    TAL_FAST_DEVICE void store(int i, int value) const {
      if constexpr (kShared) {
        shared.store(i, value);
      } else {
        global[i] = value;
      }
    }
  };

  TAL_FAST_DEVICE static int thread() { return static_cast<int>(threadIdx.x); }
  TAL_FAST_DEVICE static int threads() { return static_cast<int>(blockDim.x); }
  TAL_FAST_DEVICE static unsigned lanes_before() { return (1u << lane_index()) - 1u; }

  // visit(bin, query, left, right) for the warp's samples in order, by all its lanes; those without
  // a sample, or whose sample touches no row, have bin -1.
  template <typename Visit>
  TAL_FAST_DEVICE void walk(const Here& here, const Visit& visit) const {
    const int count = static_cast<int>(sizes.queries) * sizes.points;
    const int warps = threads() / kWarp;
    const int each = ((count + warps - 1) / warps + kWarp - 1) / kWarp * kWarp;
    const int begin = warp_index() * each;
    const int end = count - begin < each ? count : begin + each;
    const C length = static_cast<C>(here.level.length);
    for (int base = begin; base < end; base += kAhead * kWarp) {  // hot: sort
      typename Source::Raw raw[kAhead];
      int query[kAhead];
      for (int s = 0; s < kAhead; ++s) {
        const int i = base + s * kWarp + lane_index();
        raw[s] = {};
        query[s] = i < end ? query_of(i) : -1;
        if (i < end) {
          const int k = here.level_index * sizes.points + i - query[s] * sizes.points;
          raw[s] = source.fetch(source.query(sizes, here.b, query[s], here.h), k, here.level_index);
        }
      }
      for (int s = 0; s < kAhead; ++s) {
        int bin = -1;
        C left = C(0);
        C right = C(0);
        if (query[s] >= 0) {
          const Position<C> position = position_at(source.location(raw[s], length), length);
          if (position.tap >= -1 && position.tap < here.level.length) {
            bin = position.tap + 1;
            Softmax<C> of{};
            if constexpr (Source::kFused) {
              const auto pack = read_pack<2>(softmax + 2 * sizes.unit(here.b, query[s], here.h));
              of = {pack[0], pack[1]};
            }
            const C weight = source.weight(raw[s], of);
            right = weight * position.fraction;
            left = weight - right;
          }
        }
        visit(bin, query[s], left, right);
      }
    }
  }

  TAL_FAST_DEVICE int query_of(int i) const {
    if constexpr (Source::kTyped) {
      return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(i)) * per_point >> 32);
    } else {
      return i / sizes.points;
    }
  }

  // From how many each bin has to where it begins, and behind the last one where all end.
  TAL_FAST_DEVICE static void scan(int32_t* begins, int bins, Shared<int32_t> totals) {
    const int each = (bins + threads() - 1) / threads();
    const int from = thread() * each;
    const int upto = from + each < bins ? from + each : bins;
    int own = 0;
    for (int t = from; t < upto; ++t) {
      own += begins[t];
    }
    int sum = own;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(offset));
      sum += lane_index() >= offset ? other : 0;
    }
    if (lane_index() == kWarp - 1) {
      totals.store(warp_index(), sum);
    }
    __syncthreads();
    int before = sum - own;
    for (int w = 0; w < warp_index(); ++w) {
      before += totals.load(w);
    }
    for (int t = from; t < upto; ++t) {
      const int counted = begins[t];
      begins[t] = before;
      before += counted;
    }
    // Those of the threads behind the last bin have nothing to add.
    if (from < bins && upto == bins) {
      begins[bins] = before;
    }
  }
};

}  // namespace tal_fast
