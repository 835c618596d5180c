// SPDX-License-Identifier: Apache-2.0
// Pairwise and aligned IoU, GIoU and DIoU of 1-D segments: the template for new kernels.
#pragma once

#include <cstdint>

#include "cpu/half.h"
#include "cpu/isa.h"

namespace tal_fast {

enum class IouKind { kIou = 0, kGiou = 1, kDiou = 2 };

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

// Gradient for a alone: IoU is symmetric, so the one for b is the same function with a and b
// swapped and `grad` transposed, hence its strides. A row is summed in the order of its columns.
template <typename T>
void segment_iou_pairwise_backward(IouKind kind,
                                   const T* grad,                     // [N, M], strided
                                   int64_t grad_row_stride, int64_t grad_column_stride,
                                   const T* a,                        // [N, 2]
                                   const ComputeType<T>* b_starts,    // [M]
                                   const ComputeType<T>* b_ends,      // [M]
                                   int64_t m,
                                   ComputeType<T> eps,
                                   int64_t row_begin, int64_t row_end,
                                   T* grad_a);                        // [N, 2]

template <typename T>
void segment_iou_aligned_backward(IouKind kind,
                                  const T* grad,    // [N], strided
                                  int64_t grad_stride,
                                  const T* a,       // [N, 2]
                                  const T* b,       // [N, 2]
                                  ComputeType<T> eps,
                                  int64_t row_begin, int64_t row_end,
                                  T* grad_a);       // [N, 2]
)
// clang-format on

}  // namespace tal_fast
