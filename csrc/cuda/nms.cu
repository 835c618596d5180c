// SPDX-License-Identifier: Apache-2.0
// nms, soft_nms, batched_nms and their forms of fixed size on a GPU.
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/nms_solver.h"

namespace tal_fast {
namespace {

Tensor to_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// Solves in the type that is computed in, and returns what `outputs` makes of it. N > 0.
template <typename Outputs>
auto solved(const char* op, const DeviceScope& scope, const Detections& in,
            const GroupNumbers& numbers, const NmsRequest& request,
            std::optional<int64_t> num_videos, Outputs&& outputs) {
  const auto run = [&](auto tag) {
    CudaNms<typename decltype(tag)::type> nms(op, scope, in, numbers, request, num_videos);
    nms.solve();
    return outputs(nms);
  };
  return in.segments.scalar_type() == ScalarType::Double ? run(TypeTag<double>{})
                                                         : run(TypeTag<float>{});
}

Tensor filled_numbers(const Tensor& like, const std::vector<int64_t>& sizes, double value) {
  Tensor tensor = torch::stable::new_empty(like, sizes, ScalarType::Long);
  return torch::stable::fill_(tensor, value);
}

// ---- exact sizes --------------------------------------------------------------------------------

Tensor nms_cuda(const Tensor& segments, const Tensor& scores, double iou_threshold,
                bool acts_on_threshold, double length_eps, std::optional<int64_t> max_segments,
                bool validate) {
  const char* op = "nms";
  const DeviceScope scope(segments);
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      hard_request(op, iou_threshold, acts_on_threshold, length_eps, max_segments, validate);
  if (in.count == 0) {
    return allocate(segments, {0}, ScalarType::Long);
  }
  return solved(op, scope, in, GroupNumbers(), request, std::nullopt,
                [](auto& nms) { return std::get<0>(nms.exact_one(false)); });
}

std::tuple<Tensor, Tensor> soft_nms_cuda(const Tensor& segments, const Tensor& scores,
                                         int64_t method, double sigma, double iou_threshold,
                                         double min_score, std::optional<int64_t> max_segments,
                                         bool acts_on_threshold, double length_eps, double t1,
                                         double t2, bool spare_first, bool validate) {
  const char* op = "soft_nms";
  const DeviceScope scope(segments);
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      soft_request(op, method, sigma, iou_threshold, min_score, max_segments, acts_on_threshold,
                   length_eps, t1, t2, spare_first, validate);
  if (in.count == 0) {
    return {allocate(segments, {0}, ScalarType::Long), allocate(scores, {0})};
  }
  auto [rows, kept_scores] = solved(op, scope, in, GroupNumbers(), request, std::nullopt,
                                    [](auto& nms) { return nms.exact_one(true); });
  return {rows, to_type(kept_scores, scores.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> batched_nms_cuda(
    const Tensor& segments, const Tensor& scores, const Tensor& labels,
    std::optional<Tensor> videos, int64_t method, double iou_threshold, bool acts_on_threshold,
    double length_eps, double sigma, double t1, double t2, double min_score,
    std::optional<int64_t> max_segments, std::optional<int64_t> max_per_class, bool per_class,
    std::optional<double> voting_threshold, int64_t voting_weight, bool spare_first,
    bool validate) {
  const char* op = "batched_nms";
  const DeviceScope scope(segments);
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      batched_request(op, {method, iou_threshold, acts_on_threshold, length_eps, sigma, t1, t2,
                           min_score, max_segments, max_per_class, per_class, voting_threshold,
                           voting_weight, spare_first, validate});
  const GroupNumbers numbers = check_groups(op, labels, videos, per_class, in.count);
  if (in.count == 0) {
    return {allocate(segments, {0}, ScalarType::Long), allocate(scores, {0}),
            allocate(segments, {0, 2})};
  }
  auto [rows, kept_scores, refined] =
      solved(op, scope, in, numbers, request, std::nullopt, [](auto& nms) { return nms.exact(); });
  return {rows, to_type(kept_scores, scores.scalar_type()), to_type(refined, scores.scalar_type())};
}

// ---- fixed sizes: no wait for the GPU -----------------------------------------------------------

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& segments, const Tensor& scores,
                                           double iou_threshold, int64_t max_segments,
                                           bool acts_on_threshold, double length_eps,
                                           bool validate) {
  const char* op = "nms_padded";
  const DeviceScope scope(segments);
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      hard_request(op, iou_threshold, acts_on_threshold, length_eps, max_segments, validate);
  if (in.count == 0) {
    return {filled_numbers(segments, {max_segments}, -1.0), filled_numbers(segments, {}, 0.0)};
  }
  auto [rows, unused, count] = solved(op, scope, in, GroupNumbers(), request, std::nullopt,
                                      [](auto& nms) { return nms.padded_one(false); });
  return {rows, count};
}

std::tuple<Tensor, Tensor, Tensor> soft_nms_padded_cuda(
    const Tensor& segments, const Tensor& scores, int64_t method, double sigma,
    double iou_threshold, double min_score, int64_t max_segments, bool acts_on_threshold,
    double length_eps, double t1, double t2, bool spare_first, bool validate) {
  const char* op = "soft_nms_padded";
  const DeviceScope scope(segments);
  const Detections in = check_detections(op, segments, scores);
  const NmsRequest request =
      soft_request(op, method, sigma, iou_threshold, min_score, max_segments, acts_on_threshold,
                   length_eps, t1, t2, spare_first, validate);
  if (in.count == 0) {
    return {filled_numbers(segments, {max_segments}, -1.0),
            torch::stable::new_zeros(scores, {max_segments}), filled_numbers(segments, {}, 0.0)};
  }
  auto [rows, kept_scores, count] = solved(op, scope, in, GroupNumbers(), request, std::nullopt,
                                           [](auto& nms) { return nms.padded_one(true); });
  return {rows, to_type(kept_scores, scores.scalar_type()), count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batched_nms_padded_cuda(
    const Tensor& segments, const Tensor& scores, const Tensor& labels,
    std::optional<Tensor> videos, int64_t num_videos, int64_t max_segments, int64_t method,
    double iou_threshold, bool acts_on_threshold, double length_eps, double sigma, double t1,
    double t2, double min_score, std::optional<int64_t> max_per_class, bool per_class,
    std::optional<double> voting_threshold, int64_t voting_weight, bool spare_first,
    bool validate) {
  const char* op = "batched_nms_padded";
  const DeviceScope scope(segments);
  const Detections in = check_detections(op, segments, scores);
  check_num_videos(op, num_videos);
  const NmsRequest request =
      batched_request(op, {method, iou_threshold, acts_on_threshold, length_eps, sigma, t1, t2,
                           min_score, max_segments, max_per_class, per_class, voting_threshold,
                           voting_weight, spare_first, validate});
  const GroupNumbers numbers = check_groups(op, labels, videos, per_class, in.count);
  if (in.count == 0) {
    return {filled_numbers(segments, {num_videos, max_segments}, -1.0),
            torch::stable::new_zeros(scores, {num_videos, max_segments}),
            torch::stable::new_zeros(segments, {num_videos, max_segments, 2}),
            filled_numbers(segments, {num_videos}, 0.0)};
  }
  auto [rows, kept_scores, kept_segments, counts] =
      solved(op, scope, in, numbers, request, num_videos, [](auto& nms) { return nms.padded(); });
  return {rows, to_type(kept_scores, scores.scalar_type()),
          to_type(kept_segments, scores.scalar_type()), counts};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("nms", TORCH_BOX(&nms_cuda));
  m.impl("soft_nms", TORCH_BOX(&soft_nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&batched_nms_cuda));
  m.impl("nms_padded", TORCH_BOX(&nms_padded_cuda));
  m.impl("soft_nms_padded", TORCH_BOX(&soft_nms_padded_cuda));
  m.impl("batched_nms_padded", TORCH_BOX(&batched_nms_padded_cuda));
}

}  // namespace tal_fast
