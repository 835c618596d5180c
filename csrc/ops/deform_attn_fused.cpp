// SPDX-License-Identifier: Apache-2.0
// deform_attn_fused: schema and CPU implementation; checks are in ops/deform_attn_fused.h, fake and
// autograd in tal_fast/ops/deform_attn_fused.py.
#include "cpu/deform_attn_fused.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "ops/deform_attn_cpu.h"
#include "ops/deform_attn_fused.h"

namespace tal_fast {
namespace {

// Samples that the forward prepares at a time: their locations and weights stay in the first-level
// cache.
constexpr int64_t kSamplesPerStep = 1024;
// Samples per task of the passes before and after the backward, some 50 us.
constexpr int64_t kSamplesPerTask = 65536;

// The inputs in the types and layouts that the kernels read.
struct Inputs {
  Tensor value;      // [B, S, H, D], contiguous
  Tensor reference;  // [B, Q, L, 1 or 2] of the compute type
  Tensor offsets;    // [B, Q, H, L, P] of one type, whose compute type is the value's
  Tensor logits;     // [B, Q, H, L, P]
  std::optional<Tensor> padding_mask;

  Inputs(const Tensor& value_in, const Tensor& reference_in, const Tensor& offsets_in,
         const Tensor& logits_in, const std::optional<Tensor>& padding_mask_in)
      : value(as_contiguous(value_in)), padding_mask(padding_mask_in) {
    const ScalarType type = compute_type(value.scalar_type());
    const auto convert = [](const Tensor& tensor, ScalarType wanted) {
      return with_contiguous_queries(to_type(tensor, wanted));
    };
    const bool direct = offsets_in.scalar_type() == logits_in.scalar_type() &&
                        compute_type(offsets_in.scalar_type()) == type;
    reference = convert(reference_in, type);
    offsets = convert(offsets_in, direct ? offsets_in.scalar_type() : type);
    logits = convert(logits_in, direct ? logits_in.scalar_type() : type);
    if (padding_mask) {
      padding_mask = as_contiguous(*padding_mask);
    }
  }

  const bool* padding() const { return padding_mask ? const_data<bool>(*padding_mask) : nullptr; }

