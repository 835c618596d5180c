// SPDX-License-Identifier: Apache-2.0
#include "cuda/matching_cost.cuh"

#include <algorithm>
#include <vector>

#include "cuda/launch.h"
#include "ops/matching_cost.h"

namespace tal_fast {
namespace {

constexpr int64_t kMostLayersOfBlocks = 65535;  // the limit of gridDim.z

template <Exponent exponent, typename T>
void launch_all(const DeviceScope& scope, const Tensor& logits, const Tensor& segments,
                const Tensor& labels, const Tensor& targets, const std::vector<int64_t>& counts,
                const MatchingShape& shape, const MatchingWeights<T>& weights, T* out) {
  using Kernel = MatchingCost<exponent, T>;
  Kernel kernel{const_data<T>(logits),
                const_data<T>(segments),
                const_data<int64_t>(labels),
                const_data<T>(targets),
                shape.layers,
                shape.videos,
                shape.queries,
                shape.classes,
                shape.instances,
                weights,
                out,
                0,
                {}};
  const auto query_blocks = static_cast<unsigned>(ceil_div(shape.queries, Kernel::kQueries));
  const auto layer_blocks = static_cast<unsigned>(std::min(shape.layers, kMostLayersOfBlocks));
  int64_t next = 0;
  for (int64_t first = 0; first < shape.videos; first += Kernel::kVideos) {
    const int64_t num_videos = std::min<int64_t>(Kernel::kVideos, shape.videos - first);
    kernel.first_video = first;
    kernel.first_instance[0] = next;
    for (int64_t v = 0; v < num_videos; ++v) {
      next += counts[first + v];
      kernel.first_instance[v + 1] = next;
    }
    if (kernel.first_instance[0] < next) {
      launch(scope, dim3(query_blocks, static_cast<unsigned>(num_videos), layer_blocks),
             Kernel::kThreads, 0, kernel);
    }
  }
}

Tensor matching_cost_cuda(const Tensor& logits_in,    // [K, B, Q, C] or [B, Q, C]
                          const Tensor& segments_in,  // [K, B, Q, 2] or [B, Q, 2] (centre, width)
                          const Tensor& labels_in,    // [M]
                          const Tensor& targets_in,   // [M, 2] (centre, width)
                          const std::vector<int64_t>& counts,  // [B]
                          double classification, double l1, double iou, double alpha, double gamma,
                          double eps) {
  const MatchingShape shape =
      check_matching_cost(logits_in, segments_in, labels_in, targets_in, counts);
  check_matching_settings(alpha, gamma, eps);
  const DeviceScope scope(logits_in);
  const ScalarType type = compute_type(logits_in.scalar_type());
  const Tensor logits = to_compute_type(logits_in);
  const Tensor segments = to_compute_type(segments_in);
  const Tensor targets = to_compute_type(targets_in);
  const Tensor labels = as_contiguous(labels_in);
  const Tensor out = allocate(logits, {shape.layers * shape.queries * shape.instances}, type);
  if (out.numel() == 0) {
    return out;
  }
  dispatch_compute_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto weights = matching_weights<T>(classification, l1, iou, alpha, gamma, eps);
    const auto launch_with =
        weights.gamma == T(2) ? &launch_all<Exponent::kTwo, T> : &launch_all<Exponent::kAny, T>;
    launch_with(scope, logits, segments, labels, targets, counts, shape, weights,
                mutable_data<T>(out));
  });
  return out;
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("matching_cost", TORCH_BOX(&matching_cost_cuda));
}

}  // namespace tal_fast
