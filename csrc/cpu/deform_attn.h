// SPDX-License-Identifier: Apache-2.0
// Multi-level 1-D deformable attention, forward (deform_attn.cpp) and backward
// (deform_attn_backward.cpp); math/deform_attn.h says what is computed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"
#include "math/deform_attn.h"
#include "math/half.h"

namespace tal_fast::cpu {

// `scratch` is one block per thread of the size that the *_scratch function says, in bytes.
// clang-format off
TAL_FAST_FOR_EACH_ISA(

template <typename T>
size_t deform_attn_scratch(const DeformAttnShape& shape);

// A unit is one query of one batch element: units run from 0 to B * Q. Of locations, weights and
// out the caller passes the part that starts at unit_begin.
template <typename T>
void deform_attn_forward(const DeformAttnShape& shape,
                         const T* value,                          // [B, S, H, D]
                         const bool* padding,                     // [B, S] or null: none
                         const ComputeType<T>* locations,         // [units, H, L, P]
                         const ComputeType<T>* weights,           // [units, H, L, P]
                         int64_t unit_begin, int64_t unit_end,
                         std::byte* scratch,
                         T* out);                                 // [units, H, D]

// Heads that a unit of the backward should take, so that `threads` have work and scratch stays in
// the second-level cache. The result does not depend on it.
template <typename T>
int64_t deform_attn_backward_heads(const DeformAttnShape& shape, int64_t threads);

template <typename T>
size_t deform_attn_backward_scratch(const DeformAttnShape& shape, int64_t heads_per_unit);

// A unit is `heads_per_unit` heads (the last one of a batch element perhaps fewer) of one batch
// element, from 0 to B * ceil(H / heads_per_unit). A unit owns its part of grad_value and every head
// visits its queries in order, so no atomics are needed and the result does not depend on threads.
template <typename T>
void deform_attn_backward(const DeformAttnShape& shape, int64_t heads_per_unit,
                          const T* grad,                          // [B, Q, H, D]
                          const T* value,                         // [B, S, H, D]
                          const bool* padding,                    // [B, S] or null: none
                          const ComputeType<T>* locations,        // [B, Q, H, L, P]
                          const ComputeType<T>* weights,          // [B, Q, H, L, P]
                          int64_t unit_begin, int64_t unit_end,
                          std::byte* scratch,
                          T* grad_value,                          // [B, S, H, D] or null
                          ComputeType<T>* grad_locations,         // [B, Q, H, L, P] or null ...
                          ComputeType<T>* grad_weights);          // ... together with this one

// The same for few queries, row by row: for all three gradients in float or double, of the usual
// channel counts.
template <typename C>
bool deform_attn_backward_is_by_row(const DeformAttnShape& shape);

template <typename C>
size_t deform_attn_backward_by_row_scratch(const DeformAttnShape& shape);

// Units and arguments are those of deform_attn_backward. grad_locations may be locations itself.
template <typename C>
void deform_attn_backward_by_row(const DeformAttnShape& shape, int64_t heads_per_unit,
                                 const C* grad,            // [B, Q, H, D]
                                 const C* value,           // [B, S, H, D]
                                 const bool* padding,      // [B, S] or null: none
                                 const C* locations,       // [B, Q, H, L, P]
                                 const C* weights,         // [B, Q, H, L, P]
                                 int64_t unit_begin, int64_t unit_end,
                                 std::byte* scratch,
                                 C* grad_value,            // [B, S, H, D]
                                 C* grad_locations,        // [B, Q, H, L, P]
                                 C* grad_weights);         // [B, Q, H, L, P]
)
// clang-format on

}  // namespace tal_fast::cpu
