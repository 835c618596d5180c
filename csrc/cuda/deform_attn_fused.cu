// SPDX-License-Identifier: Apache-2.0
// deform_attn_fused on a GPU.
#include <optional>
#include <tuple>

#include "cuda/deform_attn_backward_launch.h"
#include "ops/deform_attn_fused.h"

namespace tal_fast {
namespace {

// The inputs in the layouts that the kernels read; their dtypes stay.
struct Inputs {
  Tensor value;      // [B, S, H, D], contiguous
  Tensor reference;  // [B, Q, L, 1 or 2]
  Tensor offsets;    // [B, Q, H, L, P]
  Tensor logits;     // [B, Q, H, L, P] or [B, Q, H, L * P]
  std::optional<Tensor> padding_mask;

  Inputs(const Tensor& value_in, const Tensor& reference_in, const Tensor& offsets_in,
         const Tensor& logits_in, const std::optional<Tensor>& padding_mask_in)
      : value(as_contiguous(value_in)),
        reference(with_contiguous_queries(reference_in)),
        offsets(with_contiguous_queries(offsets_in)),
        logits(with_contiguous_queries(logits_in)) {
    if (padding_mask_in) {
      padding_mask = as_contiguous(*padding_mask_in);
    }
  }

  const bool* padding() const { return padding_mask ? const_data<bool>(*padding_mask) : nullptr; }

  template <typename C>
  ProjectedSamples<C> samples() const {
    return {any_input<C>(offsets),
            offsets.stride(0),
            offsets.stride(1),
            any_input<C>(logits),
            logits.stride(0),
            logits.stride(1),
            any_input<C>(reference),
            reference.stride(0),
            reference.stride(1),
            static_cast<int>(reference.size(3)),
            static_cast<C>(0.5 / static_cast<double>(offsets.size(4)))};
  }
};

Tensor deform_attn_fused_cuda(const Tensor& value,                        // [B, S, H, D]
                              const std::vector<int64_t>& level_lengths,  // [L]
                              const Tensor& reference_points,             // [B, Q, L, 1 or 2]
                              const Tensor& sampling_offsets,             // [B, Q, H, L, P]
                              const Tensor& attention_logits,  // [B, Q, H, L, P] or [.., L * P]
                              const std::optional<Tensor>& padding_mask) {  // [B, S]
  check_deform_attn_fused(value, level_lengths, reference_points, sampling_offsets,
                          attention_logits, padding_mask);
  const DeformAttnShape shape = deform_attn_shape(value, level_lengths, sampling_offsets);
  const DeviceScope scope(value);
  const Tensor out = allocate(value, {shape.batch, shape.queries, shape.heads * shape.channels});
  if (out.numel() == 0) {
    return out;
  }
  const Inputs inputs(value, reference_points, sampling_offsets, attention_logits, padding_mask);
  dispatch_float(value.scalar_type(), "deform_attn_fused", "value", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_deform_attn_forward<T>(scope, "deform_attn_fused", shape, inputs.samples<ComputeType<T>>(),
                               inputs.value, inputs.padding(), out);
  });
  return out;
}

template <typename C>
void launch_reference_gradient(const DeviceScope& scope, const DeformAttnShape& shape,
                               const ProjectedSamples<C>& source, const C* by_location,
                               const Tensor& grad_reference) {
  using Kernel = DeformAttnReferenceGradient<C>;
  const int64_t blocks = ceil_div(shape.batch * shape.queries * shape.levels, Kernel::kThreads);
  launch(scope, dim3(grid_size(Kernel::kName, blocks)), Kernel::kThreads, 0,
         Kernel{device_sizes("deform_attn_fused_backward", shape), source, by_location,
                any_output<C>(grad_reference, true)});
}

// Gradients for value, reference points, offsets and logits, in their dtypes. What is not asked for
// comes back empty; offsets and logits share their work, so they are asked for together.
std::tuple<Tensor, Tensor, Tensor, Tensor> deform_attn_fused_backward_cuda(
    const Tensor& grad_in,                      // [B, Q, H * D]
    const Tensor& value,                        // [B, S, H, D]
    const std::vector<int64_t>& level_lengths,  // [L]
    const Tensor& reference_points,             // [B, Q, L, 1 or 2]
    const Tensor& sampling_offsets,             // [B, Q, H, L, P]
    const Tensor& attention_logits,             // [B, Q, H, L, P] or [B, Q, H, L * P]
    const std::optional<Tensor>& padding_mask,  // [B, S]
    bool needs_value, bool needs_reference, bool needs_projection) {
  check_deform_attn_fused(value, level_lengths, reference_points, sampling_offsets,
                          attention_logits, padding_mask);
  const DeformAttnShape shape = deform_attn_shape(value, level_lengths, sampling_offsets);
  check_output_gradient("deform_attn_fused_backward", grad_in, value, shape);
  const DeviceScope scope(value);
  const Tensor grad_value = allocate_gradient(value, needs_value);
  const Tensor grad_reference = allocate_gradient(reference_points, needs_reference);
  const Tensor grad_offsets = allocate_gradient(sampling_offsets, needs_projection);
  const Tensor grad_logits = allocate_gradient(attention_logits, needs_projection);
  if (grad_value.numel() + grad_reference.numel() + grad_offsets.numel() == 0) {
    return {grad_value, grad_reference, grad_offsets, grad_logits};
  }
  const Inputs inputs(value, reference_points, sampling_offsets, attention_logits, padding_mask);
  const Tensor grad = as_contiguous(grad_in);
  const DeviceLevels levels(scope, value, shape);
  const ScalarType type = compute_type(value.scalar_type());
  const int64_t samples = shape.batch * shape.queries * shape.samples_per_query();
  dispatch_float(value.scalar_type(), "deform_attn_fused_backward", "value", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = ComputeType<T>;
    // The gradients of the weights wait for their sum in the output, where that is as wide.
    const bool waits = needs_projection && shape.levels * shape.points > sample_lanes<T>(shape);
    const bool in_output = grad_logits.scalar_type() == type;
    const Tensor memory = allocate(value, {waits && !in_output ? samples : 0}, type);
    const Tensor by_location = allocate(value, {needs_reference ? samples : 0}, type);
    C* weight_memory = mutable_data<C>(in_output ? grad_logits : memory);
    const ProjectedSamples<C> source = inputs.samples<C>();
    run_deform_attn_backward<T>(scope, "deform_attn_fused_backward", shape, levels.levels, source,
                                grad, inputs.value, inputs.padding(), grad_value,
                                {any_output<C>(grad_offsets, needs_projection),
                                 any_output<C>(grad_logits, needs_projection),
                                 needs_reference ? mutable_data<C>(by_location) : nullptr,
                                 waits ? weight_memory : nullptr});
    if (grad_reference.numel() > 0) {
      launch_reference_gradient<C>(scope, shape, source, mutable_data<C>(by_location),
                                   grad_reference);
    }
  });
  return {grad_value, grad_reference, grad_offsets, grad_logits};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("deform_attn_fused", TORCH_BOX(&deform_attn_fused_cuda));
  m.impl("deform_attn_fused_backward", TORCH_BOX(&deform_attn_fused_backward_cuda));
}

}  // namespace tal_fast
