// SPDX-License-Identifier: Apache-2.0
// deform_attn: schema and CPU implementation; checks are in ops/deform_attn.h, fake and autograd in
// tal_fast/ops/deform_attn.py.
#include "ops/deform_attn.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "ops/deform_attn_cpu.h"

namespace tal_fast {
namespace {

Tensor deform_attn_cpu(const Tensor& value_in,                     // [B, S, H, D]
                       const std::vector<int64_t>& level_lengths,  // [L]
                       const Tensor& locations_in,                 // [B, Q, H, L, P]
                       const Tensor& weights_in) {                 // [B, Q, H, L, P]
  check_deform_attn(value_in, level_lengths, locations_in, weights_in);
  const DeformAttnShape shape = deform_attn_shape(value_in, level_lengths, locations_in);
  Tensor out = empty_beside(value_in, {shape.batch, shape.queries, shape.heads * shape.channels});
  if (out.numel() == 0) {
    return out;
  }
  const ScalarType type = compute_type(value_in.scalar_type());
  const Tensor value = as_contiguous(value_in);
  const Tensor locations = prepare(locations_in, type);
  const Tensor weights = prepare(weights_in, type);
  const int64_t grain = forward_grain(shape);
  dispatch_float(value.scalar_type(), "deform_attn", "value", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = ComputeType<T>;
    const T* value_data = const_data<T>(value);
    const C* location_data = const_data<C>(locations);
    const C* weight_data = const_data<C>(weights);
    T* out_data = mutable_data<T>(out);
    const int64_t samples = shape.samples_per_query();
    const size_t bytes = TAL_FAST_ISA_CALL(deform_attn_scratch<T>)(shape);
    torch::stable::parallel_for(
        0, shape.batch * shape.queries, grain, [&](int64_t begin, int64_t end) {
          TAL_FAST_ISA_CALL(deform_attn_forward<T>)
          (shape, value_data, nullptr, location_data + begin * samples,
           weight_data + begin * samples, begin, end, cpu::Scratch(bytes).get(),
           out_data + begin * shape.heads * shape.channels);
        });
  });
  return out;
}

// Gradients for value, locations and weights, in the dtypes of these. A part that is not asked for
// comes back empty: locations and weights share their work, so they are asked for together.
std::tuple<Tensor, Tensor, Tensor> deform_attn_backward_cpu(
    const Tensor& grad_in,                      // [B, Q, H * D]
    const Tensor& value_in,                     // [B, S, H, D]
    const std::vector<int64_t>& level_lengths,  // [L]
    const Tensor& locations_in,                 // [B, Q, H, L, P]
    const Tensor& weights_in,                   // [B, Q, H, L, P]
    bool needs_value, bool needs_samples) {
  check_deform_attn(value_in, level_lengths, locations_in, weights_in);
  const DeformAttnShape shape = deform_attn_shape(value_in, level_lengths, locations_in);
  check_output_gradient("deform_attn_backward", grad_in, value_in, shape);
  const ScalarType type = compute_type(value_in.scalar_type());
  const std::vector<int64_t> value_shape{shape.batch, shape.rows, shape.heads, shape.channels};
  const std::vector<int64_t> sample_shape{shape.batch, shape.queries, shape.heads, shape.levels,
                                          shape.points};
  const std::vector<int64_t> none{0};
  // Zeros, not empty: with no query, channel or point the kernel below has nothing to write.
  const bool runs = shape.batch > 0 && shape.heads > 0 && (needs_value || needs_samples);
  Tensor grad_value = empty_beside(value_in, needs_value ? value_shape : none);
  Tensor grad_locations = empty_beside(value_in, needs_samples ? sample_shape : none, type);
  Tensor grad_weights = empty_beside(value_in, needs_samples ? sample_shape : none, type);
  if (runs) {
    const Tensor grad = as_contiguous(grad_in);
    const Tensor value = as_contiguous(value_in);
    const Tensor locations = prepare(locations_in, type);
    const Tensor weights = prepare(weights_in, type);
    dispatch_float(value.scalar_type(), "deform_attn_backward", "value", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = ComputeType<T>;
      run_backward<T>(shape, const_data<T>(grad), const_data<T>(value), nullptr,
                      const_data<C>(locations), const_data<C>(weights),
                      needs_value ? mutable_data<T>(grad_value) : nullptr,
                      needs_samples ? mutable_data<C>(grad_locations) : nullptr,
                      needs_samples ? mutable_data<C>(grad_weights) : nullptr);
    });
  }
  return {grad_value, prepare(grad_locations, locations_in.scalar_type()),
          prepare(grad_weights, weights_in.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "deform_attn(Tensor value, SymInt[] level_lengths, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "deform_attn_backward(Tensor grad, Tensor value, SymInt[] level_lengths, "
      "Tensor sampling_locations, Tensor attention_weights, bool needs_value, "
      "bool needs_samples) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("deform_attn", TORCH_BOX(&deform_attn_cpu));
  m.impl("deform_attn_backward", TORCH_BOX(&deform_attn_backward_cpu));
}

}  // namespace tal_fast
