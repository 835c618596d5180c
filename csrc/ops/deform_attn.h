// SPDX-License-Identifier: Apache-2.0
// What deform_attn and deform_attn_fused share: checks, dtypes, and how the kernels are spread over
// threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/deform_attn.h"
#include "cpu/scratch.h"
#include "ops/tensor_checks.h"

namespace tal_fast {

// Multiply-adds per task, about 100 us of one core: a thread is not worth waking for less.
constexpr int64_t kForwardWorkPerTask = 2000000;
constexpr int64_t kBackwardWorkPerTask = 700000;
// Level lengths must be exact in float32 and row numbers fit 32 bits.
constexpr int64_t kLongestLevel = int64_t{1} << 24;

inline std::string list_string(const std::vector<int64_t>& values) {
  std::string text = "(";
  for (size_t i = 0; i < values.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  }
  return text + ")";
}

// Contiguous and of the type that the kernel computes in; no copy when it is both already.
inline Tensor prepare(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(tensor.scalar_type() == type ? tensor
                                                                : torch::stable::to(tensor, type));
}

inline void check_value(const char* op, const Tensor& value,
                        const std::vector<int64_t>& level_lengths) {
  TAL_FAST_CHECK(value.dim() == 4, op, ": expected value of shape [B, S, H, D], got ",
                 shape_string(value));
  TAL_FAST_CHECK(is_float(value.scalar_type()), op,
                 ": expected value of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(value.scalar_type()));
  int64_t sum = 0;
  for (const int64_t length : level_lengths) {
    TAL_FAST_CHECK(length > 0 && length <= kLongestLevel, op,
                   ": expected level_lengths between 1 and 2^24, got ", list_string(level_lengths));
    sum += length;
  }
  TAL_FAST_CHECK(!level_lengths.empty() && sum == value.size(1), op,
                 ": expected level_lengths that sum to value.shape[1] = ", value.size(1), ", got ",
                 list_string(level_lengths));
}

// `name` is for the error message.
inline void check_output_gradient(const char* name, const Tensor& grad, const Tensor& value,
                                  const DeformAttnShape& shape) {
  TAL_FAST_CHECK(grad.dim() == 3 && grad.size(0) == shape.batch && grad.size(1) == shape.queries &&
                     grad.size(2) == shape.heads * shape.channels &&
                     grad.scalar_type() == value.scalar_type(),
                 name, ": expected grad of the shape and dtype of the output, got ",
                 shape_string(grad), " ", dtype_string(grad.scalar_type()));
}

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
void run_backward_direct(const DeformAttnShape& shape, const C* grad, const C* value,
                         const bool* padding, const C* locations, const C* weights, C* grad_value,
                         C* grad_locations, C* grad_weights) {
  // Heads that share a unit share the rows that they read; fewer where threads would lack work.
  int64_t heads = shape.heads;
  while (heads > 1 && shape.batch * ((shape.heads + heads - 1) / heads) <
                          2 * static_cast<int64_t>(torch::stable::get_num_threads())) {
    heads = (heads + 1) / 2;
  }
  const int64_t units = shape.batch * ((shape.heads + heads - 1) / heads);
  const size_t bytes = TAL_FAST_ISA_CALL(deform_attn_backward_direct_scratch<C>)(shape, heads);
  torch::stable::parallel_for(0, units, backward_grain(shape, heads),
                              [&](int64_t begin, int64_t end) {
                                TAL_FAST_ISA_CALL(deform_attn_backward_direct<C>)
                                (shape, heads, grad, value, padding, locations, weights, begin, end,
                                 Scratch(bytes).get(), grad_value, grad_locations, grad_weights);
                              });
}

// Runs the backward kernel over all units; null outputs are not wanted.
template <typename T>
void run_backward(const DeformAttnShape& shape, const T* grad, const T* value, const bool* padding,
                  const ComputeType<T>* locations, const ComputeType<T>* weights, T* grad_value,
                  ComputeType<T>* grad_locations, ComputeType<T>* grad_weights) {
  if constexpr (std::is_same_v<T, ComputeType<T>>) {
    if (grad_value != nullptr && grad_locations != nullptr &&
        TAL_FAST_ISA_CALL(deform_attn_backward_is_direct<T>)(shape)) {
      run_backward_direct(shape, grad, value, padding, locations, weights, grad_value,
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
    (shape, heads, grad, value, padding, locations, weights, begin, end, Scratch(bytes).get(),
     grad_value, grad_locations, grad_weights);
  });
}

}  // namespace tal_fast
