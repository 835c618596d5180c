// SPDX-License-Identifier: Apache-2.0
// boundary_max_pool on a GPU. Positions are on the GPU, so one that is no number cannot be refused
// without waiting for it: its maxima are NaN.
#include "cuda/boundary_max_pool.cuh"

#include <algorithm>
#include <tuple>

#include "cuda/launch.h"
#include "ops/boundary_max_pool.h"

namespace tal_fast {
namespace {

// Shared memory that leaves room for three blocks per multiprocessor.
constexpr int64_t kSharedBudget = 72 * 1024;

PositionType position_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return PositionType::kFloat;
    case ScalarType::Double:
      return PositionType::kDouble;
    case ScalarType::Int:
      return PositionType::kInt;
    default:
      return PositionType::kLong;
  }
}

struct Pooling {
  PoolStrides strides;
  int64_t batch;
  int64_t channels;
  int64_t rows;
  int64_t count;
  const Tensor& segments;  // contiguous
};

template <typename T>
bool rows_in_packs(const T* features, const Pooling& p) {
  constexpr int64_t kWidth = kPackSize<T>;
  return p.strides.row == 1 && p.rows % kWidth == 0 && p.strides.channel % kWidth == 0 &&
         p.strides.batch % kWidth == 0 && reinterpret_cast<uintptr_t>(features) % 16 == 0;
}

template <typename Kernel, typename T>
void launch_forward(const DeviceScope& scope, const DeviceLimits& limits, const T* features,
                    const Pooling& p, int kGroup, T* out, int32_t* argmax) {
  const int64_t groups = ceil_div(p.channels / 2, kGroup);
  const int64_t blocks = p.batch * 2 * groups;
  // Few channels: several blocks share the segments.
  const int64_t parts =
      std::min(ceil_div(p.count, Kernel::kSegments), ceil_div(limits.multiprocessors, blocks));
  launch(scope, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)), Kernel::kThreads,
         Kernel::shared_size(p.rows).bytes(),
         Kernel{features, p.strides, rows_in_packs(features, p), p.segments.const_data_ptr(),
                position_type(p.segments.scalar_type()), p.channels / 2, groups, p.rows, p.count,
                out, argmax});
}

// Maxima over features of any strides; `out` or `argmax` may be null.
template <typename T>
void pool(const DeviceScope& scope, const T* features, const Pooling& p, T* out, int32_t* argmax) {
  const DeviceLimits limits = scope.limits();
  using Wide = BoundaryPoolForward<T, 32, true>;
  using Narrow = BoundaryPoolForward<T, 8, true>;
  using General = BoundaryPoolForward<T, 8, false>;
  const size_t wide = Wide::shared_size(p.rows).bytes();
  const int64_t wide_blocks = p.batch * 2 * ceil_div(p.channels / 2, 32);
  if (wide <= std::min<size_t>(limits.shared_per_block, kSharedBudget) &&
      wide_blocks >= limits.multiprocessors) {
    launch_forward<Wide>(scope, limits, features, p, 32, out, argmax);
  } else if (Narrow::shared_size(p.rows).bytes() <= limits.shared_per_block) {
    launch_forward<Narrow>(scope, limits, features, p, 8, out, argmax);
  } else {
    launch_forward<General>(scope, limits, features, p, 8, out, argmax);
  }
}

std::tuple<Tensor, Tensor> boundary_max_pool_cuda(const Tensor& features,     // [B, C, T]
                                                  const Tensor& segments_in,  // [B, K, 4]
                                                  bool with_argmax, bool afsd) {
  check_boundary_max_pool(features, segments_in, afsd);
  const DeviceScope scope(features);
  const Tensor segments = as_contiguous(segments_in);
  const int64_t batch = features.size(0);
  const int64_t channels = features.size(1);
  const int64_t rows = features.size(2);
  const int64_t count = segments.size(1);
  const Tensor out = allocate(features, {batch, channels, count});
  const Tensor argmax = with_argmax ? allocate(features, {batch, channels, count}, ScalarType::Int)
                                    : allocate(features, {0}, ScalarType::Int);
  dispatch_float(features.scalar_type(), "boundary_max_pool", "features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (out.numel() == 0) {
      return;
    }
    int32_t* where = with_argmax ? mutable_data<int32_t>(argmax) : nullptr;
    const PoolStrides strides{features.stride(0), features.stride(1), features.stride(2)};
    pool(scope, const_data<T>(features), {strides, batch, channels, rows, count, segments},
         mutable_data<T>(out), afsd ? nullptr : where);
    if (afsd && with_argmax) {
      // csrc/ops/boundary_max_pool.cpp says what the historic backward does.
      const Tensor flat = as_contiguous(features);
      pool<T>(scope, const_data<T>(flat),
              {{channels * count, count, 1}, batch, channels, count, count, segments}, nullptr,
              where);
    }
  });
  return {out, argmax};
}

// Rows of a block of the backward: what fits, and few enough that there is work for all
// multiprocessors.
template <typename Kernel>
int backward_slice(const DeviceLimits& limits, int64_t rows, int64_t groups) {
  const int64_t least = Kernel::kWarps;
  const auto fixed = static_cast<int64_t>(Kernel::shared_size(0).bytes());
  const int64_t per_row = Kernel::kStride * static_cast<int64_t>(sizeof(typename Kernel::C));
  const int64_t bytes = std::min(static_cast<int64_t>(limits.shared_per_block), kSharedBudget);
  const int64_t fitting = (bytes - fixed - 16) / per_row / least * least;
  const int64_t wanted = ceil_div(rows, ceil_div(limits.multiprocessors, groups));
  const int64_t slice = std::max<int64_t>(32, ceil_div(wanted, least) * least);
  return static_cast<int>(std::max(least, std::min(slice, fitting)));
}

Tensor boundary_max_pool_backward_cuda(const Tensor& grad_in,    // [B, C, K]
                                       const Tensor& argmax_in,  // [B, C, K]
                                       int64_t rows, bool afsd) {
  const int64_t stride = check_boundary_max_pool_gradient(grad_in, argmax_in, rows, afsd);
  const DeviceScope scope(grad_in);
  const Tensor grad = as_contiguous(grad_in);
  const Tensor argmax = as_contiguous(argmax_in);
  const int64_t channels = grad.size(0) * grad.size(1);
  const std::vector<int64_t> sizes{grad.size(0), grad.size(1), rows};
  const Tensor out = stride == rows ? allocate(grad, sizes) : torch::stable::new_zeros(grad, sizes);
  dispatch_float(grad.scalar_type(), "boundary_max_pool_backward", "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Kernel = BoundaryPoolBackward<T>;
    if (out.numel() == 0 || stride == 0) {
      return;
    }
    const int64_t groups = ceil_div(channels, kWarp);
    const int slice = backward_slice<Kernel>(scope.limits(), stride, groups);
    const int64_t slices = ceil_div(stride, slice);
    constexpr int kWidth = kPackSize<T>;
    launch(scope, dim3(static_cast<unsigned>(groups * slices)), Kernel::kThreads,
           Kernel::shared_size(slice).bytes(),
           Kernel{const_data<T>(grad), const_data<int32_t>(argmax), channels, grad.size(2), stride,
                  slice, slices, stride % kWidth == 0, mutable_data<T>(out)});
  });
  return out;
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("boundary_max_pool", TORCH_BOX(&boundary_max_pool_cuda));
  m.impl("boundary_max_pool_backward", TORCH_BOX(&boundary_max_pool_backward_cuda));
}

}  // namespace tal_fast
