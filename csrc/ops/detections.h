// SPDX-License-Identifier: Apache-2.0
// Segments with scores, as nms.cpp and segment_voting.cpp take them: checked, and brought into the
// type that is computed in.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <limits>

#include "math/segment_voting.h"
#include "ops/tensor_checks.h"

namespace tal_fast {

struct Detections {
  Tensor segments;  // [N, 2] float32 or float64, contiguous
  Tensor scores;    // [N] of the same dtype, contiguous
  int64_t count;    // N
};

inline Detections check_detections(const char* op, const Tensor& segments, const Tensor& scores) {
  check_segments(op, "segments", segments);
  TAL_FAST_CHECK(scores.dim() == 1 && scores.size(0) == segments.size(0), op,
                 ": expected scores of shape [", segments.size(0), "], one per segment, got ",
                 shape_string(scores));
  TAL_FAST_CHECK(scores.scalar_type() == segments.scalar_type(), op, ": expected scores of dtype ",
                 dtype_string(segments.scalar_type()), " like segments, got ",
                 dtype_string(scores.scalar_type()));
  // Rows are 32-bit numbers inside.
  TAL_FAST_CHECK(segments.size(0) <= std::numeric_limits<int32_t>::max(), op,
                 ": expected at most 2147483647 segments, got ", segments.size(0));
  return {to_compute_type(segments), to_compute_type(scores), segments.size(0)};
}

// Whether all segments are finite with start <= end. Without an exit the loop vectorises.
template <typename T>
bool valid_segments(const T* segments, int64_t n) {
  constexpr T kMax = std::numeric_limits<T>::max();
  int wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T start = segments[2 * i];
    const T end = segments[2 * i + 1];
    wrong |= !(start <= end) | !(start >= -kMax) | !(end <= kMax);
  }
  return wrong == 0;
}

template <typename T>
bool without_nan(const T* values, int64_t n) {
  int wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    wrong |= std::isnan(values[i]) ? 1 : 0;
  }
  return wrong == 0;
}

template <typename T>
void check_values(const char* op, const char* argument, const T* segments, int64_t n) {
  if (valid_segments(segments, n)) {
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const T start = segments[2 * i];
    const T end = segments[2 * i + 1];
    TAL_FAST_CHECK(std::isfinite(start) && std::isfinite(end), op, ": expected finite ", argument,
                   ", got [", start, ", ", end, "] in row ", i);
    TAL_FAST_CHECK(start <= end, op, ": expected ", argument, " with start <= end, got [", start,
                   ", ", end, "] in row ", i);
  }
}

template <typename T>
void check_ranks(const char* op, const T* scores, int64_t n) {
  if (without_nan(scores, n)) {
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    TAL_FAST_CHECK(!std::isnan(scores[i]), op,
                   ": expected scores that are not NaN, got NaN in row ", i);
  }
}

// Votes are weighted means.
template <typename T>
void check_finite_scores(const char* op, const T* scores, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    TAL_FAST_CHECK(std::isfinite(scores[i]), op, ": expected finite scores for voting, got ",
                   scores[i], " in row ", i);
  }
}

inline VotingOptions check_voting(const char* op, const char* argument, double iou_threshold,
                                  int64_t weight) {
  TAL_FAST_CHECK(iou_threshold > 0.0 && iou_threshold <= 1.0, op, ": expected ", argument,
                 " in (0, 1], got ", iou_threshold);
  TAL_FAST_CHECK(weight == 0 || weight == 1, op, ": expected voting weight 0 or 1, got ", weight);
  return {iou_threshold, static_cast<VotingWeight>(weight)};
}

// What segment_voting checks on every device; the kept segments in the type that is computed in.
inline Tensor check_kept(const char* op, const Tensor& kept_segments, const Tensor& segments) {
  check_segments(op, "kept_segments", kept_segments);
  const ScalarType type = segments.scalar_type();
  TAL_FAST_CHECK(kept_segments.scalar_type() == type, op, ": expected kept_segments of dtype ",
                 dtype_string(type), " like segments, got ",
                 dtype_string(kept_segments.scalar_type()));
  return to_compute_type(kept_segments);
}

}  // namespace tal_fast
