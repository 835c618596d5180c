// SPDX-License-Identifier: Apache-2.0
// What matching_cost checks on every device, and how it reads its arguments.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "math/matching_cost.h"
#include "ops/tensor_checks.h"

namespace tal_fast {

struct MatchingShape {
  int64_t layers, videos, queries, classes, instances;
};

inline void check_matching_float(const Tensor& tensor, const char* name) {
  TAL_FAST_CHECK(is_float(tensor.scalar_type()), "matching_cost: expected ", name,
                 " of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(tensor.scalar_type()));
}

inline MatchingShape check_matching_cost(const Tensor& logits, const Tensor& segments,
                                         const Tensor& labels, const Tensor& targets,
                                         const std::vector<int64_t>& counts) {
  const int64_t dim = logits.dim();
  TAL_FAST_CHECK(dim == 3 || dim == 4,
                 "matching_cost: expected logits of shape [K, B, Q, C] or [B, Q, C], got ",
                 shape_string(logits));
  bool fits = segments.dim() == dim && segments.size(dim - 1) == 2;
  for (int64_t d = 0; fits && d < dim - 1; ++d) {
    fits = segments.size(d) == logits.size(d);
  }
  TAL_FAST_CHECK(fits, "matching_cost: expected segments of the shape of logits with a last ",
                 "dimension of 2, got ", shape_string(segments), " and logits ",
                 shape_string(logits));
  TAL_FAST_CHECK(labels.dim() == 1, "matching_cost: expected labels of shape [M], got ",
                 shape_string(labels));
  TAL_FAST_CHECK(labels.scalar_type() == ScalarType::Long,
                 "matching_cost: expected labels of dtype int64, got ",
                 dtype_string(labels.scalar_type()));
  const int64_t instances = labels.size(0);
  TAL_FAST_CHECK(targets.dim() == 2 && targets.size(0) == instances && targets.size(1) == 2,
                 "matching_cost: expected targets of shape [", instances,
                 ", 2], one per label, got ", shape_string(targets));
  check_matching_float(logits, "logits");
  check_matching_float(segments, "segments");
  check_matching_float(targets, "targets");
  const bool wide = logits.scalar_type() == ScalarType::Double;
  TAL_FAST_CHECK(wide == (segments.scalar_type() == ScalarType::Double) &&
                     wide == (targets.scalar_type() == ScalarType::Double),
                 "matching_cost: expected logits, segments and targets all float64 or none, got ",
                 dtype_string(logits.scalar_type()), ", ", dtype_string(segments.scalar_type()),
                 " and ", dtype_string(targets.scalar_type()));
  const int64_t videos = logits.size(dim - 3);
  TAL_FAST_CHECK(static_cast<int64_t>(counts.size()) == videos, "matching_cost: expected ", videos,
                 " counts, one per video, got ", counts.size());
  int64_t sum = 0;
  for (const int64_t count : counts) {
    TAL_FAST_CHECK(count >= 0, "matching_cost: expected counts >= 0, got ", count);
    sum += count;
  }
  TAL_FAST_CHECK(sum == instances, "matching_cost: expected counts that sum to the ", instances,
                 " labels, got a sum of ", sum);
  return {dim == 4 ? logits.size(0) : 1, videos, logits.size(dim - 2), logits.size(dim - 1),
          instances};
}

inline void check_matching_settings(double alpha, double gamma, double eps) {
  TAL_FAST_CHECK(alpha >= 0 && alpha <= 1, "matching_cost: expected alpha in [0, 1], got ", alpha);
  TAL_FAST_CHECK(gamma >= 0 && std::isfinite(gamma), "matching_cost: expected gamma >= 0, got ",
                 gamma);
  TAL_FAST_CHECK(eps >= 0, "matching_cost: expected eps >= 0, got ", eps);
}

template <typename T>
MatchingWeights<T> matching_weights(double classification, double l1, double iou, double alpha,
                                    double gamma, double eps) {
  return {static_cast<T>(classification), static_cast<T>(l1),    static_cast<T>(iou),
          static_cast<T>(alpha),          static_cast<T>(gamma), static_cast<T>(eps)};
}

}  // namespace tal_fast
