// SPDX-License-Identifier: Apache-2.0
// deform_attn on a GPU.
#include <tuple>

#include "cuda/deform_attn_backward_launch.h"

namespace tal_fast {
namespace {

template <typename C>
GivenSamples<C> given_samples(const Tensor& locations, const Tensor& weights) {
  return {any_input<C>(locations), any_input<C>(weights)};
}

Tensor deform_attn_cuda(const Tensor& value_in,                     // [B, S, H, D]
                        const std::vector<int64_t>& level_lengths,  // [L]
                        const Tensor& locations_in,                 // [B, Q, H, L, P]
                        const Tensor& weights_in) {                 // [B, Q, H, L, P]
  check_deform_attn(value_in, level_lengths, locations_in, weights_in);
  const DeformAttnShape shape = deform_attn_shape(value_in, level_lengths, locations_in);
  const DeviceScope scope(value_in);
  const Tensor value = as_contiguous(value_in);
  const Tensor locations = as_contiguous(locations_in);
  const Tensor weights = as_contiguous(weights_in);
  const Tensor out = allocate(value, {shape.batch, shape.queries, shape.heads * shape.channels});
  if (out.numel() == 0) {
    return out;
  }
  dispatch_float(value.scalar_type(), "deform_attn", "value", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_deform_attn_forward<T>(scope, "deform_attn", shape,
                               given_samples<ComputeType<T>>(locations, weights), value, nullptr,
                               out);
  });
  return out;
}

// Gradients for value, locations and weights, in the dtypes of these. A part that is not asked for
// comes back empty: locations and weights share their work, so they are asked for together.
std::tuple<Tensor, Tensor, Tensor> deform_attn_backward_cuda(
    const Tensor& grad_in,                      // [B, Q, H * D]
    const Tensor& value_in,                     // [B, S, H, D]
    const std::vector<int64_t>& level_lengths,  // [L]
    const Tensor& locations_in,                 // [B, Q, H, L, P]
    const Tensor& weights_in,                   // [B, Q, H, L, P]
    bool needs_value, bool needs_samples) {
  check_deform_attn(value_in, level_lengths, locations_in, weights_in);
  const DeformAttnShape shape = deform_attn_shape(value_in, level_lengths, locations_in);
  check_output_gradient("deform_attn_backward", grad_in, value_in, shape);
  const DeviceScope scope(value_in);
  const Tensor grad_value = allocate_gradient(value_in, needs_value);
  const Tensor grad_locations = allocate_gradient(locations_in, needs_samples);
  const Tensor grad_weights = allocate_gradient(weights_in, needs_samples);
  if (grad_value.numel() + grad_locations.numel() > 0) {
    const Tensor grad = as_contiguous(grad_in);
    const Tensor value = as_contiguous(value_in);
    const Tensor locations = as_contiguous(locations_in);
    const Tensor weights = as_contiguous(weights_in);
    const DeviceLevels levels(scope, value, shape);
    dispatch_float(value.scalar_type(), "deform_attn_backward", "value", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = ComputeType<T>;
      run_deform_attn_backward<T>(scope, "deform_attn_backward", shape, levels.levels,
                                  given_samples<C>(locations, weights), grad, value, nullptr,
                                  grad_value,
                                  {any_output<C>(grad_locations, needs_samples),
                                   any_output<C>(grad_weights, needs_samples), nullptr, nullptr});
    });
  }
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("deform_attn", TORCH_BOX(&deform_attn_cuda));
  m.impl("deform_attn_backward", TORCH_BOX(&deform_attn_backward_cuda));
}

}  // namespace tal_fast
