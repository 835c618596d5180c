// SPDX-License-Identifier: Apache-2.0
// Soft non-maximum suppression: a team of threads per problem, a warp or a block, repeats the
// definition, which is to find the highest score and to lower all others. Scores only fall, so
// those behind a frontier in rank order are not touched before the highest one of them may be the
// next pick; a candidate that joins late catches up with the decays of all picks in their order. So
// every score goes through the multiplications of the definition and has its bits.
#pragma once

#include "cuda/nms.cuh"

namespace tal_fast {

// A score and its row. The bits of a score are not 0; with 0: none.
template <typename T>
struct SoftCandidate {
  decltype(ordered_bits(T(0))) bits;
  int64_t row;

  TAL_FAST_DEVICE bool better_than(const SoftCandidate& other) const {
    return bits != other.bits ? bits > other.bits : row < other.row;
  }
};

template <typename T>
TAL_FAST_DEVICE SoftCandidate<T> best_of_warp(SoftCandidate<T> own) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const SoftCandidate<T> other = {__shfl_xor_sync(kAllLanes, own.bits, offset),
                                    __shfl_xor_sync(kAllLanes, own.row, offset)};
    own = other.better_than(own) ? other : own;
  }
  return own;
}

// Teams: best() is the best candidate of all members, who have also seen by then what each other
// wrote to global memory before.
template <typename T>
struct WarpTeam {
  TAL_FAST_DEVICE int size() const { return kWarp; }
  TAL_FAST_DEVICE int rank() const { return lane_index(); }
  TAL_FAST_DEVICE SoftCandidate<T> best(SoftCandidate<T> own) {
    __syncwarp();
    return best_of_warp(own);
  }
};

template <typename T>
struct BlockTeam {
  static constexpr int kMostWarps = 8;
  using Bits = decltype(ordered_bits(T(0)));

  Shared<Bits> bits;     // [2, kMostWarps]
  Shared<int64_t> rows;  // [2, kMostWarps]
  int turn = 0;          // 0 and 1: so one barrier per call is enough

  static size_t shared_bytes() {
    return SharedSize().take<Bits>(2 * kMostWarps).template take<int64_t>(2 * kMostWarps).bytes();
  }
  TAL_FAST_DEVICE BlockTeam() {
    SharedMemory memory;
    bits = memory.take<Bits>(2 * kMostWarps);
    rows = memory.take<int64_t>(2 * kMostWarps);
  }
  TAL_FAST_DEVICE int size() const { return static_cast<int>(blockDim.x); }
  TAL_FAST_DEVICE int rank() const { return static_cast<int>(threadIdx.x); }
  TAL_FAST_DEVICE SoftCandidate<T> best(SoftCandidate<T> own) {
    own = best_of_warp(own);
    if (lane_index() == 0) {
      bits.store(turn * kMostWarps + warp_index(), own.bits);
      rows.store(turn * kMostWarps + warp_index(), own.row);
    }
    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int warp = 0; warp < warps; ++warp) {
      const SoftCandidate<T> other = {bits.load(turn * kMostWarps + warp),
                                      rows.load(turn * kMostWarps + warp)};
      own = other.better_than(own) ? other : own;
    }
    turn ^= 1;
    return own;
  }
};

template <NmsMethod kMethod, typename T>
struct NmsSoft {
  static constexpr const char* kName = "nms soft, a team per problem";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = sizeof(T) == 8 ? 3 : 4;
  static constexpr int64_t kMostOfWarp = 256;  // candidates of a problem that one warp solves

  using Candidate = SoftCandidate<T>;

  NmsOptions<T> options;
  const int64_t* starts;  // [problems + 1]
  const int64_t* order;   // [N]
  const T* by_row;        // [N, 2] segments
  const T* segments;      // [N, 2] in rank order
  const T* scores;        // [N] in rank order
  T* current;             // [N] in rank order: decayed scores; this is work space
  KeptList<T> list;
  NmsFacts* facts;

  // The score of the segment [s, e] after the pick [pick_start, pick_end].
  TAL_FAST_DEVICE T after(T score, T pick_start, T pick_end, T s, T e) const {
    if (!(pick_start < pick_end) || !(s < e) || !(pick_start < e) || !(pick_end > s)) {
      return score;
    }
    return decayed_score<kMethod>(options, options.acts_on_threshold, score, pick_start, pick_end,
                                  (pick_end - pick_start) + options.length_eps, s, e,
                                  (e - s) + options.length_eps);
  }

  TAL_FAST_DEVICE void operator()() const {
    const int64_t problems = facts->problems;
    const int64_t warps_per_block = blockDim.x / kWarp;
    WarpTeam<T> warp;
    for (int64_t p = blockIdx.x * warps_per_block + warp_index(); p < problems;
         p += gridDim.x * warps_per_block) {
      if (starts[p + 1] - starts[p] <= kMostOfWarp) {
        solve(warp, p);
      }
    }
    BlockTeam<T> block;
    for (int64_t p = blockIdx.x; p < problems; p += gridDim.x) {
      if (starts[p + 1] - starts[p] > kMostOfWarp) {
        solve(block, p);
      }
    }
  }

  // A member of the team owns every size()-th place of the problem.
  template <typename Team>
  TAL_FAST_DEVICE void solve(Team& team, int64_t problem) const {
    const int64_t begin = starts[problem];
    const int64_t end = starts[problem + 1];
    const int64_t first_own = begin + team.rank();
    Candidate own = {0, kNoGroup};  // the best of this member's
    int64_t own_place = -1;
    int64_t frontier = begin;  // places before it have joined
    int64_t picks = 0;
    while (picks < options.max_segments) {
      const Candidate best = team.best(own);
      if (frontier < end) {
        const T score = scores[frontier];
        const Candidate fresh = {ordered_bits(score), order[frontier]};
        if (score >= options.min_score && fresh.better_than(best)) {
          const int64_t place = frontier + team.rank();
          if (place < end) {
            const T caught_up = catch_up(place, list.segments + 2 * begin, picks);
            current[place] = caught_up;
            const Candidate joined = {ordered_bits(caught_up), order[place]};
            if (caught_up != T(kNmsDropped) && joined.better_than(own)) {
              own = joined;
              own_place = place;
            }
          }
          frontier += team.size();
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
      if (++picks == options.max_segments) {
        break;
      }
      own = {0, kNoGroup};
      const int64_t joined_end = frontier < end ? frontier : end;
      for (int64_t place = first_own; place < joined_end; place += team.size()) {
        const T before = current[place];
        if (before == T(kNmsDropped)) {
          continue;
        }
        const T score =
            after(before, pick_start, pick_end, segments[2 * place], segments[2 * place + 1]);
        current[place] = score;
        const Candidate candidate = {ordered_bits(score), order[place]};
        if (score != T(kNmsDropped) && candidate.better_than(own)) {
          own = candidate;
          own_place = place;
        }
      }
    }
    if (team.rank() == 0) {
      if (picks == 0 && options.spare_first) {
        picks = spare_first_place(list, begin, order, scores);
      }
      list.counts[problem] = picks;
      atomicAdd(&facts->solved, static_cast<int32_t>(picks));
    }
  }

  // The score of a place after the decays of all picks so far, in their order.
  TAL_FAST_DEVICE T catch_up(int64_t place, const T* picked, int64_t picks) const {
    T score = scores[place];
    if (!(score >= options.min_score)) {
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
