// SPDX-License-Identifier: Apache-2.0
// What segment_iou checks on every device.
#pragma once

#include <algorithm>

#include "math/segment_overlap.h"
#include "ops/tensor_checks.h"

namespace tal_fast {

// The kind travels as a number: the stable ABI of torch 2.10 to 2.13 leaks a string per call. The
// names are checked in tal_fast/ops/segment_iou.py.
inline IouKind parse_iou_kind(int64_t kind) {
  TAL_FAST_CHECK(kind >= 0 && kind <= 3,
                 "segment_iou: expected kind 0 (iou), 1 (giou), 2 (diou) or 3 (ioa), got ", kind);
  return static_cast<IouKind>(kind);
}

inline void check_segment_iou(const Tensor& a, const Tensor& b, bool aligned, double eps) {
  check_segments("segment_iou", "a", a);
  check_segments("segment_iou", "b", b);
  TAL_FAST_CHECK(a.scalar_type() == b.scalar_type(),
                 "segment_iou: expected a and b of one dtype, got ", dtype_string(a.scalar_type()),
                 " and ", dtype_string(b.scalar_type()));
  TAL_FAST_CHECK(!aligned || a.size(0) == b.size(0),
                 "segment_iou: expected a and b of one length with aligned=True, got ",
                 shape_string(a), " and ", shape_string(b));
  TAL_FAST_CHECK(eps >= 0, "segment_iou: expected eps >= 0, got ", eps);
}

inline void check_segment_iou_gradient(const Tensor& grad,  // [N, M], or [N] when aligned
                                       const Tensor& a, const Tensor& b, bool aligned) {
  const int64_t n = a.size(0);
  const bool shape_fits = aligned
                              ? grad.dim() == 1 && grad.size(0) == n
                              : grad.dim() == 2 && grad.size(0) == n && grad.size(1) == b.size(0);
  TAL_FAST_CHECK(shape_fits && grad.scalar_type() == a.scalar_type(),
                 "segment_iou_backward: expected grad of the shape and dtype of the output, got ",
                 shape_string(grad), " ", dtype_string(grad.scalar_type()));
}

// Pairs per task of a thread pool: about 20 us of work, well above the cost of handing it over.
constexpr int64_t kOverlapPairsPerTask = 32768;

// The pairwise backward sums the gradient for b over parts: ranges of rows that are worked on apart
// and joined in their order. They depend on the shapes alone, as do the sums.
struct OverlapParts {
  static constexpr int64_t kMost = 32;
  int64_t rows;   // of a part, whole tiles; the last one may have fewer
  int64_t count;  // at most kMost
};

inline OverlapParts overlap_parts(int64_t n, int64_t m) {
  const auto round_up = [](int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
  };
  const int64_t least = std::max<int64_t>(1, kOverlapPairsPerTask / m);
  const int64_t rows = round_up(
      std::max(least, round_up(n, OverlapParts::kMost) / OverlapParts::kMost), kOverlapTile);
  return {rows, (n + rows - 1) / rows};
}

}  // namespace tal_fast
