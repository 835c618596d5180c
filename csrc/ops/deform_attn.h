// SPDX-License-Identifier: Apache-2.0
// What deform_attn checks on every device, and deform_attn_fused with it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

#include "math/deform_attn.h"
#include "ops/tensor_checks.h"

namespace tal_fast {

// Level lengths must be exact in float32 and row numbers fit 32 bits.
constexpr int64_t kLongestLevel = int64_t{1} << 24;

inline std::string list_string(const std::vector<int64_t>& values) {
  std::string text = "(";
  for (size_t i = 0; i < values.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  }
  return text + ")";
}

// Contiguous and of the type that the kernel computes in; no copy when it is both already.
inline Tensor prepare(const Tensor& tensor, ScalarType type) {
  return as_contiguous(to_type(tensor, type));
}

inline void check_value(const char* op, const Tensor& value,
                        const std::vector<int64_t>& level_lengths) {
  TAL_FAST_CHECK(value.dim() == 4, op, ": expected value of shape [B, S, H, D], got ",
                 shape_string(value));
  TAL_FAST_CHECK(is_float(value.scalar_type()), op,
                 ": expected value of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(value.scalar_type()));
  int64_t sum = 0;
  for (const int64_t length : level_lengths) {
    TAL_FAST_CHECK(length > 0 && length <= kLongestLevel, op,
                   ": expected level_lengths between 1 and 2^24, got ", list_string(level_lengths));
    sum += length;
  }
  TAL_FAST_CHECK(!level_lengths.empty() && sum == value.size(1), op,
                 ": expected level_lengths that sum to value.shape[1] = ", value.size(1), ", got ",
                 list_string(level_lengths));
}

// `name` is for the error message.
inline void check_output_gradient(const char* name, const Tensor& grad, const Tensor& value,
                                  const DeformAttnShape& shape) {
  TAL_FAST_CHECK(grad.dim() == 3 && grad.size(0) == shape.batch && grad.size(1) == shape.queries &&
                     grad.size(2) == shape.heads * shape.channels &&
                     grad.scalar_type() == value.scalar_type(),
                 name, ": expected grad of the shape and dtype of the output, got ",
                 shape_string(grad), " ", dtype_string(grad.scalar_type()));
}

inline void check_samples(const Tensor& value, const Tensor& samples, size_t levels,
                          const char* name) {
  TAL_FAST_CHECK(
      samples.dim() == 5 && samples.size(0) == value.size(0) && samples.size(2) == value.size(2) &&
          samples.size(3) == static_cast<int64_t>(levels),
      "deform_attn: expected ", name, " of shape [B, Q, H, L, P] with B = ", value.size(0),
      ", H = ", value.size(2), " and L = ", levels, ", got ", shape_string(samples));
}

inline void check_deform_attn(const Tensor& value, const std::vector<int64_t>& level_lengths,
                              const Tensor& locations, const Tensor& weights) {
  check_value("deform_attn", value, level_lengths);
  check_samples(value, locations, level_lengths.size(), "sampling_locations");
  check_samples(value, weights, level_lengths.size(), "attention_weights");
  TAL_FAST_CHECK(weights.size(1) == locations.size(1) && weights.size(4) == locations.size(4),
                 "deform_attn: expected attention_weights of the shape of sampling_locations, got ",
                 shape_string(weights), " and ", shape_string(locations));
  const ScalarType location_type = locations.scalar_type();
  TAL_FAST_CHECK(location_type == ScalarType::Float || location_type == ScalarType::Double,
                 "deform_attn: expected sampling_locations of dtype float32 or float64 (16 bits "
                 "misplace samples by up to several rows), got ",
                 dtype_string(location_type));
  TAL_FAST_CHECK(is_float(weights.scalar_type()),
                 "deform_attn: expected attention_weights of a floating-point dtype, got ",
                 dtype_string(weights.scalar_type()));
}

inline DeformAttnShape deform_attn_shape(const Tensor& value,
                                         const std::vector<int64_t>& level_lengths,
                                         const Tensor& locations) {
  return {value.size(0),     value.size(1),     value.size(2),     value.size(3),
          locations.size(1), locations.size(3), locations.size(4), level_lengths.data()};
}

}  // namespace tal_fast
