// SPDX-License-Identifier: Apache-2.0
// What segment_roi_align checks on every device. The values of the rois are checked on a CPU alone.
#pragma once

#include "math/segment_roi_align.h"
#include "ops/tensor_checks.h"

namespace tal_fast {

inline void check_roi_sizes(const char* op, int64_t output_size, int64_t sampling_ratio) {
  TAL_FAST_CHECK(output_size >= 1, op, ": expected output_size >= 1, got ", output_size);
  TAL_FAST_CHECK(sampling_ratio >= 0, op, ": expected sampling_ratio >= 0, got ", sampling_ratio);
}

inline void check_rois(const char* op, const Tensor& rois) {
  TAL_FAST_CHECK(rois.dim() == 2 && rois.size(1) == 3, op,
                 ": expected rois of shape [K, 3] (batch, start, end), got ", shape_string(rois));
  const ScalarType type = rois.scalar_type();
  // A 16-bit position is off by whole rows, and a 16-bit batch index is wrong beyond 256 or 2048.
  TAL_FAST_CHECK(type == ScalarType::Float || type == ScalarType::Double, op,
                 ": expected rois of dtype float32 or float64, got ", dtype_string(type));
}

inline void check_segment_roi_align(const Tensor& features,  // [B, C, T]
                                    const Tensor& rois,      // [K, 3]
                                    int64_t output_size, int64_t sampling_ratio) {
  constexpr const char* kOp = "segment_roi_align";
  TAL_FAST_CHECK(features.dim() == 3, kOp, ": expected features of shape [B, C, T], got ",
                 shape_string(features));
  TAL_FAST_CHECK(is_float(features.scalar_type()), kOp,
                 ": expected features of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(features.scalar_type()));
  check_roi_sizes(kOp, output_size, sampling_ratio);
  check_rois(kOp, rois);
  TAL_FAST_CHECK(features.size(2) >= 1 || rois.size(0) * features.size(1) == 0, kOp,
                 ": expected features with at least one row, got ", shape_string(features));
}

inline void check_segment_roi_align_gradient(const Tensor& grad,  // [K, C, R]
                                             const Tensor& rois,  // [K, 3]
                                             int64_t sampling_ratio) {
  constexpr const char* kOp = "segment_roi_align_backward";
  TAL_FAST_CHECK(grad.dim() == 3 && rois.dim() == 2 && grad.size(0) == rois.size(0), kOp,
                 ": expected grad of shape [K, C, R] and rois of shape [K, 3], got ",
                 shape_string(grad), " and ", shape_string(rois));
  TAL_FAST_CHECK(is_float(grad.scalar_type()), kOp,
                 ": expected grad of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(grad.scalar_type()));
  check_rois(kOp, rois);
  check_roi_sizes(kOp, grad.size(2), sampling_ratio);
}

// Calls `body` with the data of the rois, which are float64 or float32.
template <typename Body>
void with_rois(const Tensor& rois, Body&& body) {
  dispatch_compute_type(rois.scalar_type(),
                        [&](auto tag) { body(const_data<typename decltype(tag)::type>(rois)); });
}

// A copy of the features with the channels of a row next to each other, or reading a column at a
// stride per bin, which is cheaper if the bins are few against the rows.
inline bool roi_align_copies(const Tensor& features, int64_t count, int64_t bins) {
  return features.stride(1) != 1 && 2 * count * bins >= features.size(0) * features.size(2);
}

}  // namespace tal_fast
