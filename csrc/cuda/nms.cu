// SPDX-License-Identifier: Apache-2.0
// nms, soft_nms, batched_nms and their forms of fixed size on a GPU.
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/nms_launch.h"
#include "ops/nms.h"

namespace tal_fast {
namespace {

// Solves in the type that is computed in, and returns what `outputs` makes of it. N > 0.
template <typename Outputs>
auto solved(const DeviceScope& scope, const NmsCall& call, Outputs&& outputs) {
  return dispatch_compute_type(call.in.segments.scalar_type(), [&](auto tag) {
    CudaNms<typename decltype(tag)::type> nms(scope, call);
    nms.solve();
    return outputs(nms);
  });
}

Tensor filled_numbers(const Tensor& like, const std::vector<int64_t>& sizes, double value) {
  Tensor tensor = empty_beside(like, sizes, ScalarType::Long);
  return torch::stable::fill_(tensor, value);
}

struct NmsOnCuda {
  static Tensor nms(const NmsCall& call) {
    const DeviceScope scope(call.segments);
    if (call.in.count == 0) {
      return allocate(call.segments, {0}, ScalarType::Long);
    }
    return solved(scope, call, [](auto& nms) { return std::get<0>(nms.exact_one(false)); });
  }

  static std::tuple<Tensor, Tensor> soft_nms(const NmsCall& call) {
    const DeviceScope scope(call.segments);
    if (call.in.count == 0) {
      return {allocate(call.segments, {0}, ScalarType::Long), allocate(call.scores, {0})};
    }
    auto [rows, scores] = solved(scope, call, [](auto& nms) { return nms.exact_one(true); });
    return {rows, to_type(scores, call.scores.scalar_type())};
  }

  static std::tuple<Tensor, Tensor, Tensor> batched_nms(const NmsCall& call) {
    const DeviceScope scope(call.segments);
    if (call.in.count == 0) {
      return {allocate(call.segments, {0}, ScalarType::Long), allocate(call.scores, {0}),
              allocate(call.segments, {0, 2})};
    }
    auto [rows, scores, refined] = solved(scope, call, [](auto& nms) { return nms.exact(); });
    const ScalarType type = call.scores.scalar_type();
    return {rows, to_type(scores, type), to_type(refined, type)};
  }

  // ---- fixed sizes: no wait for the GPU ---------------------------------------------------------

  static std::tuple<Tensor, Tensor> nms_padded(const NmsCall& call) {
    const DeviceScope scope(call.segments);
    if (call.in.count == 0) {
      return {filled_numbers(call.segments, {call.request.max_segments}, -1.0),
              filled_numbers(call.segments, {}, 0.0)};
    }
    auto [rows, unused, count] =
        solved(scope, call, [](auto& nms) { return nms.padded_one(false); });
    return {rows, count};
  }

  static std::tuple<Tensor, Tensor, Tensor> soft_nms_padded(const NmsCall& call) {
    const DeviceScope scope(call.segments);
    if (call.in.count == 0) {
      const int64_t size = call.request.max_segments;
      return {filled_numbers(call.segments, {size}, -1.0),
              torch::stable::new_zeros(call.scores, {size}),
              filled_numbers(call.segments, {}, 0.0)};
    }
    auto [rows, scores, count] =
        solved(scope, call, [](auto& nms) { return nms.padded_one(true); });
    return {rows, to_type(scores, call.scores.scalar_type()), count};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> batched_nms_padded(const NmsCall& call) {
    const DeviceScope scope(call.segments);
    if (call.in.count == 0) {
      const int64_t videos = *call.num_videos;
      const int64_t size = call.request.max_segments;
      return {filled_numbers(call.segments, {videos, size}, -1.0),
              torch::stable::new_zeros(call.scores, {videos, size}),
              torch::stable::new_zeros(call.segments, {videos, size, 2}),
              filled_numbers(call.segments, {videos}, 0.0)};
    }
    auto [rows, scores, segments, counts] =
        solved(scope, call, [](auto& nms) { return nms.padded(); });
    const ScalarType type = call.scores.scalar_type();
    return {rows, to_type(scores, type), to_type(segments, type), counts};
  }
};

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  register_nms<NmsOnCuda>(m);
}

}  // namespace tal_fast
