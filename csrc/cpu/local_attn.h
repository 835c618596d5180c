// SPDX-License-Identifier: Apache-2.0
// Banded self-attention (math/local_attn.h) on a CPU.
//
// A unit is one head of one batch element and a block of its rows. Units are numbered
// [B, blocks, H]: the heads of a row lie side by side. Each unit writes the results of its own rows
// and of no others; the backward therefore needs the weights of the rows next to its block, too.
#pragma once

#include <cstddef>

#include "cpu/isa.h"
#include "math/half.h"
#include "math/local_attn.h"

namespace tal_fast::cpu {

template <typename T>
struct LocalAttnForward {
  LocalAttnShape shape;
  int64_t block;            // rows of a unit
  LocalAttnInput<T> query;  // [B, T, H, D]
  LocalAttnInput<T> key;    // [B, T, H, D]
  LocalAttnInput<T> value;  // [B, T, H, D]
  const bool* padding;      // [B, T], or null
  T* out;                   // [B, T, H, D]
  ComputeType<T>* weights;  // [B, T, H, window] for the backward, or null
};

// Null results are not wanted.
template <typename T>
struct LocalAttnBackward {
  LocalAttnShape shape;
  int64_t block;                  // rows of a unit
  LocalAttnInput<T> grad;         // [B, T, H, D]
  LocalAttnInput<T> query;        // [B, T, H, D]
  LocalAttnInput<T> key;          // [B, T, H, D]
  LocalAttnInput<T> value;        // [B, T, H, D]
  const bool* padding;            // [B, T], or null
  const ComputeType<T>* weights;  // [B, T, H, window], or null: they are computed again
  T* grad_query;                  // [B, T, H, D]
  T* grad_key;                    // [B, T, H, D]
  T* grad_value;                  // [B, T, H, D]
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Bytes of the scratch that the kernels want for blocks of `block` rows.
template <typename T>
size_t local_attn_scratch(const LocalAttnShape& shape, int64_t block, bool backward);

template <typename T>
void local_attn_forward(const LocalAttnForward<T>& call, int64_t unit_begin, int64_t unit_end,
                        std::byte* scratch);

template <typename T>
void local_attn_backward(const LocalAttnBackward<T>& call, int64_t unit_begin, int64_t unit_end,
                         std::byte* scratch);
)
// clang-format on

}  // namespace tal_fast::cpu