  template <typename In>
  cpu::DeformAttnProjection<In> projection() const {
    return {const_data<In>(offsets),
            offsets.stride(0),
            offsets.stride(1),
            const_data<In>(logits),
            logits.stride(0),
            logits.stride(1),
            const_data<ComputeType<In>>(reference),
            reference.stride(0),
            reference.stride(1),
            reference.size(3)};
  }
};

// Calls body(tag of the value's type, tag of the type of offsets and logits).
template <typename T, typename Body>
void dispatch_projection(const Inputs& inputs, Body&& body) {
  dispatch_float(inputs.offsets.scalar_type(), "deform_attn_fused", "sampling_offsets",
                 [&](auto tag) {
                   using In = typename decltype(tag)::type;
                   if constexpr (std::is_same_v<ComputeType<T>, ComputeType<In>>) {
                     body(TypeTag<T>{}, tag);
                   }
                 });
}

template <typename Body>
void dispatch(const Inputs& inputs, Body&& body) {
  dispatch_float(inputs.value.scalar_type(), "deform_attn_fused", "value", [&](auto tag) {
    dispatch_projection<typename decltype(tag)::type>(inputs, body);
  });
}

Tensor deform_attn_fused_cpu(const Tensor& value,                        // [B, S, H, D]
                             const std::vector<int64_t>& level_lengths,  // [L]
                             const Tensor& reference_points,             // [B, Q, L, 1 or 2]
                             const Tensor& sampling_offsets,             // [B, Q, H, L, P]
                             const Tensor& attention_logits,  // [B, Q, H, L, P] or [B, Q, H, L * P]
                             const std::optional<Tensor>& padding_mask) {  // [B, S]
  check_deform_attn_fused(value, level_lengths, reference_points, sampling_offsets,
                          attention_logits, padding_mask);
  const DeformAttnShape shape = deform_attn_shape(value, level_lengths, sampling_offsets);
  Tensor out = empty_beside(value, {shape.batch, shape.queries, shape.heads * shape.channels});
  if (out.numel() == 0) {
    return out;
  }
  const Inputs inputs(value, reference_points, sampling_offsets, attention_logits, padding_mask);
  const int64_t samples = shape.samples_per_query();
  const int64_t step = std::max<int64_t>(1, kSamplesPerStep / std::max<int64_t>(1, samples));
  dispatch(inputs, [&](auto value_tag, auto tag) {
    using T = typename decltype(value_tag)::type;
    using In = typename decltype(tag)::type;
    using C = ComputeType<T>;
    const T* value_data = const_data<T>(inputs.value);
    const cpu::DeformAttnProjection<In> projection = inputs.projection<In>();
    T* out_data = mutable_data<T>(out);
    const size_t bytes = TAL_FAST_ISA_CALL(deform_attn_scratch<T>)(shape);
    // Whole cache lines: what the forward lays out behind them begins on one.
    const size_t prepared = (static_cast<size_t>(step * samples) * sizeof(C) + 63) / 64 * 64;
    torch::stable::parallel_for(
        0, shape.batch * shape.queries, forward_grain(shape), [&](int64_t begin, int64_t end) {
          const cpu::Scratch memory(2 * prepared + bytes);
          std::byte* scratch = memory.get();
          C* locations = reinterpret_cast<C*>(scratch);
          C* weights = reinterpret_cast<C*>(scratch + prepared);
          for (int64_t first = begin; first < end; first += step) {
            const int64_t last = std::min(first + step, end);
            TAL_FAST_ISA_CALL(deform_attn_prepare<In>)
            (shape, projection, first, last, locations, weights);
            TAL_FAST_ISA_CALL(deform_attn_forward<T>)
            (shape, value_data, inputs.padding(), locations, weights, first, last,
             scratch + 2 * prepared, out_data + first * shape.heads * shape.channels);
          }
        });
  });
  return out;
}

// Gradients for value, reference points, offsets and logits, in their dtypes. What is not asked for
// comes back empty; offsets and logits share their work, so they are asked for together.
std::tuple<Tensor, Tensor, Tensor, Tensor> deform_attn_fused_backward_cpu(
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
  const Inputs inputs(value, reference_points, sampling_offsets, attention_logits, padding_mask);
  const ScalarType type = compute_type(value.scalar_type());
  const ScalarType projection_type = inputs.offsets.scalar_type();

  const auto empty_like = [&](const Tensor& tensor, bool wanted, ScalarType dtype) {
    return empty_beside(value, wanted ? sizes_of(tensor) : std::vector<int64_t>{0}, dtype);
  };
  Tensor grad_value = empty_like(value, needs_value, value.scalar_type());
  Tensor grad_reference = empty_like(reference_points, needs_reference, type);
  Tensor grad_offsets = empty_like(sampling_offsets, needs_projection, projection_type);
  Tensor grad_logits = empty_like(attention_logits, needs_projection, projection_type);
  const bool needs_samples = needs_reference || needs_projection;
  if (shape.batch > 0 && (needs_value || needs_samples)) {
    const Tensor grad = as_contiguous(grad_in);
    // The kernels replace locations and weights by their gradients and these by the projection's:
    // where the types agree, in the outputs themselves.
    const bool in_outputs = needs_projection && projection_type == type;
    const Tensor locations = in_outputs ? grad_offsets : empty_like(sampling_offsets, true, type);
    const Tensor by_weight =
        in_outputs ? grad_logits : empty_like(sampling_offsets, needs_samples, type);
    const Tensor weights = empty_like(sampling_offsets, true, type);
    dispatch(inputs, [&](auto value_tag, auto tag) {
      using T = typename decltype(value_tag)::type;
      using In = typename decltype(tag)::type;
      using C = ComputeType<T>;
      const cpu::DeformAttnProjection<In> projection = inputs.projection<In>();
      const int64_t samples = shape.samples_per_query();
      const int64_t units = shape.batch * shape.queries;
      const int64_t grain = kSamplesPerTask / std::max<int64_t>(1, samples) + 1;
      C* location_data = mutable_data<C>(locations);
      C* weight_data = mutable_data<C>(weights);
      C* by_weight_data = needs_samples ? mutable_data<C>(by_weight) : nullptr;
      torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
        TAL_FAST_ISA_CALL(deform_attn_prepare<In>)
        (shape, projection, begin, end, location_data + begin * samples,
         weight_data + begin * samples);
      });
      run_backward<T>(shape, const_data<T>(grad), const_data<T>(inputs.value), inputs.padding(),
                      location_data, weight_data,
                      needs_value ? mutable_data<T>(grad_value) : nullptr,
                      needs_samples ? location_data : nullptr, by_weight_data);
      if (needs_samples) {
        In* by_offset = needs_projection ? mutable_data<In>(grad_offsets) : nullptr;
        In* by_logit = needs_projection ? mutable_data<In>(grad_logits) : nullptr;
        C* by_reference = needs_reference ? mutable_data<C>(grad_reference) : nullptr;
        torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
          TAL_FAST_ISA_CALL(deform_attn_finish<In>)
          (shape, projection, begin, end, weight_data, location_data, by_weight_data, by_offset,
           by_logit, by_reference);
        });
      }
    });
  }
  return {grad_value, prepare(grad_reference, reference_points.scalar_type()),
          prepare(grad_offsets, sampling_offsets.scalar_type()),
          prepare(grad_logits, attention_logits.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "deform_attn_fused(Tensor value, SymInt[] level_lengths, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits, Tensor? padding_mask) -> Tensor");
  m.def(
      "deform_attn_fused_backward(Tensor grad, Tensor value, SymInt[] level_lengths, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "Tensor? padding_mask, bool needs_value, bool needs_reference, bool needs_projection) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("deform_attn_fused", TORCH_BOX(&deform_attn_fused_cpu));
  m.impl("deform_attn_fused_backward", TORCH_BOX(&deform_attn_fused_backward_cpu));
}

}  // namespace tal_fast
