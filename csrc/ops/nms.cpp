// SPDX-License-Identifier: Apache-2.0
// nms, soft_nms and batched_nms: schema and CPU implementation over nms_solver.h. The checks that
// all devices share are in ops/nms.h, the CUDA implementation in cuda/nms.cu.
#include <torch/csrc/stable/library.h>

#include <cstddef>
#include <cstring>
#include <optional>
#include <tuple>

#include "ops/nms_solver.h"

namespace tal_fast {
namespace {

template <typename T>
std::tuple<Tensor, Tensor, Tensor> solve_in(const char* op, const Detections& in,
                                            ScalarType out_type, const cpu::NmsGroups& groups,
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
                                         const cpu::NmsGroups& groups, const NmsRequest& options,
                                         NmsWanted wanted) {
  return in.segments.scalar_type() == ScalarType::Double
             ? solve_in<double>(op, in, out_type, groups, options, wanted)
             : solve_in<float>(op, in, out_type, groups, options, wanted);
}

Tensor nms_cpu(const Tensor& segments, const Tensor& scores, double iou_threshold,
               bool acts_on_threshold, double length_eps, std::optional<int64_t> max_segments,
               bool validate) {
  const char* op = "nms";
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      hard_request(op, iou_threshold, acts_on_threshold, length_eps, max_segments, validate);
  return std::get<0>(solve(op, in, scores.scalar_type(),
                           cpu::split_into_problems(nullptr, nullptr, in.count), request,
                           {false, false}));
}

std::tuple<Tensor, Tensor> soft_nms_cpu(const Tensor& segments, const Tensor& scores,
                                        int64_t method, double sigma, double iou_threshold,
                                        double min_score, std::optional<int64_t> max_segments,
                                        bool acts_on_threshold, double length_eps, double t1,
                                        double t2, bool spare_first, bool validate) {
  const char* op = "soft_nms";
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      soft_request(op, method, sigma, iou_threshold, min_score, max_segments, acts_on_threshold,
                   length_eps, t1, t2, spare_first, validate);
  auto [indices, kept_scores, unused] =
      solve(op, in, scores.scalar_type(), cpu::split_into_problems(nullptr, nullptr, in.count),
            request, {true, false});
  return {indices, kept_scores};
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
  const NmsRequest request =
      batched_request(op, {method, iou_threshold, acts_on_threshold, length_eps, sigma, t1, t2,
                           min_score, max_segments, max_per_class, per_class, voting_threshold,
                           voting_weight, spare_first, validate});
  const GroupNumbers numbers = check_groups(op, labels, videos, per_class, in.count);
  const cpu::NmsGroups groups =
      cpu::split_into_problems(numbers.video_data(), numbers.label_data(), in.count);
  return solve(op, in, scores.scalar_type(), groups, request, {true, true});
}

// ---- outputs of a fixed size
// ---------------------------------------------------------------------

// Copies the first dimension of `from` into rows [begin, begin + K) of `to`.
void copy_rows(const Tensor& from, Tensor& to, int64_t begin) {
  Tensor rows = torch::stable::narrow(to, 0, begin, from.size(0));
  torch::stable::copy_(rows, from);
}

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& segments, const Tensor& scores,
                                          double iou_threshold, int64_t max_segments,
                                          bool acts_on_threshold, double length_eps,
                                          bool validate) {
  const char* op = "nms_padded";
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      hard_request(op, iou_threshold, acts_on_threshold, length_eps, max_segments, validate);
  const auto [indices, unused_scores, unused_segments] =
      solve(op, in, scores.scalar_type(), cpu::split_into_problems(nullptr, nullptr, in.count),
            request, {false, false});
  Tensor padded = torch::stable::new_empty(segments, {max_segments}, ScalarType::Long);
  torch::stable::fill_(padded, -1.0);
  copy_rows(indices, padded, 0);
  Tensor count = torch::stable::new_empty(segments, {}, ScalarType::Long);
  *mutable_data<int64_t>(count) = indices.size(0);
  return {padded, count};
}

std::tuple<Tensor, Tensor, Tensor> soft_nms_padded_cpu(const Tensor& segments, const Tensor& scores,
                                                       int64_t method, double sigma,
                                                       double iou_threshold, double min_score,
                                                       int64_t max_segments, bool acts_on_threshold,
                                                       double length_eps, double t1, double t2,
                                                       bool spare_first, bool validate) {
  const char* op = "soft_nms_padded";
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      soft_request(op, method, sigma, iou_threshold, min_score, max_segments, acts_on_threshold,
                   length_eps, t1, t2, spare_first, validate);
  const auto [indices, kept_scores, unused] =
      solve(op, in, scores.scalar_type(), cpu::split_into_problems(nullptr, nullptr, in.count),
            request, {true, false});
  Tensor padded = torch::stable::new_empty(segments, {max_segments}, ScalarType::Long);
  torch::stable::fill_(padded, -1.0);
  copy_rows(indices, padded, 0);
  Tensor padded_scores = torch::stable::new_zeros(scores, {max_segments});
  copy_rows(kept_scores, padded_scores, 0);
  Tensor count = torch::stable::new_empty(segments, {}, ScalarType::Long);
  *mutable_data<int64_t>(count) = indices.size(0);
  return {padded, padded_scores, count};
}

void check_video_numbers(const char* op, const int64_t* videos, int64_t n, int64_t num_videos) {
  for (int64_t i = 0; videos != nullptr && i < n; ++i) {
    TAL_FAST_CHECK(videos[i] >= 0 && videos[i] < num_videos, op,
                   ": expected videos in [0, num_videos) = [0, ", num_videos, "), got ", videos[i],
                   " in row ", i);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batched_nms_padded_cpu(
    const Tensor& segments, const Tensor& scores, const Tensor& labels,
    std::optional<Tensor> videos, int64_t num_videos, int64_t max_segments, int64_t method,
    double iou_threshold, bool acts_on_threshold, double length_eps, double sigma, double t1,
    double t2, double min_score, std::optional<int64_t> max_per_class, bool per_class,
    std::optional<double> voting_threshold, int64_t voting_weight, bool spare_first,
    bool validate) {
  const char* op = "batched_nms_padded";
  const Detections in = check_detections(op, segments, scores);
  check_num_videos(op, num_videos);
  const NmsRequest request =
      batched_request(op, {method, iou_threshold, acts_on_threshold, length_eps, sigma, t1, t2,
                           min_score, max_segments, max_per_class, per_class, voting_threshold,
                           voting_weight, spare_first, validate});
  const GroupNumbers numbers = check_groups(op, labels, videos, per_class, in.count);
  check_video_numbers(op, numbers.video_data(), in.count, num_videos);
  const auto [indices, kept_scores, refined] =
      solve(op, in, scores.scalar_type(),
            cpu::split_into_problems(numbers.video_data(), numbers.label_data(), in.count), request,
            {true, true});
  const bool voting = request.voting.has_value();
  Tensor padded = torch::stable::new_empty(segments, {num_videos, max_segments}, ScalarType::Long);
  torch::stable::fill_(padded, -1.0);
  Tensor padded_scores = torch::stable::new_zeros(scores, {num_videos, max_segments});
  Tensor padded_segments = torch::stable::new_zeros(segments, {num_videos, max_segments, 2});
  Tensor counts = torch::stable::new_zeros(segments, {num_videos}, ScalarType::Long);
  auto* out_rows = mutable_data<int64_t>(padded);
  auto* out_counts = mutable_data<int64_t>(counts);
  const auto* rows = const_data<int64_t>(indices);
  const int64_t* video = numbers.video_data();
  // Segments and scores are moved as they are, whatever their type.
  const Tensor plain = torch::stable::contiguous(segments);
  const auto score_bytes = static_cast<size_t>(scores.element_size());
  const auto* score_from = static_cast<const std::byte*>(kept_scores.const_data_ptr());
  const auto* segment_from =
      static_cast<const std::byte*>((voting ? refined : plain).const_data_ptr());
  auto* score_to = static_cast<std::byte*>(padded_scores.mutable_data_ptr());
  auto* segment_to = static_cast<std::byte*>(padded_segments.mutable_data_ptr());
  for (int64_t k = 0; k < indices.size(0); ++k) {
    const int64_t v = video == nullptr ? 0 : video[rows[k]];
    const auto to = static_cast<size_t>(v * max_segments + out_counts[v]++);
    out_rows[to] = rows[k];
    std::memcpy(score_to + to * score_bytes, score_from + static_cast<size_t>(k) * score_bytes,
                score_bytes);
    std::memcpy(segment_to + to * 2 * score_bytes,
                segment_from + static_cast<size_t>(voting ? k : rows[k]) * 2 * score_bytes,
                2 * score_bytes);
  }
  return {padded, padded_scores, padded_segments, counts};
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
  // The same with outputs whose size the arguments tell, for a GPU that nobody waits for.
  m.def(
      "nms_padded(Tensor segments, Tensor scores, float iou_threshold, int max_segments, "
      "bool acts_on_threshold=False, float length_eps=0.0, bool validate=True) -> "
      "(Tensor, Tensor)");
  m.def(
      "soft_nms_padded(Tensor segments, Tensor scores, int method, float sigma, "
      "float iou_threshold, float min_score, int max_segments, bool acts_on_threshold=False, "
      "float length_eps=0.0, float t1=0.0, float t2=0.0, bool spare_first=False, "
      "bool validate=True) -> (Tensor, Tensor, Tensor)");
  m.def(
      "batched_nms_padded(Tensor segments, Tensor scores, Tensor labels, Tensor? videos, "
      "int num_videos, int max_segments, int method, float iou_threshold, bool acts_on_threshold, "
      "float length_eps, float sigma, float t1, float t2, float min_score, int? max_per_class, "
      "bool per_class, float? voting_threshold, int voting_weight, bool spare_first, "
      "bool validate) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms_cpu));
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cpu));
  m.impl("nms_padded", TORCH_BOX(&nms_padded_cpu));
  m.impl("soft_nms_padded", TORCH_BOX(&soft_nms_padded_cpu));
  m.impl("batched_nms_padded", TORCH_BOX(&batched_nms_padded_cpu));
}

}  // namespace tal_fast
