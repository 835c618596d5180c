// SPDX-License-Identifier: Apache-2.0
// What boundary_max_pool checks on every device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <limits>

#include "ops/tensor_checks.h"

namespace tal_fast {

inline void check_boundary_max_pool(const Tensor& features,  // [B, C, T]
                                    const Tensor& segments,  // [B, K, 4]
                                    bool afsd) {
  constexpr const char* kOp = "boundary_max_pool";
  TAL_FAST_CHECK(features.dim() == 3 && features.size(1) % 2 == 0, kOp,
                 ": expected features of shape [B, C, T] with an even C, got ",
                 shape_string(features));
  TAL_FAST_CHECK(
      segments.dim() == 3 && segments.size(0) == features.size(0) && segments.size(2) == 4, kOp,
      ": expected segments of shape [", features.size(0), ", K, 4], got ", shape_string(segments));
  const ScalarType type = segments.scalar_type();
  // A 16-bit position is off by whole rows.
  TAL_FAST_CHECK(type == ScalarType::Double || type == ScalarType::Float ||
                     type == ScalarType::Long || type == ScalarType::Int,
                 kOp, ": expected segments of dtype float32, float64, int32 or int64, got ",
                 dtype_string(type));
  const int64_t rows = features.size(2);
  const int64_t count = segments.size(1);
  TAL_FAST_CHECK(rows <= std::numeric_limits<int32_t>::max(), kOp,
                 ": expected features with at most 2^31 - 1 rows, got ", shape_string(features));
  TAL_FAST_CHECK(!afsd || count <= rows, kOp, ": expected at most T = ", rows,
                 " segments with compat='afsd', got ", count);
  TAL_FAST_CHECK(rows >= 1 || features.size(0) * features.size(1) * count == 0, kOp,
                 ": expected features with at least one row, got ", shape_string(features));
}

// Returns how many rows argmax counts in: T, or K for the historic gradient.
inline int64_t check_boundary_max_pool_gradient(const Tensor& grad,    // [B, C, K]
                                                const Tensor& argmax,  // [B, C, K]
                                                int64_t rows, bool afsd) {
  constexpr const char* kOp = "boundary_max_pool_backward";
  bool same = grad.dim() == 3 && argmax.dim() == 3;
  for (int64_t i = 0; same && i < 3; ++i) {
    same = grad.size(i) == argmax.size(i);
  }
  TAL_FAST_CHECK(same && argmax.scalar_type() == ScalarType::Int, kOp,
                 ": expected grad and argmax of one shape [B, C, K], the latter int32, got ",
                 shape_string(grad), " and ", shape_string(argmax), " ",
                 dtype_string(argmax.scalar_type()));
  const int64_t count = grad.size(2);
  TAL_FAST_CHECK(!afsd || count <= rows, kOp, ": expected at most T = ", rows,
                 " segments with compat='afsd', got ", count);
  return afsd ? count : rows;
}

}  // namespace tal_fast
