// SPDX-License-Identifier: Apache-2.0
// segment_voting on a GPU. Values are not checked: that would take waiting for the GPU.
#include "cuda/segment_voting.h"

#include "ops/detections.h"

namespace tal_fast {
namespace {

Tensor segment_voting_cuda(const Tensor& kept_segments, const Tensor& segments,
                           const Tensor& scores, double iou_threshold, int64_t weight) {
  const char* op = "segment_voting";
  const DeviceScope scope(segments);
  const Detections in = check_detections(op, segments, scores);
  const Tensor kept = check_kept(op, kept_segments, segments);
  const VotingOptions options = check_voting(op, "iou_threshold", iou_threshold, weight);
  const int64_t count = kept.size(0);
  const Tensor out = allocate(kept, {count, 2});
  dispatch_compute_type(kept.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    cast_votes<T>(
        scope, {const_data<T>(in.segments), const_data<T>(in.scores), in.count, nullptr, nullptr},
        options, const_data<T>(kept), nullptr, count, out);
  });
  return to_type(out, segments.scalar_type());
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("segment_voting", TORCH_BOX(&segment_voting_cuda));
}

}  // namespace tal_fast
