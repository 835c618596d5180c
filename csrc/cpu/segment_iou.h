// SPDX-License-Identifier: Apache-2.0
// Pairwise and aligned IoU, GIoU, DIoU and IoA of 1-D segments: the template for new kernels.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "math/half.h"
#include "math/segment_overlap.h"

namespace tal_fast::cpu {

// The pairwise backward reads b, and writes its gradient, in whole groups of so many segments.
template <typename C>
constexpr int kSegmentIouPadding = kOverlapLanes<C>;

// Each function works on a range of rows, so that the caller decides about threads. A segment is
// (start, end). T is the stored type, ComputeType<T> what is computed in.
// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Widens b once for all rows, starts and ends apart: the inner loops then load whole vectors.
template <typename T>
void segment_iou_split(const T* b,                 // [M, 2]
                       int64_t m,
                       ComputeType<T>* b_starts,   // [M]
                       ComputeType<T>* b_ends);    // [M]

template <typename T>
void segment_iou_pairwise(IouKind kind,
                          const T* a,                        // [N, 2]
                          const ComputeType<T>* b_starts,    // [M]
                          const ComputeType<T>* b_ends,      // [M]
                          int64_t m,
                          ComputeType<T> eps,
                          int64_t row_begin, int64_t row_end,
                          T* out);                           // [N, M]

template <typename T>
void segment_iou_aligned(IouKind kind,
                         const T* a,    // [N, 2]
                         const T* b,    // [N, 2]
                         ComputeType<T> eps,
                         int64_t row_begin, int64_t row_end,
                         T* out);       // [N]

// Gradients for a, for b or for both in one pass; a null pointer asks for none. b and its gradient
// are padded to a multiple of kSegmentIouPadding; the padding of b must be readable, its values do
// not matter. The gradient for b is added to what is there, so that the caller can give every tile
// of rows its own and join them in a fixed order; `grad_a` is written.
template <typename T>
void segment_iou_pairwise_backward(IouKind kind,
                                   const T* grad,                     // [N, M], strided
                                   int64_t grad_row_stride, int64_t grad_column_stride,
                                   const T* a,                        // [N, 2]
                                   const ComputeType<T>* b_starts,    // [M], padded
                                   const ComputeType<T>* b_ends,      // [M], padded
                                   int64_t m,
                                   ComputeType<T> eps,
                                   int64_t row_begin, int64_t row_end,
                                   T* grad_a,                         // [N, 2] or null
                                   ComputeType<T>* grad_b_starts,     // [M], padded, or null
                                   ComputeType<T>* grad_b_ends);      // [M], padded, or null

// Adds up the gradients for b of all parts, first to last.
template <typename T>
void segment_iou_join(const ComputeType<T>* parts,    // [num_parts, 2, padded_m]
                      int64_t num_parts, int64_t m, int64_t padded_m,
                      T* grad_b);                     // [M, 2]

template <typename T>
void segment_iou_aligned_backward(IouKind kind,
                                  const T* grad,    // [N], strided
                                  int64_t grad_stride,
                                  const T* a,       // [N, 2]
                                  const T* b,       // [N, 2]
                                  ComputeType<T> eps,
                                  int64_t row_begin, int64_t row_end,
                                  T* grad_a,        // [N, 2] or null
                                  T* grad_b);       // [N, 2] or null
)
// clang-format on

}  // namespace tal_fast::cpu
