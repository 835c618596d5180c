// SPDX-License-Identifier: Apache-2.0
#include "cuda/dropout.cuh"

#include <initializer_list>
#include <vector>

#include "cuda/launch.h"
#include "ops/dropout.h"

namespace tal_fast {
namespace {

// Whether all of them (null: not there) may be read and written 16 bytes at a time. A view into a
// larger tensor may begin anywhere.
bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) {
      return false;
    }
  }
  return true;
}

Tensor allocate_like(const Tensor& x) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < x.dim(); ++i) {
    sizes.push_back(x.size(i));
  }
  return allocate(x, sizes);
}

template <typename Kernel>
void launch_over(const DeviceScope& scope, const Kernel& kernel) {
  const int64_t blocks = ceil_div(kernel.elements.n, Kernel::Elements::kPerBlock);
  launch(scope, dim3(static_cast<unsigned>(blocks)), Kernel::kThreads, 0, kernel);
}

Tensor dropout_cuda(const Tensor& x_in, double p, int64_t seed, bool relu,
                    const std::optional<Tensor>& residual_in,
                    const std::optional<Tensor>& device_seed) {
  TAL_FAST_CHECK(!(relu && residual_in), "dropout: expected relu or residual, got both");
  check_dropout(x_in, p, residual_in, "residual", device_seed);
  const DeviceScope scope(x_in);
  const Tensor x = as_contiguous(x_in);
  const std::optional<Tensor> residual = contiguous(residual_in);
  const Tensor out = allocate_like(x);
  dispatch_float(x.scalar_type(), "dropout", "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t n = x.numel();
    if (n == 0) {
      return;
    }
    const T* x_data = const_data<T>(x);
    const T* residual_data = const_data<T>(residual);
    T* out_data = mutable_data<T>(out);
    const auto run = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      launch_over(scope, DropoutForward<T, kWidth>{
                             x_data,
                             residual_data,
                             relu,
                             dropout_threshold(p),
                             dropout_scale<T>(p),
                             {static_cast<uint64_t>(seed), const_data<int64_t>(device_seed), n},
                             out_data});
    };
    if (aligned({x_data, residual_data, out_data})) {
      run(std::integral_constant<int, kPackSize<T>>{});
    } else {
      run(std::integral_constant<int, 1>{});
    }
  });
  return out;
}

Tensor dropout_backward_cuda(const Tensor& grad_in, const std::optional<Tensor>& out_in, double p,
                             int64_t seed, const std::optional<Tensor>& device_seed) {
  check_dropout(grad_in, p, out_in, "out", device_seed);
  const DeviceScope scope(grad_in);
  const Tensor grad = as_contiguous(grad_in);
  const std::optional<Tensor> out = contiguous(out_in);
  const Tensor grad_x = allocate_like(grad);
  dispatch_float(grad.scalar_type(), "dropout_backward", "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t n = grad.numel();
    if (n == 0) {
      return;
    }
    const T* grad_data = const_data<T>(grad);
    const T* out_data = const_data<T>(out);
    T* result = mutable_data<T>(grad_x);
    const auto run = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      launch_over(scope, DropoutBackward<T, kWidth>{
                             grad_data,
                             out_data,
                             dropout_threshold(p),
                             dropout_scale<T>(p),
                             {static_cast<uint64_t>(seed), const_data<int64_t>(device_seed), n},
                             result});
    };
    if (aligned({grad_data, out_data, result})) {
      run(std::integral_constant<int, kPackSize<T>>{});
    } else {
      run(std::integral_constant<int, 1>{});
    }
  });
  return grad_x;
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("dropout", TORCH_BOX(&dropout_cuda));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward_cuda));
}

}  // namespace tal_fast
