// SPDX-License-Identifier: Apache-2.0
#include "cpu/nms.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "ops/tensor_checks.h"

namespace tal_fast {
namespace {

// Segments per task: about 100 us of work, well above the cost of handing a range to a thread.
constexpr int64_t kSegmentsPerTask = 4096;

struct Detections {
  Tensor segments;  // [N, 2] float32 or float64, contiguous
  Tensor scores;    // [N] of the same dtype, contiguous
  int64_t count;    // N
};

// Checks what all three ops share, and brings both tensors into the type that NMS computes in.
Detections check_detections(const char* op, const Tensor& segments, const Tensor& scores) {
  TAL_FAST_CHECK(segments.dim() == 2 && segments.size(1) == 2, op,
                 ": expected segments of shape [N, 2], got ", shape_string(segments));
  TAL_FAST_CHECK(scores.dim() == 1 && scores.size(0) == segments.size(0), op,
                 ": expected scores of shape [", segments.size(0), "], one per segment, got ",
                 shape_string(scores));
  const ScalarType type = segments.scalar_type();
  TAL_FAST_CHECK(is_float(type), op,
                 ": expected segments of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(type));
  TAL_FAST_CHECK(scores.scalar_type() == type, op, ": expected scores of dtype ",
                 dtype_string(type), " like segments, got ", dtype_string(scores.scalar_type()));
  const ScalarType compute = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto prepare = [type, compute](const Tensor& tensor) {
    return torch::stable::contiguous(type == compute ? tensor : torch::stable::to(tensor, compute));
  };
  return {prepare(segments), prepare(scores), segments.size(0)};
}

template <typename T>
void check_values(const char* op, const T* segments, const T* scores, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T start = segments[2 * i];
    const T end = segments[2 * i + 1];
    TAL_FAST_CHECK(std::isfinite(start) && std::isfinite(end), op,
                   ": expected finite segments, got [", start, ", ", end, "] in row ", i);
    TAL_FAST_CHECK(start <= end, op, ": expected segments with start <= end, got [", start, ", ",
                   end, "] in row ", i);
    TAL_FAST_CHECK(!std::isnan(scores[i]), op,
                   ": expected scores that are not NaN, got NaN in row ", i);
  }
}

NmsOptions check_options(const char* op, int64_t method, double iou_threshold, double sigma,
                         double min_score, std::optional<int64_t> max_segments) {
  TAL_FAST_CHECK(method >= 0 && method <= 2, op, ": expected method 0, 1 or 2, got ", method);
  TAL_FAST_CHECK(iou_threshold >= 0.0 && iou_threshold <= 1.0, op,
                 ": expected iou_threshold in [0, 1], got ", iou_threshold);
  TAL_FAST_CHECK(sigma > 0.0 && std::isfinite(sigma), op, ": expected sigma > 0, got ", sigma);
  const bool soft = static_cast<NmsMethod>(method) != NmsMethod::kHard;
  // A factor below one raises a negative score, so a decay makes no sense there.
  TAL_FAST_CHECK(!std::isnan(min_score) && (!soft || min_score >= 0.0), op, ": expected min_score ",
                 soft ? ">= 0 with a soft method" : "that is not NaN", ", got ", min_score);
  TAL_FAST_CHECK(!max_segments.has_value() || *max_segments >= 1, op,
                 ": expected max_segments >= 1 or None, got ", max_segments.value_or(0));
  return {static_cast<NmsMethod>(method), iou_threshold, sigma, min_score,
          max_segments.value_or(std::numeric_limits<int64_t>::max())};
}

// Solves all problems, merges those of a video, and returns (indices [K], scores [K]).
template <typename T>
std::tuple<Tensor, Tensor> solve_all(const char* op, const Detections& in, ScalarType out_type,
                                     const NmsProblems& problems, const NmsOptions& options) {
  const T* segments = const_data<T>(in.segments);
  const T* scores = const_data<T>(in.scores);
  check_values(op, segments, scores, in.count);

  const std::vector<int64_t>& starts = problems.problem_starts;
  const auto num_problems = static_cast<int64_t>(starts.size()) - 1;
  const auto num_videos = static_cast<int64_t>(problems.video_starts.size()) - 1;
  // Every problem writes at its own place, [starts[p], starts[p] + counts[p]).
  std::vector<int64_t> kept(static_cast<size_t>(in.count));
  std::vector<T> kept_scores(static_cast<size_t>(in.count));
  std::vector<int64_t> counts(static_cast<size_t>(num_problems));
  const int64_t per_problem = std::max<int64_t>(1, in.count / std::max<int64_t>(1, num_problems));
  const int64_t grain = std::max<int64_t>(1, kSegmentsPerTask / per_problem);
  torch::stable::parallel_for(0, num_problems, grain, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      counts[p] = solve_nms(segments, scores, problems.members.data() + starts[p],
                            starts[p + 1] - starts[p], options, kept.data() + starts[p],
                            kept_scores.data() + starts[p]);
    }
  });

