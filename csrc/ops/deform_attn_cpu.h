// SPDX-License-Identifier: Apache-2.0
// How the CPU kernels of deform_attn and deform_attn_fused are spread over threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "cpu/deform_attn.h"
#include "cpu/scratch.h"

namespace tal_fast {

// Multiply-adds per task, about 100 us of one core: a thread is not worth waking for less.
constexpr int64_t kForwardWorkPerTask = 2000000;
constexpr int64_t kBackwardWorkPerTask = 700000;

// Queries per task of the forward.
inline int64_t forward_grain(const DeformAttnShape& shape) {
  const int64_t work = 2 * shape.samples_per_query() * shape.channels;
  return std::max<int64_t>(1, kForwardWorkPerTask / std::max<int64_t>(1, work));
}

inline int64_t backward_grain(const DeformAttnShape& shape, int64_t heads) {
  const int64_t head_work = 2 * shape.queries * shape.levels * shape.points * shape.channels +
                            shape.rows * shape.channels;
  return std::max<int64_t>(1, kBackwardWorkPerTask / (heads * head_work + 1));
}

template <typename C>
void run_backward_by_row(const DeformAttnShape& shape, const C* grad, const C* value,
                         const bool* padding, const C* locations, const C* weights, C* grad_value,
                         C* grad_locations, C* grad_weights) {
  // Heads that share a unit share the rows that they read; fewer where threads would lack work.
  int64_t heads = shape.heads;
  while (heads > 1 && shape.batch * ((shape.heads + heads - 1) / heads) <
                          2 * static_cast<int64_t>(torch::stable::get_num_threads())) {
    heads = (heads + 1) / 2;
  }
  const int64_t units = shape.batch * ((shape.heads + heads - 1) / heads);
  const size_t bytes = TAL_FAST_ISA_CALL(deform_attn_backward_by_row_scratch<C>)(shape);
  torch::stable::parallel_for(
      0, units, backward_grain(shape, heads), [&](int64_t begin, int64_t end) {
        TAL_FAST_ISA_CALL(deform_attn_backward_by_row<C>)
        (shape, heads, grad, value, padding, locations, weights, begin, end,
         cpu::Scratch(bytes).get(), grad_value, grad_locations, grad_weights);
      });
}

// Runs the backward kernel over all units; null outputs are not wanted.
template <typename T>
void run_backward(const DeformAttnShape& shape, const T* grad, const T* value, const bool* padding,
                  const ComputeType<T>* locations, const ComputeType<T>* weights, T* grad_value,
                  ComputeType<T>* grad_locations, ComputeType<T>* grad_weights) {
  if constexpr (std::is_same_v<T, ComputeType<T>>) {
    if (grad_value != nullptr && grad_locations != nullptr &&
        TAL_FAST_ISA_CALL(deform_attn_backward_is_by_row<T>)(shape)) {
      run_backward_by_row(shape, grad, value, padding, locations, weights, grad_value,
                          grad_locations, grad_weights);
      return;
    }
  }
  const int64_t heads =
      TAL_FAST_ISA_CALL(deform_attn_backward_heads<T>)(shape, torch::stable::get_num_threads());
  const int64_t units = shape.batch * ((shape.heads + heads - 1) / heads);
  const int64_t grain = backward_grain(shape, heads);
  const size_t bytes = TAL_FAST_ISA_CALL(deform_attn_backward_scratch<T>)(shape, heads);
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    TAL_FAST_ISA_CALL(deform_attn_backward<T>)
    (shape, heads, grad, value, padding, locations, weights, begin, end, cpu::Scratch(bytes).get(),
     grad_value, grad_locations, grad_weights);
  });
}

}  // namespace tal_fast
