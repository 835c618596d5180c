// SPDX-License-Identifier: Apache-2.0
// What nms, soft_nms, batched_nms and their forms of fixed size are on every device: here their
// arguments get the names of NmsOptions and are checked. A device has functions of the ops' names
// that take an NmsCall.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <type_traits>

#include "math/nms.h"
#include "ops/detections.h"

namespace tal_fast {

// What is asked for.
struct NmsRequest {
  NmsOptions<double> nms;
  std::optional<VotingOptions> voting = std::nullopt;
  int64_t max_segments = kNoLimit;  // of a video
  bool validate = true;
};

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

// A call whose arguments have passed the checks that need no values of tensors.
struct NmsCall {
  const char* op;
  const Tensor& segments;  // [N, 2] as given, whose types the results have
  const Tensor& scores;    // [N]
  Detections in;
  NmsRequest request;
  GroupNumbers groups = {};
  std::optional<int64_t> num_videos = std::nullopt;  // batched_nms_padded
};

template <typename T>
NmsOptions<T> in_compute_type(const NmsOptions<double>& options) {
  return {.method = options.method,
          .acts_on_threshold = options.acts_on_threshold,
          .spare_first = options.spare_first,
          .iou_threshold = static_cast<T>(options.iou_threshold),
          .length_eps = static_cast<T>(options.length_eps),
          .sigma = static_cast<T>(options.sigma),
          .t1 = static_cast<T>(options.t1),
          .t2 = static_cast<T>(options.t2),
          .min_score = static_cast<T>(options.min_score),
          .max_segments = options.max_segments};
}

// ---- checks -------------------------------------------------------------------------------------

inline int64_t check_limit(const char* op, const char* argument, std::optional<int64_t> limit) {
  TAL_FAST_CHECK(!limit.has_value() || *limit >= 1, op, ": expected ", argument,
                 " >= 1 or None, got ", limit.value_or(0));
  return limit.value_or(kNoLimit);
}

inline NmsMethod check_method(const char* op, int64_t method) {
  TAL_FAST_CHECK(method >= 0 && method <= 3, op, ": expected method 0, 1, 2 or 3, got ", method);
  return static_cast<NmsMethod>(method);
}

inline void check_options(const char* op, const NmsOptions<double>& options) {
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

// Labels or videos as contiguous int64.
inline Tensor check_groups(const char* op, const char* argument, const Tensor& groups, int64_t n) {
  TAL_FAST_CHECK(groups.dim() == 1 && groups.size(0) == n, op, ": expected ", argument,
                 " of shape [", n, "], one per segment, got ", shape_string(groups));
  const ScalarType type = groups.scalar_type();
  TAL_FAST_CHECK(type == ScalarType::Long || type == ScalarType::Int, op, ": expected ", argument,
                 " of dtype int64 or int32, got ", dtype_string(type));
  return as_contiguous(to_type(groups, ScalarType::Long));
}

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

// All segments are one problem.
inline NmsCall one_problem(const char* op, const Tensor& segments, const Tensor& scores,
                           const NmsOptions<double>& options, bool validate) {
  check_options(op, options);
  return {.op = op,
          .segments = segments,
          .scores = scores,
          .in = check_detections(op, segments, scores),
          .request = {.nms = options, .max_segments = options.max_segments, .validate = validate}};
}

// ---- the ops ------------------------------------------------------------------------------------

// Their arguments are those of the schemas, in the same order.
template <typename Device>
struct NmsOps {
  static Tensor nms(const Tensor& segments, const Tensor& scores, double iou_threshold,
                    bool acts_on_threshold, double length_eps, std::optional<int64_t> max_segments,
                    bool validate) {
    return Device::nms(hard("nms", segments, scores, iou_threshold, acts_on_threshold, length_eps,
                            max_segments, validate));
  }

  static std::tuple<Tensor, Tensor> nms_padded(const Tensor& segments, const Tensor& scores,
                                               double iou_threshold, int64_t max_segments,
                                               bool acts_on_threshold, double length_eps,
                                               bool validate) {
    return Device::nms_padded(hard("nms_padded", segments, scores, iou_threshold, acts_on_threshold,
                                   length_eps, max_segments, validate));
  }

  // `Limit` is int64_t for soft_nms_padded, which cannot do without one.
  template <typename Limit>
  static auto soft_nms(const Tensor& segments, const Tensor& scores, int64_t method, double sigma,
                       double iou_threshold, double min_score, Limit max_segments,
                       bool acts_on_threshold, double length_eps, double t1, double t2,
                       bool spare_first, bool validate) {
    constexpr bool kPadded = std::is_same_v<Limit, int64_t>;
    const char* op = kPadded ? "soft_nms_padded" : "soft_nms";
    const NmsCall call =
        with_all_options(op, segments, scores, method, iou_threshold, acts_on_threshold, length_eps,
                         sigma, t1, t2, min_score, max_segments, spare_first, validate);
    if constexpr (kPadded) {
      return Device::soft_nms_padded(call);
    } else {
      return Device::soft_nms(call);
    }
  }

  static std::tuple<Tensor, Tensor, Tensor> batched_nms(
      const Tensor& segments, const Tensor& scores, const Tensor& labels,
      std::optional<Tensor> videos, int64_t method, double iou_threshold, bool acts_on_threshold,
      double length_eps, double sigma, double t1, double t2, double min_score,
      std::optional<int64_t> max_segments, std::optional<int64_t> max_per_class, bool per_class,
      std::optional<double> voting_threshold, int64_t voting_weight, bool spare_first,
      bool validate) {
    return Device::batched_nms(batched("batched_nms", segments, scores, labels, videos, method,
                                       iou_threshold, acts_on_threshold, length_eps, sigma, t1, t2,
                                       min_score, max_segments, max_per_class, per_class,
                                       voting_threshold, voting_weight, spare_first, validate));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> batched_nms_padded(
      const Tensor& segments, const Tensor& scores, const Tensor& labels,
      std::optional<Tensor> videos, int64_t num_videos, int64_t max_segments, int64_t method,
      double iou_threshold, bool acts_on_threshold, double length_eps, double sigma, double t1,
      double t2, double min_score, std::optional<int64_t> max_per_class, bool per_class,
      std::optional<double> voting_threshold, int64_t voting_weight, bool spare_first,
      bool validate) {
    const char* op = "batched_nms_padded";
    TAL_FAST_CHECK(num_videos >= 1, op, ": expected num_videos >= 1, got ", num_videos);
    NmsCall call =
        batched(op, segments, scores, labels, videos, method, iou_threshold, acts_on_threshold,
                length_eps, sigma, t1, t2, min_score, max_segments, max_per_class, per_class,
                voting_threshold, voting_weight, spare_first, validate);
    call.num_videos = num_videos;
    return Device::batched_nms_padded(call);
  }

 private:
  static NmsCall hard(const char* op, const Tensor& segments, const Tensor& scores,
                      double iou_threshold, bool acts_on_threshold, double length_eps,
                      std::optional<int64_t> max_segments, bool validate) {
    return one_problem(op, segments, scores,
                       {.acts_on_threshold = acts_on_threshold,
                        .iou_threshold = iou_threshold,
                        .length_eps = length_eps,
                        .max_segments = check_limit(op, "max_segments", max_segments)},
                       validate);
  }

  static NmsCall with_all_options(const char* op, const Tensor& segments, const Tensor& scores,
                                  int64_t method, double iou_threshold, bool acts_on_threshold,
                                  double length_eps, double sigma, double t1, double t2,
                                  double min_score, std::optional<int64_t> max_segments,
                                  bool spare_first, bool validate) {
    return one_problem(op, segments, scores,
                       {.method = check_method(op, method),
                        .acts_on_threshold = acts_on_threshold,
                        .spare_first = spare_first,
                        .iou_threshold = iou_threshold,
                        .length_eps = length_eps,
                        .sigma = sigma,
                        .t1 = t1,
                        .t2 = t2,
                        .min_score = min_score,
                        .max_segments = check_limit(op, "max_segments", max_segments)},
                       validate);
  }

  static NmsCall batched(const char* op, const Tensor& segments, const Tensor& scores,
                         const Tensor& labels, const std::optional<Tensor>& videos, int64_t method,
                         double iou_threshold, bool acts_on_threshold, double length_eps,
                         double sigma, double t1, double t2, double min_score,
                         std::optional<int64_t> max_segments, std::optional<int64_t> max_per_class,
                         bool per_class, std::optional<double> voting_threshold,
                         int64_t voting_weight, bool spare_first, bool validate) {
    TAL_FAST_CHECK(per_class || !max_per_class.has_value(), op,
                   ": expected no max_per_class with per_class=False, got ",
                   max_per_class.value_or(0));
    const int64_t of_video = check_limit(op, "max_segments", max_segments);
    const int64_t of_class = check_limit(op, "max_per_class", max_per_class);
    NmsCall call = with_all_options(op, segments, scores, method, iou_threshold, acts_on_threshold,
                                    length_eps, sigma, t1, t2, min_score,
                                    std::min(of_video, of_class), spare_first, validate);
    call.request.max_segments = of_video;
    if (voting_threshold.has_value()) {
      call.request.voting = check_voting(op, "voting_threshold", *voting_threshold, voting_weight);
    }
    call.groups = check_groups(op, labels, videos, per_class, call.in.count);
    return call;
  }
};

template <typename Device>
void register_nms(torch::stable::detail::StableLibrary& m) {
  using Ops = NmsOps<Device>;
  m.impl("nms", TORCH_BOX(&Ops::nms));
  m.impl("soft_nms", TORCH_BOX(&Ops::template soft_nms<std::optional<int64_t>>));
  m.impl("batched_nms", TORCH_BOX(&Ops::batched_nms));
  m.impl("nms_padded", TORCH_BOX(&Ops::nms_padded));
  m.impl("soft_nms_padded", TORCH_BOX(&Ops::template soft_nms<int64_t>));
  m.impl("batched_nms_padded", TORCH_BOX(&Ops::batched_nms_padded));
}

}  // namespace tal_fast
