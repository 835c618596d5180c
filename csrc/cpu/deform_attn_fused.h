// SPDX-License-Identifier: Apache-2.0
// What surrounds deformable attention (deform_attn.h) in a layer: softmax and locations before it,
// their gradients after its backward.
//
// A unit is one query of one batch element. K = H * L * P samples per query; T_l rows in level l.
#pragma once

#include "cpu/deform_attn.h"

namespace tal_fast::cpu {

// Strides are in elements; the dimensions after the query are contiguous, so that offsets and
// logits may be two halves of one matrix product.
template <typename T>
struct DeformAttnProjection {
  const T* offsets;  // [B, Q, H, L, P]
  int64_t offsets_batch_stride;
  int64_t offsets_query_stride;
  const T* logits;  // [B, Q, H, L, P]
  int64_t logits_batch_stride;
  int64_t logits_query_stride;
  const ComputeType<T>* reference;  // [B, Q, L, components]
  int64_t reference_batch_stride;
  int64_t reference_query_stride;
  int64_t components;  // 1: centre; 2: centre and width
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

// location = centre + offset / T_l, or centre + offset * width * 0.5 / P; weight = softmax of the
// logits over L * P.
template <typename T>
void deform_attn_prepare(const DeformAttnShape& shape, const DeformAttnProjection<T>& projection,
                         int64_t unit_begin, int64_t unit_end,
                         ComputeType<T>* locations,               // [units, H, L, P]
                         ComputeType<T>* weights);                // [units, H, L, P]

// The gradients of the projection from those of locations and weights. Outputs may be the inputs
// themselves where their types agree; null outputs are not wanted.
template <typename T>
void deform_attn_finish(const DeformAttnShape& shape, const DeformAttnProjection<T>& projection,
                        int64_t unit_begin, int64_t unit_end,
                        const ComputeType<T>* weights,            // [B, Q, H, L, P]
                        const ComputeType<T>* grad_locations,     // [B, Q, H, L, P]
                        const ComputeType<T>* grad_weights,       // [B, Q, H, L, P]
                        T* grad_offsets,                          // [B, Q, H, L, P] or null ...
                        T* grad_logits,                           // ... together with this one
                        ComputeType<T>* grad_reference);          // [B, Q, L, components] or null
)
// clang-format on

}  // namespace tal_fast::cpu
