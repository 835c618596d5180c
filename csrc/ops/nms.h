// SPDX-License-Identifier: Apache-2.0
// What nms, soft_nms and batched_nms check on every device, and their arguments in one structure.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "math/nms.h"
#include "ops/detections.h"

namespace tal_fast {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

struct NmsRequest {
  NmsOptions nms;
  std::optional<VotingOptions> voting;
  int64_t max_segments = kNoLimit;  // of a video
  bool validate = true;
};

inline void check_limit(const char* op, const char* argument, std::optional<int64_t> limit) {
  TAL_FAST_CHECK(!limit.has_value() || *limit >= 1, op, ": expected ", argument,
                 " >= 1 or None, got ", limit.value_or(0));
}

inline void check_options(const char* op, const NmsOptions& options) {
  TAL_FAST_CHECK(options.iou_threshold >= 0.0 && options.iou_threshold <= 1.0, op,
                 ": expected iou_threshold in [0, 1], got ", options.iou_threshold);
  TAL_FAST_CHECK(options.length_eps >= 0.0 && std::isfinite(options.length_eps), op,
                 ": expected length_eps >= 0, got ", options.length_eps);
  TAL_FAST_CHECK(options.sigma > 0.0 && std::isfinite(options.sigma), op,
                 ": expected sigma > 0, got ", options.sigma);
  TAL_FAST_CHECK(std::isfinite(options.t1), op, ": expected a finite t1, got ", options.t1);
  TAL_FAST_CHECK(std::isfinite(options.t2), op, ": expected a finite t2, got ", options.t2);
  const bool soft = options.method != NmsMethod::kHard;
  // A factor below one raises a negative score, so a decay makes no sense there.
  TAL_FAST_CHECK(!std::isnan(options.min_score) && (!soft || options.min_score >= 0.0), op,
                 ": expected min_score ", soft ? ">= 0 with a soft method" : "that is not NaN",
                 ", got ", options.min_score);
}

inline NmsMethod parse_method(const char* op, int64_t method) {
  TAL_FAST_CHECK(method >= 0 && method <= 3, op, ": expected method 0, 1, 2 or 3, got ", method);
  return static_cast<NmsMethod>(method);
}

// Labels or videos as contiguous int64.
inline Tensor check_groups(const char* op, const char* argument, const Tensor& groups, int64_t n) {
  TAL_FAST_CHECK(groups.dim() == 1 && groups.size(0) == n, op, ": expected ", argument,
                 " of shape [", n, "], one per segment, got ", shape_string(groups));
  const ScalarType type = groups.scalar_type();
  TAL_FAST_CHECK(type == ScalarType::Long || type == ScalarType::Int, op, ": expected ", argument,
                 " of dtype int64 or int32, got ", dtype_string(type));
  const Tensor wide =
      type == ScalarType::Long ? groups : torch::stable::to(groups, ScalarType::Long);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

inline NmsRequest hard_request(const char* op, double iou_threshold, bool acts_on_threshold,
                               double length_eps, std::optional<int64_t> max_segments,
                               bool validate) {
  check_limit(op, "max_segments", max_segments);
  NmsRequest request;
  request.nms = {NmsMethod::kHard,
                 acts_on_threshold,
                 iou_threshold,
                 length_eps,
                 1.0,
                 0.0,
                 0.0,
                 -std::numeric_limits<double>::infinity(),
                 false,
                 max_segments.value_or(kNoLimit)};
  request.max_segments = request.nms.max_segments;
  request.validate = validate;
  check_options(op, request.nms);
  return request;
}

inline NmsRequest soft_request(const char* op, int64_t method, double sigma, double iou_threshold,
                               double min_score, std::optional<int64_t> max_segments,
                               bool acts_on_threshold, double length_eps, double t1, double t2,
                               bool spare_first, bool validate) {
  check_limit(op, "max_segments", max_segments);
  NmsRequest request;
  request.nms = {parse_method(op, method),
                 acts_on_threshold,
                 iou_threshold,
                 length_eps,
                 sigma,
                 t1,
                 t2,
                 min_score,
                 spare_first,
                 max_segments.value_or(kNoLimit)};
  request.max_segments = request.nms.max_segments;
  request.validate = validate;
  check_options(op, request.nms);
  return request;
}

inline void check_num_videos(const char* op, int64_t num_videos) {
  TAL_FAST_CHECK(num_videos >= 1, op, ": expected num_videos >= 1, got ", num_videos);
}

// The options of batched_nms, in the order of its schema.
struct BatchedOptions {
  int64_t method;
  double iou_threshold;
  bool acts_on_threshold;
  double length_eps, sigma, t1, t2, min_score;
  std::optional<int64_t> max_segments;
  std::optional<int64_t> max_per_class;
  bool per_class;
  std::optional<double> voting_threshold;
  int64_t voting_weight;
  bool spare_first;
  bool validate;
};

inline NmsRequest batched_request(const char* op, const BatchedOptions& options) {
  check_limit(op, "max_per_class", options.max_per_class);
  TAL_FAST_CHECK(options.per_class || !options.max_per_class.has_value(), op,
                 ": expected no max_per_class with per_class=False, got ",
                 options.max_per_class.value_or(0));
  NmsRequest request =
      soft_request(op, options.method, options.sigma, options.iou_threshold, options.min_score,
                   options.max_segments, options.acts_on_threshold, options.length_eps, options.t1,
                   options.t2, options.spare_first, options.validate);
  request.nms.max_segments =
      std::min(request.max_segments, options.max_per_class.value_or(kNoLimit));
  if (options.voting_threshold.has_value()) {
    request.voting =
        check_voting(op, "voting_threshold", *options.voting_threshold, options.voting_weight);
  }
  return request;
}

// Labels and videos of the segments; null where all are of one.
struct GroupNumbers {
  std::optional<Tensor> labels;  // [N] int64
  std::optional<Tensor> videos;  // [N] int64

  const int64_t* label_data() const { return data(labels); }
  const int64_t* video_data() const { return data(videos); }

 private:
  static const int64_t* data(const std::optional<Tensor>& numbers) {
    return numbers.has_value() ? const_data<int64_t>(*numbers) : nullptr;
  }
};

inline GroupNumbers check_groups(const char* op, const Tensor& labels,
                                 const std::optional<Tensor>& videos, bool per_class, int64_t n) {
  GroupNumbers groups;
  Tensor label_numbers = check_groups(op, "labels", labels, n);
  if (per_class) {
    groups.labels = label_numbers;
  }
  if (videos.has_value()) {
    groups.videos = check_groups(op, "videos", *videos, n);
  }
  return groups;
}

}  // namespace tal_fast
