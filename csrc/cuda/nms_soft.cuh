// SPDX-License-Identifier: Apache-2.0
// Soft non-maximum suppression: one block per problem repeats the definition, which is to find the
// highest score and to lower all others. Scores only fall, so those behind a frontier in rank order
// are not touched before the highest one of them may be the next pick; a candidate that joins late
// catches up with the decays of all picks in their order. So every score goes through the
// multiplications of the definition and has its bits.
#pragma once

#include "cuda/nms.cuh"

namespace tal_fast {

template <NmsMethod kMethod, typename T>
struct NmsSoft {
  static constexpr const char* kName = "nms soft, a block per problem";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;
  static constexpr int kWarps = kThreads / kWarp;

  using Bits = decltype(ordered_bits(T(0)));

  // The bits of a score, which are not 0, and its row; with 0: none.
  struct Candidate {
    Bits bits;
    int64_t row;
  };

  NmsDecay<T> decay;
  bool acts_on_threshold;
  T eps;
  bool spare_first;
  int64_t max_kept;
  const int64_t* starts;  // [problems + 1]
  const int64_t* order;   // [N]
  const T* by_row;        // [N, 2] segments
  const T* segments;      // [N, 2] in rank order
  const T* scores;        // [N] in rank order
  T* current;             // [N] in rank order: decayed scores; this is work space
  KeptList<T> list;
  NmsFacts* facts;

  static size_t shared_bytes() {
    return SharedSize().take<Bits>(2 * kWarps).template take<int64_t>(2 * kWarps).bytes();
  }

  static TAL_FAST_DEVICE bool better(const Candidate& a, const Candidate& b) {
    return a.bits != b.bits ? a.bits > b.bits : a.row < b.row;
  }

  // The best candidate of the block. `turn` is 0 and 1 by turns: so one barrier is enough.
  TAL_FAST_DEVICE Candidate best_of_block(const Shared<Bits>& all_bits,
                                          const Shared<int64_t>& all_rows, Candidate own,
                                          int turn) const {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const Candidate other = {__shfl_xor_sync(kAllLanes, own.bits, offset),
                               __shfl_xor_sync(kAllLanes, own.row, offset)};
      own = better(other, own) ? other : own;
    }
    if (lane_index() == 0) {
      all_bits.store(turn * kWarps + warp_index(), own.bits);
      all_rows.store(turn * kWarps + warp_index(), own.row);
    }
    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int warp = 0; warp < warps; ++warp) {
      const Candidate other = {all_bits.load(turn * kWarps + warp),
                               all_rows.load(turn * kWarps + warp)};
      own = better(other, own) ? other : own;
    }
    return own;
  }

  // The score of the segment [s, e] after the pick [pick_start, pick_end].
  TAL_FAST_DEVICE T after(T score, T pick_start, T pick_end, T s, T e) const {
    if (!(pick_start < pick_end) || !(s < e) || !(pick_start < e) || !(pick_end > s)) {
      return score;
    }
    return decayed_score<kMethod>(decay, acts_on_threshold, score, pick_start, pick_end,
                                  (pick_end - pick_start) + eps, s, e, (e - s) + eps);
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<Bits> all_bits = memory.take<Bits>(2 * kWarps);
    const Shared<int64_t> all_rows = memory.take<int64_t>(2 * kWarps);
    const int32_t problems = facts->problems;
    int turn = 0;
    for (int64_t p = blockIdx.x; p < problems; p += gridDim.x) {
      const int64_t num_kept = solve(all_bits, all_rows, starts[p], starts[p + 1], &turn);
      if (threadIdx.x == 0) {
        list.counts[p] = num_kept;
        atomicAdd(&facts->solved, static_cast<int32_t>(num_kept));
      }
    }
  }

  // Solves the problem at places [begin, end). A thread owns every blockDim.x-th place.
  TAL_FAST_DEVICE int64_t solve(const Shared<Bits>& all_bits, const Shared<int64_t>& all_rows,
                                int64_t begin, int64_t end, int* turn) const {
    const int64_t first_own = begin + threadIdx.x;
    Candidate own = {0, kNoGroup};  // the best of this thread's
    int64_t own_place = -1;
    int64_t frontier = begin;  // places before it have joined
    int64_t picks = 0;
    while (picks < max_kept) {
      const Candidate best = best_of_block(all_bits, all_rows, own, *turn);
      *turn ^= 1;
      if (frontier < end) {
        const T score = scores[frontier];
        const Candidate fresh = {ordered_bits(score), order[frontier]};
        if (score >= decay.min_score && better(fresh, best)) {
          const int64_t place = frontier + threadIdx.x;
          if (place < end) {
            const T caught_up = catch_up(place, list.segments + 2 * begin, picks);
            current[place] = caught_up;
            const Candidate joined = {ordered_bits(caught_up), order[place]};
            if (caught_up != T(kNmsDropped) && better(joined, own)) {
              own = joined;
              own_place = place;
            }
          }
          frontier += blockDim.x;
          continue;
        }
      }
      if (best.bits == 0) {
        break;
      }
      const T pick_start = by_row[2 * best.row];
      const T pick_end = by_row[2 * best.row + 1];
      if (own.bits == best.bits && own.row == best.row) {
        list.rows[begin + picks] = own.row;
        list.scores[begin + picks] = current[own_place];
        list.segments[2 * (begin + picks)] = pick_start;
        list.segments[2 * (begin + picks) + 1] = pick_end;
        current[own_place] = T(kNmsDropped);
      }
      if (++picks == max_kept) {
        break;
      }
      own = {0, kNoGroup};
      const int64_t joined_end = frontier < end ? frontier : end;
      for (int64_t place = first_own; place < joined_end; place += blockDim.x) {
        const T before = current[place];
        if (before == T(kNmsDropped)) {
          continue;
        }
        const T score =
            after(before, pick_start, pick_end, segments[2 * place], segments[2 * place + 1]);
        current[place] = score;
        const Candidate candidate = {ordered_bits(score), order[place]};
        if (score != T(kNmsDropped) && better(candidate, own)) {
          own = candidate;
          own_place = place;
        }
      }
    }
    if (picks == 0 && spare_first) {
      if (threadIdx.x == 0) {
        list.rows[begin] = order[begin];
        list.scores[begin] = scores[begin];
      }
      picks = 1;
    }
    return picks;
  }

  // The score of a place after the decays of all picks so far, in their order.
  TAL_FAST_DEVICE T catch_up(int64_t place, const T* picked, int64_t picks) const {
    T score = scores[place];
    if (!(score >= decay.min_score)) {
      return T(kNmsDropped);
    }
    const T s = segments[2 * place];
    const T e = segments[2 * place + 1];
    for (int64_t i = 0; i < picks && score != T(kNmsDropped); ++i) {
      score = after(score, picked[2 * i], picked[2 * i + 1], s, e);
    }
    return score;
  }
};

}  // namespace tal_fast
