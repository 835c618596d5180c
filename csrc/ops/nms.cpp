// SPDX-License-Identifier: Apache-2.0
// nms, soft_nms and batched_nms: schema and CPU implementation over nms_cpu.h. Arguments and checks
// that all devices share are in ops/nms.h, the CUDA implementation in cuda/nms.cu.
#include <torch/csrc/stable/library.h>

#include <cstddef>
#include <cstring>
#include <optional>
#include <tuple>

#include "ops/nms.h"
#include "ops/nms_cpu.h"

namespace tal_fast {
namespace {

using Kept = std::tuple<Tensor, Tensor, Tensor>;  // rows, scores, segments

Kept solve(const NmsCall& call, NmsWanted wanted) {
  const Detections& in = call.in;
  const cpu::NmsGroups groups =
      cpu::split_into_problems(call.groups.video_data(), call.groups.label_data(), in.count);
  return dispatch_compute_type(in.segments.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (call.request.validate) {
      check_values(call.op, "segments", const_data<T>(in.segments), in.count);
    }
    check_ranks(call.op, const_data<T>(in.scores), in.count);
    if (call.request.voting.has_value()) {
      check_finite_scores(call.op, const_data<T>(in.scores), in.count);
    }
    NmsSolver<T> solver(in, groups, call.request);
    solver.solve();
    return solver.result(in, call.scores.scalar_type(), wanted);
  });
}

// Copies the first dimension of `from` into the first rows of `to`.
void copy_rows(const Tensor& from, Tensor& to) {
  Tensor rows = torch::stable::narrow(to, 0, 0, from.size(0));
  torch::stable::copy_(rows, from);
}

// The rows, -1 behind them, and how many there are.
std::tuple<Tensor, Tensor> pad_rows(const Tensor& rows, int64_t size) {
  Tensor padded = empty_beside(rows, {size});
  torch::stable::fill_(padded, -1.0);
  copy_rows(rows, padded);
  Tensor count = empty_beside(rows, {});
  *mutable_data<int64_t>(count) = rows.size(0);
  return {padded, count};
}

void check_video_numbers(const char* op, const int64_t* videos, int64_t n, int64_t num_videos) {
  for (int64_t i = 0; videos != nullptr && i < n; ++i) {
    TAL_FAST_CHECK(videos[i] >= 0 && videos[i] < num_videos, op,
                   ": expected videos in [0, num_videos) = [0, ", num_videos, "), got ", videos[i],
                   " in row ", i);
  }
}

struct NmsOnCpu {
  static Tensor nms(const NmsCall& call) {
    return std::get<0>(solve(call, {.scores = false, .segments = false}));
  }

  static std::tuple<Tensor, Tensor> soft_nms(const NmsCall& call) {
    auto [rows, scores, unused] = solve(call, {.scores = true, .segments = false});
    return {rows, scores};
  }

  static Kept batched_nms(const NmsCall& call) {
    return solve(call, {.scores = true, .segments = true});
  }

  // The same with outputs whose size the arguments tell.
  static std::tuple<Tensor, Tensor> nms_padded(const NmsCall& call) {
    return pad_rows(nms(call), call.request.max_segments);
  }

  static std::tuple<Tensor, Tensor, Tensor> soft_nms_padded(const NmsCall& call) {
    const auto [rows, scores] = soft_nms(call);
    const auto [padded, count] = pad_rows(rows, call.request.max_segments);
    Tensor padded_scores = torch::stable::new_zeros(call.scores, {call.request.max_segments});
    copy_rows(scores, padded_scores);
    return {padded, padded_scores, count};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> batched_nms_padded(const NmsCall& call) {
    const int64_t num_videos = *call.num_videos;
    const int64_t max_segments = call.request.max_segments;
    const bool voting = call.request.voting.has_value();
    check_video_numbers(call.op, call.groups.video_data(), call.in.count, num_videos);
    const auto [rows, kept_scores, refined] = batched_nms(call);
    Tensor padded = empty_beside(rows, {num_videos, max_segments});
    torch::stable::fill_(padded, -1.0);
    Tensor padded_scores = torch::stable::new_zeros(call.scores, {num_videos, max_segments});
    Tensor padded_segments = torch::stable::new_zeros(call.segments, {num_videos, max_segments, 2});
    Tensor counts = torch::stable::new_zeros(call.segments, {num_videos}, ScalarType::Long);
    auto* out_rows = mutable_data<int64_t>(padded);
    auto* out_counts = mutable_data<int64_t>(counts);
    const auto* from = const_data<int64_t>(rows);
    const int64_t* video = call.groups.video_data();
    // Segments and scores are moved as they are, whatever their type.
    const Tensor plain = as_contiguous(call.segments);
    const auto score_bytes = static_cast<size_t>(call.scores.element_size());
    const auto* score_from = static_cast<const std::byte*>(kept_scores.const_data_ptr());
    const auto* segment_from =
        static_cast<const std::byte*>((voting ? refined : plain).const_data_ptr());
    auto* score_to = static_cast<std::byte*>(padded_scores.mutable_data_ptr());
    auto* segment_to = static_cast<std::byte*>(padded_segments.mutable_data_ptr());
    for (int64_t k = 0; k < rows.size(0); ++k) {
      const int64_t v = video == nullptr ? 0 : video[from[k]];
      const auto to = static_cast<size_t>(v * max_segments + out_counts[v]++);
      out_rows[to] = from[k];
      std::memcpy(score_to + to * score_bytes, score_from + static_cast<size_t>(k) * score_bytes,
                  score_bytes);
      std::memcpy(segment_to + to * 2 * score_bytes,
                  segment_from + static_cast<size_t>(voting ? k : from[k]) * 2 * score_bytes,
                  2 * score_bytes);
    }
    return {padded, padded_scores, padded_segments, counts};
  }
};

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
  register_nms<NmsOnCpu>(m);
}

}  // namespace tal_fast
