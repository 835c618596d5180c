// SPDX-License-Identifier: Apache-2.0
// Kernels of segment voting. The voters of all problems lie in one order by problem and start, so
// that those who can have a vote on a kept segment are a range of it.
#pragma once

#include <limits>

#include "cuda/platform.cuh"
#include "cuda/row_order.cuh"
#include "math/ordered_bits.h"
#include "math/segment_voting.h"

namespace tal_fast {

// Segments that have no vote belong to no problem.
constexpr int64_t kNoProblem = INT64_MAX;

template <typename T>
struct VoterKeys {
  static constexpr const char* kName = "segment_voting keys";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;

  const T* segments;        // [N, 2]
  const int64_t* problems;  // [N] or null: one problem
  int64_t n;
  int64_t* groups;                   // [N] out: the problem or kNoProblem
  decltype(rising_key(T(0)))* keys;  // [N] out

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
      const T start = segments[2 * i];
      const bool votes = can_vote(segments[2 * i + 1] - start);
      groups[i] = !votes ? kNoProblem : problems != nullptr ? problems[i] : 0;
      keys[i] = rising_key(start);
    }
  }
};

// The voters of a problem are places [begins[p], begins[p + 1]) of the order.
template <typename T>
struct Voters {
  T* starts;        // [N]
  T* ends;          // [N]
  T* scores;        // [N]
  int64_t* begins;  // [problems + 1]
  double* longest;  // [problems]: the greatest length
};

template <typename T>
struct ArrangeVoters {
  static constexpr const char* kName = "segment_voting voters";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;

  const T* segments;     // [N, 2]
  const T* scores;       // [N]
  const int64_t* order;  // [N]
  int64_t n;
  Voters<T> voters;  // starts, ends, scores: out

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
      const int64_t row = order[i];
      voters.starts[i] = segments[2 * row];
      voters.ends[i] = segments[2 * row + 1];
      voters.scores[i] = scores[row];
    }
  }
};

// A block per problem: where its voters begin, and their greatest length.
template <typename T>
struct FindVoters {
  static constexpr const char* kName = "segment_voting ranges";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;

  const int64_t* groups;  // [N] by row
  const int64_t* order;   // [N]
  int64_t n;
  const int32_t* num_problems;  // [] or null: one
  Voters<T> voters;             // begins, longest: out

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<T> of_warps = memory.take<T>(kThreads / kWarp);
    const int64_t problems = num_problems != nullptr ? *num_problems : 1;
    for (int64_t p = blockIdx.x; p < problems; p += gridDim.x) {
      const int64_t begin = places_below(groups, order, n, p);
      const int64_t end = places_below(groups, order, n, p + 1);
      T longest = 0;
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
        const T length = voters.ends[i] - voters.starts[i];
        longest = longest < length ? length : longest;
      }
      longest = warp_max(longest);
      if (lane_index() == 0) {
        of_warps.store(warp_index(), longest);
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int warp = 1; warp < kThreads / kWarp; ++warp) {
          const T other = of_warps.load(warp);
          longest = longest < other ? other : longest;
        }
        voters.begins[p] = begin;
        voters.begins[p + 1] = end;
        voters.longest[p] = static_cast<double>(longest);
      }
      __syncthreads();
    }
  }
};

// kVotingLanes threads per kept segment, each with one of the partial sums of the CPU kernel.
template <VotingWeight kWeight, typename T>
struct CastVotes {
  static constexpr const char* kName = "segment_voting";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;
  static constexpr int kPerBlock = kThreads / kVotingLanes;

  const T* kept;            // [K, 2], or null: those of `rows`
  const int64_t* rows;      // [K], -1: nothing there
  const T* segments;        // [N, 2]
  const int64_t* problems;  // [N] by row; or null: one problem
  Voters<T> voters;
  T threshold;
  int64_t count;
  T* out;  // [K, 2]

  TAL_FAST_DEVICE void operator()() const {
    const int lane = static_cast<int>(threadIdx.x) % kVotingLanes;
    const int64_t k = static_cast<int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kVotingLanes;
    const int64_t row = k < count && rows != nullptr ? rows[k] : 0;
    const bool present = k < count && row >= 0;
    T s = 0;
    T e = 0;
    if (present) {
      s = kept != nullptr ? kept[2 * k] : segments[2 * row];
      e = kept != nullptr ? kept[2 * k + 1] : segments[2 * row + 1];
    }
    double weight = 0.0;
    double start = 0.0;
    double end = 0.0;
    if (s < e) {  // others overlap nothing
      const int64_t problem = problems != nullptr ? problems[row] : 0;
      const int64_t first = voters.begins[problem];
      const int64_t all = voters.begins[problem + 1] - first;
      const VotingWindow window = voting_window(s, e, threshold, voters.longest[problem]);
      const T* starts = voters.starts + first;
      const int64_t begin = count_below(starts, all, window.first);
      const int64_t stop = begin + count_below(starts + begin, all - begin, window.last);
      for (int64_t i = begin + lane; i < stop; i += kVotingLanes) {
        const T its_start = starts[i];
        const T its_end = voters.ends[first + i];
        const double vote =
            vote_weight<kWeight>(s, e, threshold, its_start, its_end, voters.scores[first + i]);
        weight += vote;
        start += vote * static_cast<double>(its_start);
        end += vote * static_cast<double>(its_end);
      }
    }
    // In pairs as the CPU kernel adds its lanes.
    static_assert(kVotingLanes == 8);
    weight = warp_sum<kVotingLanes>(weight);
    start = warp_sum<kVotingLanes>(start);
    end = warp_sum<kVotingLanes>(end);
    if (k < count && lane == 0) {
      out[2 * k] = weight != 0.0 ? static_cast<T>(start / weight) : s;
      out[2 * k + 1] = weight != 0.0 ? static_cast<T>(end / weight) : e;
    }
  }
};

}  // namespace tal_fast
