// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

// Detection matching and average precision, ActivityNet rules, for all classes and thresholds in
// one pass. No torch, no Python: plain arrays in, plain vectors out.
//
// The rule. Within a class, detections of all videos are visited by falling score. A detection
// looks at the ground truth of its own video and class by falling tIoU; at each threshold it takes
// the first one that is still free there, and is a true positive, or meets one below the threshold
// (or the end), and is a false positive. AP is the area under the precision envelope (the largest
// precision at this recall or a higher one).
//
// Ties, so that a result never depends on the machine: equal scores keep the input order, equal
// tIoU goes to the ground truth that comes first in the input.
namespace tal_fast::evaluation {

// A detection's hits are one bit per threshold.
constexpr int64_t kMaxThresholds = 64;

// What distinguishes the evaluators in use; a dialect is a value of this.
struct Rules {
  // The union of two zero-length segments is zero. Guarded, their tIoU is 0 (no hit); unguarded it
  // is NaN, which is not below any threshold, and counts as a hit in the original evaluator.
  bool guard_union = true;
};

struct Detections {
  int64_t size = 0;
  const int64_t* video = nullptr;  // [size] in [0, num_videos)
  const int64_t* label = nullptr;  // [size] in [0, num_classes)
  const double* start = nullptr;   // [size] any unit, the same as the ground truth's
  const double* end = nullptr;     // [size] >= start
  const double* score = nullptr;   // [size] finite
};

struct GroundTruth {
  int64_t size = 0;
  const int64_t* video = nullptr;  // [size]
  const int64_t* label = nullptr;  // [size]
  const double* start = nullptr;   // [size]
  const double* end = nullptr;     // [size]
};

struct Problem {
  Detections detections;
  GroundTruth ground_truth;
  int64_t num_videos = 0;
  int64_t num_classes = 0;
  int64_t num_thresholds = 0;
  const double* thresholds = nullptr;  // [num_thresholds], in (0, 1], in any order
  Rules rules;
};

struct Result {
  std::vector<double> ap;                 // [num_classes, num_thresholds]; NaN: no ground truth
  std::vector<int64_t> true_positives;    // [num_classes, num_thresholds]
  std::vector<int64_t> num_ground_truth;  // [num_classes]
  std::vector<int64_t> num_detections;    // [num_classes]
  std::vector<uint64_t> hits;             // [detections]; bit k: a true positive at thresholds[k]
};

// Throws std::invalid_argument that names the array and index of the first bad value (label or
// video out of range, time or score not finite, end < start, threshold outside (0, 1]).
//
// num_threads: 0 chooses (one thread unless the input is large). The result is the same, bit for
// bit, for every number: a class is one thread's work, and classes share nothing.
Result average_precision(const Problem& problem, int num_threads = 0);

}  // namespace tal_fast::evaluation
