// SPDX-License-Identifier: Apache-2.0
// nms, soft_nms and batched_nms: schema, checks, and the CPU implementation over nms_solver.h.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "ops/nms_solver.h"

namespace tal_fast {
namespace {

void check_limit(const char* op, const char* argument, std::optional<int64_t> limit) {
  TAL_FAST_CHECK(!limit.has_value() || *limit >= 1, op, ": expected ", argument,
                 " >= 1 or None, got ", limit.value_or(0));
}

void check_options(const char* op, const NmsOptions& options) {
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

NmsMethod parse_method(const char* op, int64_t method) {
  TAL_FAST_CHECK(method >= 0 && method <= 3, op, ": expected method 0, 1, 2 or 3, got ", method);
  return static_cast<NmsMethod>(method);
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor> solve_in(const char* op, const Detections& in,
                                            ScalarType out_type, const NmsGroups& groups,
                                            const NmsRequest& options, NmsWanted wanted) {
  if (options.validate) {
    check_values(op, "segments", const_data<T>(in.segments), in.count);
  }
  check_ranks(op, const_data<T>(in.scores), in.count);
  if (options.voting.has_value()) {
    check_finite_scores(op, const_data<T>(in.scores), in.count);
  }
  NmsSolver<T> solver(in, groups, options);
  solver.solve();
  return solver.result(in, out_type, wanted);
}

std::tuple<Tensor, Tensor, Tensor> solve(const char* op, const Detections& in, ScalarType out_type,
                                         const NmsGroups& groups, const NmsRequest& options,
                                         NmsWanted wanted) {
  return in.segments.scalar_type() == ScalarType::Double
             ? solve_in<double>(op, in, out_type, groups, options, wanted)
             : solve_in<float>(op, in, out_type, groups, options, wanted);
}

Tensor nms_cpu(const Tensor& segments, const Tensor& scores, double iou_threshold,
               bool acts_on_threshold, double length_eps, std::optional<int64_t> max_segments,
               bool validate) {
  const Detections in = check_detections("nms", segments, scores);
  check_limit("nms", "max_segments", max_segments);
  NmsRequest options;
  options.nms = {NmsMethod::kHard,
                 acts_on_threshold,
                 iou_threshold,
                 length_eps,
                 1.0,
                 0.0,
                 0.0,
                 -std::numeric_limits<double>::infinity(),
                 false,
                 max_segments.value_or(kNoLimit)};
  options.validate = validate;
  check_options("nms", options.nms);
  return std::get<0>(solve("nms", in, scores.scalar_type(),
                           split_into_problems(nullptr, nullptr, in.count), options,
                           {false, false}));
}

std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& segments, const Tensor& scores,
                                        int64_t method, double sigma, double iou_threshold,
                                        double min_score, std::optional<int64_t> max_segments,
                                        bool acts_on_threshold, double length_eps, double t1,
                                        double t2, bool spare_first, bool validate) {
  const Detections in = check_detections("soft_nms", segments, scores);
  check_limit("soft_nms", "max_segments", max_segments);
  NmsRequest options;
  options.nms = {parse_method("soft_nms", method),
                 acts_on_threshold,
                 iou_threshold,
                 length_eps,
                 sigma,
                 t1,
                 t2,
                 min_score,
                 spare_first,
                 max_segments.value_or(kNoLimit)};
  options.validate = validate;
  check_options("soft_nms", options.nms);
  auto [indices, kept_scores, unused] =
      solve("soft_nms", in, scores.scalar_type(), split_into_problems(nullptr, nullptr, in.count),
            options, {true, false});
  return {indices, kept_scores};
}

// Labels or videos as contiguous int64.
Tensor check_groups(const char* argument, const Tensor& groups, int64_t n) {
  TAL_FAST_CHECK(groups.dim() == 1 && groups.size(0) == n, "batched_nms: expected ", argument,
                 " of shape [", n, "], one per segment, got ", shape_string(groups));
  const ScalarType type = groups.scalar_type();
  TAL_FAST_CHECK(type == ScalarType::Long || type == ScalarType::Int, "batched_nms: expected ",
                 argument, " of dtype int64 or int32, got ", dtype_string(type));
  const Tensor wide =
      type == ScalarType::Long ? groups : torch::stable::to(groups, ScalarType::Long);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

std::tuple<Tensor, Tensor, Tensor> batched_nms_cpu(
    const Tensor& segments, const Tensor& scores, const Tensor& labels,
    std::optional<Tensor> videos, int64_t method, double iou_threshold, bool acts_on_threshold,
    double length_eps, double sigma, double t1, double t2, double min_score,
    std::optional<int64_t> max_segments, std::optional<int64_t> max_per_class, bool per_class,
    std::optional<double> voting_threshold, int64_t voting_weight, bool spare_first,
    bool validate) {
  const char* op = "batched_nms";
  const Detections in = check_detections(op, segments, scores);
  check_limit(op, "max_segments", max_segments);
  check_limit(op, "max_per_class", max_per_class);
  TAL_FAST_CHECK(per_class || !max_per_class.has_value(), op,
                 ": expected no max_per_class with per_class=False, got ",
                 max_per_class.value_or(0));
  NmsRequest options;
  options.max_segments = max_segments.value_or(kNoLimit);
  options.nms = {parse_method(op, method),
                 acts_on_threshold,
                 iou_threshold,
                 length_eps,
                 sigma,
                 t1,
                 t2,
                 min_score,
                 spare_first,
                 std::min(options.max_segments, max_per_class.value_or(kNoLimit))};
  options.validate = validate;
  check_options(op, options.nms);
  if (voting_threshold.has_value()) {
    options.voting = check_voting(op, "voting_threshold", *voting_threshold, voting_weight);
  }
  const Tensor label_ids = check_groups("labels", labels, in.count);
  std::optional<Tensor> video_ids;
  if (videos.has_value()) {
    video_ids = check_groups("videos", *videos, in.count);
  }
  const NmsGroups groups =
      split_into_problems(video_ids.has_value() ? const_data<int64_t>(*video_ids) : nullptr,
                          per_class ? const_data<int64_t>(label_ids) : nullptr, in.count);
  return solve(op, in, scores.scalar_type(), groups, options, {true, true});
}

}  // namespace

// `method` and `voting_weight` are numbers here because a string argument costs an allocation that
// the stable ABI of torch 2.10 never frees; the Python functions take words.
STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "nms(Tensor segments, Tensor scores, float iou_threshold, bool acts_on_threshold=False, "
      "float length_eps=0.0, int? max_segments=None, bool validate=True) -> Tensor");
  m.def(
      "soft_nms(Tensor segments, Tensor scores, int method, float sigma, float iou_threshold, "
      "float min_score, int? max_segments, bool acts_on_threshold=False, float length_eps=0.0, "
      "float t1=0.0, float t2=0.0, bool spare_first=False, bool validate=True) -> "
      "(Tensor, Tensor)");
  m.def(
      "batched_nms(Tensor segments, Tensor scores, Tensor labels, Tensor? videos, int method, "
      "float iou_threshold, bool acts_on_threshold, float length_eps, float sigma, float t1, "
      "float t2, float min_score, int? max_segments, int? max_per_class, bool per_class, "
      "float? voting_threshold, int voting_weight, bool spare_first, bool validate) -> "
      "(Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cpu));
}

}  // namespace tal_fast
