// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression of segments: hard, and soft with a linear or Gaussian decay.
//
// A *problem* is a set of segments that may suppress each other: those of one video and class. The
// input is split into problems once, each problem is solved on its own by any thread, and the
// results of a video's problems are merged. Every step has one defined order (score falling, then
// index rising), so the result depends neither on threads nor on the sort.
#pragma once

#include <cstdint>
#include <vector>

namespace tal_fast {

enum class NmsMethod : int { kHard = 0, kLinear = 1, kGaussian = 2 };

struct NmsOptions {
  NmsMethod method;
  double iou_threshold;  // hard: IoU above it suppresses; linear: IoU from it on decays
  double sigma;          // Gaussian only
  double min_score;      // below it a segment is dropped, at once or after a decay
  int64_t max_segments;  // at most so many are kept
};

struct NmsProblems {
  std::vector<int64_t> members;         // [N] rows of the input, problem by problem, rising in each
  std::vector<int64_t> problem_starts;  // [P + 1] into members
  std::vector<int64_t> video_starts;    // [V + 1] into problem_starts, videos rising
};

// Splits n segments by video and label, each in rising order. Either may be null: all the same.
NmsProblems split_into_problems(const int64_t* videos,  // [N] or null
                                const int64_t* labels,  // [N] or null
                                int64_t n);

// Solves one problem and returns how many segments are kept. T is float or double, and all is
// computed in T. Requires finite segments with start <= end and scores that are not NaN.
template <typename T>
int64_t solve_nms(const T* segments,       // [N, 2]
                  const T* scores,         // [N]
                  const int64_t* members,  // [count]
                  int64_t count, const NmsOptions& options,
                  int64_t* kept,    // [count] out: rows of the input, best first
                  T* kept_scores);  // [count] out: their scores, decayed if the method is soft

// Orders detections by falling score, equal scores by rising index.
template <typename T>
void sort_by_score(int64_t* indices,  // [count]
                   T* scores,         // [count]
                   int64_t count);

}  // namespace tal_fast
