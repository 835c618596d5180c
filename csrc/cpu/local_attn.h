// SPDX-License-Identifier: Apache-2.0
// Banded self-attention (math/local_attn.h) on a CPU.
//
// A unit is one head of one batch element and a block of its rows. Units are numbered
// [B, blocks, H]: the heads of a row lie side by side.
//
// Nothing is kept for the backward: it computes the scores again, also those of the rows next to
// its block, so that each unit writes the gradients of its own rows and of no others.
#pragma once

#include <cstddef>

#include "cpu/isa.h"
#include "math/half.h"
#include "math/local_attn.h"

namespace tal_fast::cpu {

// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Bytes of the scratch that the kernels want for blocks of `block` rows.
template <typename T>
size_t local_attn_scratch(const LocalAttnShape& shape, int64_t block, bool backward);

template <typename T>
void local_attn_forward(const LocalAttnShape& shape, int64_t block,
                        const LocalAttnInput<T>& query, const LocalAttnInput<T>& key,
                        const LocalAttnInput<T>& value,
                        const bool* padding,  // [B, T], or null
                        int64_t unit_begin, int64_t unit_end, std::byte* scratch,
                        T* out);              // [B, T, H, D]

// Null outputs are not wanted.
template <typename T>
void local_attn_backward(const LocalAttnShape& shape, int64_t block,
                         const LocalAttnInput<T>& grad, const LocalAttnInput<T>& query,
                         const LocalAttnInput<T>& key, const LocalAttnInput<T>& value,
                         const bool* padding,  // [B, T], or null
                         int64_t unit_begin, int64_t unit_end, std::byte* scratch,
                         T* grad_query,        // [B, T, H, D]
                         T* grad_key,          // [B, T, H, D]
                         T* grad_value);       // [B, T, H, D]
)
// clang-format on

}  // namespace tal_fast::cpu
