// SPDX-License-Identifier: Apache-2.0
// What deform_attn_fused checks on every device.
#pragma once

#include <optional>

#include "ops/deform_attn.h"

namespace tal_fast {

inline void check_deform_attn_fused(const Tensor& value, const std::vector<int64_t>& level_lengths,
                                    const Tensor& reference, const Tensor& offsets,
                                    const Tensor& logits,
                                    const std::optional<Tensor>& padding_mask) {
  check_value("deform_attn_fused", value, level_lengths);
  const auto levels = static_cast<int64_t>(level_lengths.size());
  TAL_FAST_CHECK(offsets.dim() == 5 && offsets.size(0) == value.size(0) &&
                     offsets.size(2) == value.size(2) && offsets.size(3) == levels,
                 "deform_attn_fused: expected sampling_offsets of shape [B, Q, H, L, P] with B = ",
                 value.size(0), ", H = ", value.size(2), " and L = ", levels, ", got ",
                 shape_string(offsets));
  bool same = (logits.dim() == 4 || logits.dim() == 5) && logits.numel() == offsets.numel();
  for (int64_t i = 0; same && i < logits.dim(); ++i) {
    same = logits.size(i) ==
           (i == 3 && logits.dim() == 4 ? offsets.size(3) * offsets.size(4) : offsets.size(i));
  }
  TAL_FAST_CHECK(same,
                 "deform_attn_fused: expected attention_logits of shape [B, Q, H, L, P] or "
                 "[B, Q, H, L * P] like sampling_offsets ",
                 shape_string(offsets), ", got ", shape_string(logits));
  TAL_FAST_CHECK(reference.dim() == 4 && reference.size(0) == offsets.size(0) &&
                     reference.size(1) == offsets.size(1) && reference.size(2) == levels &&
                     (reference.size(3) == 1 || reference.size(3) == 2),
                 "deform_attn_fused: expected reference_points of shape [B, Q, L, 1] or [B, Q, L, "
                 "2] with B = ",
                 offsets.size(0), ", Q = ", offsets.size(1), " and L = ", levels, ", got ",
                 shape_string(reference));
  const ScalarType reference_type = reference.scalar_type();
  TAL_FAST_CHECK(
      reference_type == ScalarType::Float || reference_type == ScalarType::Double,
      "deform_attn_fused: expected reference_points of dtype float32 or float64 (16 bits "
      "misplace samples by up to several rows), got ",
      dtype_string(reference_type));
  TAL_FAST_CHECK(is_float(offsets.scalar_type()),
                 "deform_attn_fused: expected sampling_offsets of a floating-point dtype, got ",
                 dtype_string(offsets.scalar_type()));
  TAL_FAST_CHECK(is_float(logits.scalar_type()),
                 "deform_attn_fused: expected attention_logits of a floating-point dtype, got ",
                 dtype_string(logits.scalar_type()));
  if (padding_mask) {
    TAL_FAST_CHECK(padding_mask->dim() == 2 && padding_mask->size(0) == value.size(0) &&
                       padding_mask->size(1) == value.size(1),
                   "deform_attn_fused: expected padding_mask of shape [B, S] = [", value.size(0),
                   ", ", value.size(1), "], got ", shape_string(*padding_mask));
    TAL_FAST_CHECK(padding_mask->scalar_type() == ScalarType::Bool,
                   "deform_attn_fused: expected padding_mask of dtype bool, got ",
                   dtype_string(padding_mask->scalar_type()));
  }
}

// The tensor itself if all dimensions after the query are contiguous, else a contiguous copy.
inline Tensor with_contiguous_queries(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t i = tensor.dim() - 1; i >= 2; --i) {
    if (tensor.size(i) != 1 && tensor.stride(i) != expected) {
      return as_contiguous(tensor);
    }
    expected *= tensor.size(i);
  }
  return tensor;
}

}  // namespace tal_fast
