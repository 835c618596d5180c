// SPDX-License-Identifier: Apache-2.0
// soft_nms_literal: schema and CPU implementation. There is no CUDA kernel: its bits are those of
// the C library's exponential, which no GPU has.
#include "cpu/soft_nms_literal.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cpu/scratch.h"
#include "ops/nms.h"

namespace tal_fast {
namespace {

constexpr const char* kOp = "soft_nms_literal";

// Rows as they were picked, and start, end and score of each.
std::tuple<Tensor, Tensor> soft_nms_literal_cpu(const Tensor& segments_in,  // [N, 2]
                                                const Tensor& scores_in,    // [N]
                                                int64_t method, double sigma, double iou_threshold,
                                                double min_score, double length_eps, double t1,
                                                double t2) {
  const Detections in = check_detections(kOp, segments_in, scores_in);
  TAL_FAST_CHECK(segments_in.scalar_type() == ScalarType::Float, kOp,
                 ": expected segments of dtype float32, got ",
                 dtype_string(segments_in.scalar_type()));
  const NmsOptions<float> options = in_compute_type<float>({.method = check_method(kOp, method),
                                                            .iou_threshold = iou_threshold,
                                                            .length_eps = length_eps,
                                                            .sigma = sigma,
                                                            .t1 = t1,
                                                            .t2 = t2,
                                                            .min_score = min_score});
  Tensor rows = empty_beside(in.segments, {in.count}, ScalarType::Long);
  Tensor found = empty_beside(in.segments, {in.count, 3});
  const cpu::Scratch scratch(TAL_FAST_ISA_CALL(soft_nms_literal_scratch_bytes)(in.count));
  const int64_t kept = TAL_FAST_ISA_CALL(soft_nms_literal)(
      const_data<float>(in.segments), const_data<float>(in.scores), in.count, options,
      scratch.get(), mutable_data<int64_t>(rows), mutable_data<float>(found));
  return {torch::stable::narrow(rows, 0, 0, kept), torch::stable::narrow(found, 0, 0, kept)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "soft_nms_literal(Tensor segments, Tensor scores, int method, float sigma, "
      "float iou_threshold, float min_score, float length_eps, float t1, float t2) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("soft_nms_literal", TORCH_BOX(&soft_nms_literal_cpu));
}

}  // namespace tal_fast
