// SPDX-License-Identifier: Apache-2.0
// The formulas of segment voting. Compile with -ffp-contract=off (nvcc: -fmad=false): then CPU and
// GPU give the same bits, provided that both add the votes of the same voters in the same order: in
// kVotingLanes partial sums, the voters of a window being dealt out to them in turn.
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>
#include <limits>

#include "math/host_device.h"

namespace tal_fast {

enum class VotingWeight : int { kScore = 0, kScoreIou = 1 };

struct VotingOptions {
  double iou_threshold;  // in (0, 1]: IoU from it on votes
  VotingWeight weight;
};

// Partial sums per quantity, the same number for every instruction set and on a GPU.
constexpr int kVotingLanes = 8;

// Not inside the functions, where nvcc takes them for calls of host functions.
template <typename T>
constexpr T kGreatest = std::numeric_limits<T>::max();
template <typename T>
constexpr double kVotingRounding = 16.0 * std::numeric_limits<T>::epsilon();

namespace {

// Voters start in [first, last).
struct VotingWindow {
  double first;
  double last;
};

// Which voters a kept segment of positive length has to look at. An IoU of t needs an overlap of t
// times the longer length: a voter starts before end - t * own, and, being at most own / t long and
// outside by at most (1 - t) of that, after start - (1 - t) * own / t.
template <typename T>
TAL_FAST_HD VotingWindow voting_window(T s, T e, T threshold, double longest_voter) {
  const double t = static_cast<double>(threshold) * (1.0 - 1e-5);
  const double start = static_cast<double>(s);
  const double end = static_cast<double>(e);
  const double own = end - start;
  const double longest = own / t < longest_voter ? own / t : longest_voter;
  const double slack =
      kVotingRounding<T> * ((start < 0.0 ? -start : start) + (end < 0.0 ? -end : end)) +
      1e-6 * (longest + own);
  return {start - (1.0 - t) * longest - slack, end - t * own + slack};
}

// Number of values in rising a[0..n) that are below `bound`.
template <typename T>
TAL_FAST_HD int64_t count_below(const T* a, int64_t n, double bound) {
  int64_t begin = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    const bool right = static_cast<double>(a[begin + half]) < bound;
    begin += right ? half + 1 : 0;
    n = right ? n - half - 1 : half;
  }
  return begin;
}

// Whether a segment of this length has a vote at all: the IoU of others is 0 or NaN.
template <typename T>
TAL_FAST_HD bool can_vote(T length) {
  return length > T(0) && length <= kGreatest<T>;
}

// What the vote of the segment [start, end] on the kept one [s, e] weighs.
template <VotingWeight kWeight, typename T>
TAL_FAST_HD double vote_weight(T s, T e, T threshold, T start, T end, T score) {
  const T left = s < start ? start : s;
  const T right = end < e ? end : e;
  const T overlap = right - left;
  const T inter = T(0) < overlap ? overlap : T(0);
  const T iou = inter / ((e - s) + (end - start) - inter);
  const T full = kWeight == VotingWeight::kScore ? score : score * iou;
  return static_cast<double>(iou >= threshold ? full : T(0));
}

}  // namespace
}  // namespace tal_fast
