// SPDX-License-Identifier: Apache-2.0
// dropout: schema and the CPU implementation. The random numbers are a function of (seed, element),
// so the backward draws them again instead of reading a stored mask.
//
// The seed is a number, drawn on the host, which costs no synchronisation. A captured CUDA graph
// keeps the numbers of its capture, so there a second seed comes from the device: `device_seed`,
// read when the kernel runs, is added to `seed` modulo 2^64.
#include "ops/dropout.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/dropout.h"

namespace tal_fast {
namespace {

constexpr int64_t kElementsPerTask = 65536;  // about 20 us

uint64_t whole_seed(int64_t seed, const std::optional<Tensor>& device_seed) {
  return static_cast<uint64_t>(seed) +
         (device_seed ? static_cast<uint64_t>(*const_data<int64_t>(*device_seed)) : 0);
}

Tensor dropout_cpu(const Tensor& x_in, double p, int64_t seed, bool relu,
                   const std::optional<Tensor>& residual_in,
                   const std::optional<Tensor>& device_seed) {
  TAL_FAST_CHECK(!(relu && residual_in), "dropout: expected relu or residual, got both");
  check_dropout(x_in, p, residual_in, "residual", device_seed);
  const Tensor x = as_contiguous(x_in);
  const std::optional<Tensor> residual = contiguous(residual_in);
  const uint64_t whole = whole_seed(seed, device_seed);
  Tensor out = empty_beside(x, sizes_of(x));
  dispatch_float(x.scalar_type(), "dropout", "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* x_data = const_data<T>(x);
    const T* residual_data = const_data<T>(residual);
    T* out_data = mutable_data<T>(out);
    torch::stable::parallel_for(0, x.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      TAL_FAST_ISA_CALL(dropout_forward<T>)(x_data, residual_data, relu, whole,
                                            dropout_threshold(p), dropout_scale<T>(p), begin, end,
                                            out_data);
    });
  });
  return out;
}

// `out` is the forward's result where it had relu.
Tensor dropout_backward_cpu(const Tensor& grad_in, const std::optional<Tensor>& out_in, double p,
                            int64_t seed, const std::optional<Tensor>& device_seed) {
  check_dropout(grad_in, p, out_in, "out", device_seed);
  const Tensor grad = as_contiguous(grad_in);
  const std::optional<Tensor> out = contiguous(out_in);
  const uint64_t whole = whole_seed(seed, device_seed);
  Tensor grad_x = empty_beside(grad, sizes_of(grad));
  dispatch_float(grad.scalar_type(), "dropout_backward", "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* grad_data = const_data<T>(grad);
    const T* out_data = const_data<T>(out);
    T* result = mutable_data<T>(grad_x);
    torch::stable::parallel_for(0, grad.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      TAL_FAST_ISA_CALL(dropout_backward<T>)(grad_data, out_data, whole, dropout_threshold(p),
                                             dropout_scale<T>(p), begin, end, result);
    });
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "dropout(Tensor x, float p, int seed, bool relu=False, Tensor? residual=None, "
      "Tensor? device_seed=None) -> Tensor");
  m.def(
      "dropout_backward(Tensor grad, Tensor? out, float p, int seed, Tensor? device_seed=None) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("dropout", TORCH_BOX(&dropout_cpu));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward_cpu));
}

}  // namespace tal_fast
