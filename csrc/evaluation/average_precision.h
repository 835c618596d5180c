// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "problem.h"

// Matching of detections and instances, and average precision, for all classes and thresholds in
// one pass. Plain arrays in, plain vectors out.
//
// The rule of ActivityNet. Within a class, detections of all videos are visited by falling score. A
// detection looks at the ground truth of its own video and class by falling tIoU; at each threshold
// it takes the first one that is still free there, and is a true positive, or meets one below the
// threshold (or the end), and is a false positive. AP is the area under the precision envelope (the
// largest precision at this recall or a higher one).
//
// The rule of THUMOS'14 (Rules::instances_choose, strictly_above, not interpolate). Within a class
// and a video, each instance in input order takes the free detection of highest tIoU if it exceeds
// the threshold; a detection that was not taken and overlaps an ambiguous region is removed. AP is
// the sum of the precisions at the true positives over the number of instances.
//
// Ties, so that a result never depends on the machine: equal scores keep the input order, equal
// tIoU goes to the ground truth that comes first in the input (THUMOS'14: to the detection of
// higher rank). Problem::order and tie_order put another rule in their place.
namespace tal_fast::evaluation {

struct Result {
  std::vector<double> ap;                 // [num_classes, num_thresholds]; NaN: no ground truth
  std::vector<int64_t> true_positives;    // [num_classes, num_thresholds]
  std::vector<int64_t> num_ground_truth;  // [num_classes]
  std::vector<int64_t> num_detections;    // [num_classes]
  std::vector<uint64_t> hits;             // [detections]; bit k: a true positive at thresholds[k]
  std::vector<uint64_t> found;            // [ground truth]; bit k: matched at thresholds[k]
  std::vector<uint8_t> ambiguous;         // [detections] touches a region; empty without regions
  std::vector<int64_t> ranked;            // [detections] by class, then by rank
  std::vector<int64_t> begin;             // [num_classes + 1] into `ranked`
  // [num_thresholds, detections]: the instance that was matched, or -1; empty unless asked for.
  std::vector<int64_t> matched;
};

// Expects a problem that passed check(). num_threads: 0 chooses (one thread unless the input is
// large). The result is the same, bit for bit, for every number: a class is one thread's work, and
// classes share nothing.
Result average_precision(const Problem& problem, int num_threads = 0, bool want_matched = false);

// AP of one class at one threshold from its hits. `rank[n]` (rising) is the position, from 0, of
// hit n among the detections that count.
double area(const std::vector<int64_t>& rank, int64_t num_ground_truth, bool interpolate);

}  // namespace tal_fast::evaluation