  std::vector<int64_t> video_counts(static_cast<size_t>(num_videos));
  const int64_t videos_grain =
      std::max<int64_t>(1, grain * num_videos / std::max<int64_t>(1, num_problems));
  torch::stable::parallel_for(0, num_videos, videos_grain, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const int64_t first = problems.video_starts[v];
      const int64_t last = problems.video_starts[v + 1];
      int64_t filled = counts[first];
      for (int64_t p = first + 1; p < last; ++p) {
        const int64_t target = starts[first] + filled;
        std::copy_n(kept.data() + starts[p], counts[p], kept.data() + target);
        std::copy_n(kept_scores.data() + starts[p], counts[p], kept_scores.data() + target);
        filled += counts[p];
      }
      if (last - first > 1) {  // one problem alone is in order already
        sort_by_score(kept.data() + starts[first], kept_scores.data() + starts[first], filled);
      }
      video_counts[v] = std::min(filled, options.max_segments);
    }
  });

  int64_t total = 0;
  for (const int64_t count : video_counts) {
    total += count;
  }
  Tensor out_indices = torch::stable::new_empty(in.segments, {total}, ScalarType::Long);
  Tensor out_scores = torch::stable::new_empty(in.scores, {total});
  auto* next_index = mutable_data<int64_t>(out_indices);
  auto* next_score = mutable_data<T>(out_scores);
  for (int64_t v = 0; v < num_videos; ++v) {
    const int64_t source = starts[problems.video_starts[v]];
    next_index = std::copy_n(kept.data() + source, video_counts[v], next_index);
    next_score = std::copy_n(kept_scores.data() + source, video_counts[v], next_score);
  }
  if (out_scores.scalar_type() != out_type) {
    out_scores = torch::stable::to(out_scores, out_type);
  }
  return {out_indices, out_scores};
}

std::tuple<Tensor, Tensor> solve(const char* op, const Detections& in, ScalarType out_type,
                                 const NmsProblems& problems, const NmsOptions& options) {
  return in.segments.scalar_type() == ScalarType::Double
             ? solve_all<double>(op, in, out_type, problems, options)
             : solve_all<float>(op, in, out_type, problems, options);
}

Tensor nms_cpu(const Tensor& segments, const Tensor& scores, double iou_threshold) {
  const Detections in = check_detections("nms", segments, scores);
  const NmsOptions options =
      check_options("nms", static_cast<int64_t>(NmsMethod::kHard), iou_threshold, 1.0,
                    -std::numeric_limits<double>::infinity(), std::nullopt);
  return std::get<0>(solve("nms", in, scores.scalar_type(),
                           split_into_problems(nullptr, nullptr, in.count), options));
}

std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& segments, const Tensor& scores,
                                        int64_t method, double sigma, double iou_threshold,
                                        double min_score, std::optional<int64_t> max_segments) {
  const Detections in = check_detections("soft_nms", segments, scores);
  const NmsOptions options =
      check_options("soft_nms", method, iou_threshold, sigma, min_score, max_segments);
  return solve("soft_nms", in, scores.scalar_type(),
               split_into_problems(nullptr, nullptr, in.count), options);
}

// Labels or videos as contiguous int64.
Tensor check_groups(const char* argument, const Tensor& groups, int64_t n) {
  TAL_FAST_CHECK(groups.dim() == 1 && groups.size(0) == n, "batched_nms: expected ", argument,
                 " of shape [", n, "], one per segment, got ", shape_string(groups));
  const ScalarType type = groups.scalar_type();
  TAL_FAST_CHECK(type == ScalarType::Long || type == ScalarType::Int, "batched_nms: expected ",
                 argument, " of dtype int64 or int32, got ", dtype_string(type));
  return torch::stable::contiguous(
      type == ScalarType::Long ? groups : torch::stable::to(groups, ScalarType::Long));
}

std::tuple<Tensor, Tensor> batched_nms_cpu(const Tensor& segments, const Tensor& scores,
                                           const Tensor& labels, std::optional<Tensor> videos,
                                           int64_t method, double iou_threshold, double sigma,
                                           double min_score, std::optional<int64_t> max_segments,
                                           bool per_class) {
  const Detections in = check_detections("batched_nms", segments, scores);
  const NmsOptions options =
      check_options("batched_nms", method, iou_threshold, sigma, min_score, max_segments);
  const Tensor label_ids = check_groups("labels", labels, in.count);
  std::optional<Tensor> video_ids;
  if (videos.has_value()) {
    video_ids = check_groups("videos", *videos, in.count);
  }
  const NmsProblems problems =
      split_into_problems(video_ids.has_value() ? const_data<int64_t>(*video_ids) : nullptr,
                          per_class ? const_data<int64_t>(label_ids) : nullptr, in.count);
  return solve("batched_nms", in, scores.scalar_type(), problems, options);
}

}  // namespace

// `method` is a number here because a string argument costs an allocation that the stable ABI of
// torch 2.10 never frees; the Python functions take words.
STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def("nms(Tensor segments, Tensor scores, float iou_threshold) -> Tensor");
  m.def(
      "soft_nms(Tensor segments, Tensor scores, int method, float sigma, float iou_threshold, "
      "float min_score, int? max_segments) -> (Tensor, Tensor)");
  m.def(
      "batched_nms(Tensor segments, Tensor scores, Tensor labels, Tensor? videos, int method, "
      "float iou_threshold, float sigma, float min_score, int? max_segments, bool per_class) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cpu));
}

}  // namespace tal_fast
