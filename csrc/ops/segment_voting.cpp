// SPDX-License-Identifier: Apache-2.0
// segment_voting: schema and CPU implementation. The checks that all devices share are in
// ops/detections.h, the CUDA implementation in cuda/segment_voting.cu.
#include "cpu/segment_voting.h"

#include <torch/csrc/stable/library.h>

#include "cpu/scratch.h"
#include "ops/detections.h"

namespace tal_fast {
namespace {

// Kept segments per task: about 50 us of work where each has some hundred voters near it.
constexpr int64_t kKeptPerTask = 256;

template <typename T>
Tensor vote(const Detections& in, const Tensor& kept, const VotingOptions& options) {
  const char* op = "segment_voting";
  const T* kept_data = const_data<T>(kept);
  const T* segments = const_data<T>(in.segments);
  const T* scores = const_data<T>(in.scores);
  check_values(op, "kept_segments", kept_data, kept.size(0));
  check_values(op, "segments", segments, in.count);
  check_finite_scores(op, scores, in.count);
  Tensor out = empty_beside(kept, {kept.size(0), 2});
  T* out_data = mutable_data<T>(out);
  const cpu::Scratch scratch(TAL_FAST_ISA_CALL(voting_scratch_bytes<T>)(in.count));
  TAL_FAST_ISA_CALL(voting_prepare<T>)(segments, scores, nullptr, in.count, scratch.get());
  torch::stable::parallel_for(0, kept.size(0), kKeptPerTask, [&](int64_t begin, int64_t end) {
    TAL_FAST_ISA_CALL(voting_apply<T>)(in.count, scratch.get(), options, kept_data, begin, end,
                                       out_data);
  });
  return out;
}

Tensor segment_voting_cpu(const Tensor& kept_segments, const Tensor& segments, const Tensor& scores,
                          double iou_threshold, int64_t weight) {
  const char* op = "segment_voting";
  const Detections in = check_detections(op, segments, scores);
  const Tensor kept = check_kept(op, kept_segments, segments);
  const VotingOptions options = check_voting(op, "iou_threshold", iou_threshold, weight);
  const Tensor out = dispatch_compute_type(kept.scalar_type(), [&](auto tag) {
    return vote<typename decltype(tag)::type>(in, kept, options);
  });
  return to_type(out, segments.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "segment_voting(Tensor kept_segments, Tensor segments, Tensor scores, float iou_threshold, "
      "int weight) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("segment_voting", TORCH_BOX(&segment_voting_cpu));
}

}  // namespace tal_fast
