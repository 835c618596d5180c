// SPDX-License-Identifier: Apache-2.0
// What local_attn checks on every device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "math/local_attn.h"
#include "ops/tensor_checks.h"

namespace tal_fast {

inline void check_local_attn(const char* op, const Tensor& query, const Tensor& key,
                             const Tensor& value, int64_t window,
                             const std::optional<Tensor>& mask) {
  TAL_FAST_CHECK(query.dim() == 4, op, ": expected query of shape [B, T, H, D], got ",
                 shape_string(query));
  TAL_FAST_CHECK(is_float(query.scalar_type()), op,
                 ": expected query of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(query.scalar_type()));
  const auto check_like_query = [&](const char* name, const Tensor& tensor) {
    bool same = tensor.dim() == 4;
    for (int64_t i = 0; same && i < 4; ++i) {
      same = tensor.size(i) == query.size(i);
    }
    TAL_FAST_CHECK(same, op, ": expected ", name, " of the shape of query ", shape_string(query),
                   ", got ", shape_string(tensor));
    TAL_FAST_CHECK(tensor.scalar_type() == query.scalar_type(), op, ": expected ", name,
                   " of the dtype of query, ", dtype_string(query.scalar_type()), ", got ",
                   dtype_string(tensor.scalar_type()));
  };
  check_like_query("key", key);
  check_like_query("value", value);
  TAL_FAST_CHECK(window >= 1, op, ": expected window >= 1, got ", window);
  if (mask) {
    TAL_FAST_CHECK(
        mask->dim() == 2 && mask->size(0) == query.size(0) && mask->size(1) == query.size(1), op,
        ": expected mask of shape [B, T] = [", query.size(0), ", ", query.size(1), "], got ",
        shape_string(*mask));
    TAL_FAST_CHECK(mask->scalar_type() == ScalarType::Bool, op,
                   ": expected mask of dtype bool, got ", dtype_string(mask->scalar_type()));
  }
}

inline void check_local_attn_gradient(const Tensor& grad, const Tensor& query) {
  bool same = grad.dim() == 4 && grad.scalar_type() == query.scalar_type();
  for (int64_t i = 0; same && i < 4; ++i) {
    same = grad.size(i) == query.size(i);
  }
  TAL_FAST_CHECK(same,
                 "local_attn_backward: expected grad of the shape and dtype of the output, got ",
                 shape_string(grad), " ", dtype_string(grad.scalar_type()));
}

// A window that is wider than the video sees all of it.
inline LocalAttnShape local_attn_shape(const Tensor& query, int64_t window) {
  const int64_t half = std::min(window / 2, std::max<int64_t>(query.size(1) - 1, 0));
  return {query.size(0), query.size(1), query.size(2), query.size(3), half};
}

// The weights that a forward on a CPU kept.
inline void check_local_attn_weights(const Tensor& weights, const Tensor& query,
                                     const LocalAttnShape& shape) {
  TAL_FAST_CHECK(
      weights.dim() == 4 && weights.size(0) == shape.batch && weights.size(1) == shape.rows &&
          weights.size(2) == shape.heads && weights.size(3) == shape.window(),
      "local_attn_backward: expected weights of shape [B, T, H, W] = [", shape.batch, ", ",
      shape.rows, ", ", shape.heads, ", ", shape.window(), "], got ", shape_string(weights));
  TAL_FAST_CHECK(weights.scalar_type() == compute_type(query.scalar_type()),
                 "local_attn_backward: expected weights of dtype ",
                 dtype_string(compute_type(query.scalar_type())), ", got ",
                 dtype_string(weights.scalar_type()));
}

// The mask as the kernels read it.
class LocalAttnPadding {
 public:
  explicit LocalAttnPadding(const std::optional<Tensor>& mask) {
    if (mask) {
      mask_ = as_contiguous(*mask);
    }
  }
  const bool* data() const { return mask_ ? const_data<bool>(*mask_) : nullptr; }

 private:
  std::optional<Tensor> mask_;
};

template <typename T>
LocalAttnInput<T> local_attn_input(const Tensor& tensor) {
  return {const_data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

}  // namespace tal_fast
