// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "average_precision.h"

// Why detections are wrong and what that costs, in the manner of DETAD (Alwassel et al.,
// "Diagnosing Error in Temporal Action Detectors", ECCV 2018).
namespace tal_fast::evaluation {

// What a detection is at one threshold t. Not a hit: decided by the instance of its video, of any
// class, that it overlaps best (of its own class among equals), with tIoU o.
enum class Kind : uint8_t {
  kHit = 0,
  kDouble = 1,        // o >= t, own class: the instance was taken
  kWrongLabel = 2,    // o >= t, another class
  kLocalization = 3,  // floor <= o < t, own class
  kConfusion = 4,     // floor <= o < t, another class
  kBackground = 5,    // o < floor
  kRemoved = 6,       // touches an ambiguous region: not counted
};
constexpr int64_t kNumErrors = 5;

struct Kinds {
  std::vector<uint8_t> kind;           // [num_thresholds, detections]
  std::vector<double> best_overlap;    // [detections]
  std::vector<int64_t> best_instance;  // [detections]; -1: nothing overlaps
};
Kinds error_kinds(const Problem& problem, const Result& result, double floor, int num_threads = 0);

// AP without the false positives of one kind: [kNumErrors, num_classes, num_thresholds], kinds 1
// to 5; NaN without ground truth.
std::vector<double> ap_without(const Problem& problem, const Result& result,
                               const std::vector<uint8_t>& kind);

// Normalised AP of the instances of one bin alone: [num_bins, num_classes, num_thresholds]. Hits of
// other instances are left out, all false positives stay. Precision is recall * N over recall * N
// plus false positives, with N = `normalizer`, so that bins of different size compare. NaN where
// the class has no instance in the bin. bin: [ground truth], in [0, num_bins), or -1 for none;
// `result` must hold `matched`.
std::vector<double> ap_of_bins(const Problem& problem, const Result& result, const int64_t* bin,
                               int64_t num_bins, double normalizer);

}  // namespace tal_fast::evaluation
