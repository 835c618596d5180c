// SPDX-License-Identifier: Apache-2.0
// dropout: schema, checks and the CPU implementation. The random numbers are a function of (seed,
// element), so the backward draws them again instead of reading a stored mask.
#include "cpu/dropout.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>

#include "ops/tensor_checks.h"

namespace tal_fast {
namespace {

constexpr int64_t kElementsPerTask = 65536;  // about 20 us

uint64_t threshold_of(double p) {
  return static_cast<uint64_t>(std::llround(p * 4294967296.0));
}

void check_probability(double p) {
  TAL_FAST_CHECK(p >= 0 && p <= 1, "dropout: expected p in [0, 1], got ", p);
}

void check_like(const Tensor& tensor, const char* name, const Tensor& x) {
  bool same = tensor.dim() == x.dim() && tensor.scalar_type() == x.scalar_type();
  for (int64_t i = 0; same && i < x.dim(); ++i) {
    same = tensor.size(i) == x.size(i);
  }
  TAL_FAST_CHECK(same, "dropout: expected ", name, " of shape ", shape_string(x), " and dtype ",
                 dtype_string(x.scalar_type()), ", got ", shape_string(tensor), " and ",
                 dtype_string(tensor.scalar_type()));
}

Tensor dropout_cpu(const Tensor& x_in, double p, int64_t seed, bool relu,
                   const std::optional<Tensor>& residual_in) {
  check_probability(p);
  TAL_FAST_CHECK(!(relu && residual_in), "dropout: expected relu or residual, got both");
  const Tensor x = torch::stable::contiguous(x_in);
  std::optional<Tensor> residual;
  if (residual_in) {
    check_like(*residual_in, "residual", x);
    residual = torch::stable::contiguous(*residual_in);
  }
  Tensor out = torch::stable::empty_like(x);
  dispatch_float(x.scalar_type(), "dropout", "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto scale = static_cast<ComputeType<T>>(p < 1 ? 1.0 / (1.0 - p) : 0.0);
    const T* x_data = const_data<T>(x);
    const T* residual_data = residual ? const_data<T>(*residual) : nullptr;
    T* out_data = mutable_data<T>(out);
    torch::stable::parallel_for(0, x.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      TAL_FAST_ISA_CALL(dropout_forward<T>)(x_data, residual_data, relu,
                                            static_cast<uint64_t>(seed), threshold_of(p), scale,
                                            begin, end, out_data);
    });
  });
  return out;
}

// `out` is the forward's result where it had relu.
Tensor dropout_backward_cpu(const Tensor& grad_in, const std::optional<Tensor>& out_in, double p,
                            int64_t seed) {
  check_probability(p);
  const Tensor grad = torch::stable::contiguous(grad_in);
  std::optional<Tensor> out;
  if (out_in) {
    check_like(*out_in, "out", grad);
    out = torch::stable::contiguous(*out_in);
  }
  Tensor grad_x = torch::stable::empty_like(grad);
  dispatch_float(grad.scalar_type(), "dropout_backward", "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto scale = static_cast<ComputeType<T>>(p < 1 ? 1.0 / (1.0 - p) : 0.0);
    const T* grad_data = const_data<T>(grad);
    const T* out_data = out ? const_data<T>(*out) : nullptr;
    T* result = mutable_data<T>(grad_x);
    torch::stable::parallel_for(0, grad.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      TAL_FAST_ISA_CALL(dropout_backward<T>)(grad_data, out_data, static_cast<uint64_t>(seed),
                                             threshold_of(p), scale, begin, end, result);
    });
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def("dropout(Tensor x, float p, int seed, bool relu=False, Tensor? residual=None) -> Tensor");
  m.def("dropout_backward(Tensor grad, Tensor? out, float p, int seed) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("dropout", TORCH_BOX(&dropout_cpu));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward_cpu));
}

}  // namespace tal_fast
