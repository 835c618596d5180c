// SPDX-License-Identifier: Apache-2.0
// segment_iou on a GPU: the template for launchers. Check, allocate, choose the kernel, launch.
#include "cuda/segment_iou.cuh"

#include <algorithm>
#include <tuple>

#include "cuda/launch.h"
#include "ops/segment_iou.h"

namespace tal_fast {
namespace {

constexpr int64_t kMostRowsOfBlocks = 65535;  // the limit of gridDim.y

// Calls body(std::integral_constant<IouKind, kind>{}).
template <typename Body>
void dispatch_kind(IouKind kind, Body&& body) {
  switch (kind) {
    case IouKind::kIou:
      return body(std::integral_constant<IouKind, IouKind::kIou>{});
    case IouKind::kGiou:
      return body(std::integral_constant<IouKind, IouKind::kGiou>{});
    case IouKind::kDiou:
      return body(std::integral_constant<IouKind, IouKind::kDiou>{});
    case IouKind::kIoa:
      return body(std::integral_constant<IouKind, IouKind::kIoa>{});
  }
}

template <IouKind kind, typename T, int kWidth>
void launch_pairwise(const DeviceScope& scope, const Tensor& a, const Tensor& b, double eps,
                     const Tensor& out) {
  using Kernel = SegmentIouPairwise<kind, T, kWidth>;
  const int64_t n = a.size(0);
  const int64_t m = b.size(0);
  const int64_t packs = ceil_div(m, int64_t{kWidth});
  const int threads = static_cast<int>(
      std::min(ceil_div(packs, int64_t{kWarp}) * kWarp, int64_t{Kernel::kThreads}));
  const int64_t columns = ceil_div(packs, int64_t{threads});
  // Columns are read once for the rows of a block: as many as leave every multiprocessor its blocks
  // and none of them a block more than another, but few where threads are.
  constexpr int64_t kLeastRows = 8;
  const int64_t most_rows = threads == Kernel::kThreads ? 256 : 64;
  const int64_t at_once = int64_t{Kernel::kBlocks} * scope.limits().multiprocessors;
  const int64_t waves = ceil_div(columns * ceil_div(n, most_rows), at_once);
  const int64_t parts = std::clamp(waves * at_once / columns, int64_t{1}, ceil_div(n, kLeastRows));
  const dim3 grid(static_cast<unsigned>(columns),
                  static_cast<unsigned>(std::min(parts, kMostRowsOfBlocks)));
  launch(scope, grid, threads, Kernel::shared_bytes(threads),
         Kernel{const_data<T>(a), const_data<T>(b), n, m, static_cast<ComputeType<T>>(eps),
                mutable_data<T>(out)});
}

Tensor segment_iou_cuda(const Tensor& a_in,  // [N, 2]
                        const Tensor& b_in,  // [M, 2]
                        int64_t kind_number, bool aligned, double eps) {
  check_segment_iou(a_in, b_in, aligned, eps);
  const IouKind kind = parse_iou_kind(kind_number);
  const DeviceScope scope(a_in);
  const Tensor a = as_contiguous(a_in);
  const Tensor b = as_contiguous(b_in);
  const int64_t n = a.size(0);
  const int64_t m = b.size(0);
  const Tensor out = aligned ? allocate(a, {n}) : allocate(a, {n, m});
  if (out.numel() == 0) {
    return out;
  }
  dispatch_float(a.scalar_type(), "segment_iou", "a", [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_kind(kind, [&](auto kind_tag) {
      constexpr IouKind k = decltype(kind_tag)::value;
      if (aligned) {
        using Kernel = SegmentIouAligned<k, T>;
        launch(scope, dim3(static_cast<unsigned>(ceil_div(n, Kernel::kThreads))), Kernel::kThreads,
               0,
               Kernel{const_data<T>(a), const_data<T>(b), n, static_cast<ComputeType<T>>(eps),
                      mutable_data<T>(out)});
      } else if (m % kPackSize<T> == 0 &&
                 reinterpret_cast<uintptr_t>(b.const_data_ptr()) % 16 == 0) {
        launch_pairwise<k, T, kPackSize<T>>(scope, a, b, eps, out);
      } else {
        launch_pairwise<k, T, 1>(scope, a, b, eps, out);
      }
    });
  });
  return out;
}

template <IouKind kind, typename T>
void launch_pairwise_backward(const DeviceScope& scope, const Tensor& grad, const Tensor& a,
                              const Tensor& b, double eps, T* grad_a, T* grad_b) {
  using C = ComputeType<T>;
  using Kernel = SegmentIouPairwiseBackward<kind, T>;
  const int64_t n = a.size(0);
  const int64_t m = b.size(0);
  const int64_t num_tiles = ceil_div(n, kOverlapTile);
  const Tensor tiles =
      allocate(a, {grad_b != nullptr ? num_tiles : 0, 2, m}, compute_type(a.scalar_type()));
  C* tiles_data = grad_b != nullptr ? mutable_data<C>(tiles) : nullptr;
  launch(scope, dim3(static_cast<unsigned>(num_tiles)), Kernel::kThreads, Kernel::shared_bytes(),
         Kernel{const_data<T>(grad), grad.stride(0), grad.stride(1), const_data<T>(a),
                const_data<T>(b), n, m, static_cast<C>(eps), grad_a, tiles_data});
  if (grad_b == nullptr) {
    return;
  }
  const auto [rows, num_parts] = overlap_parts(n, m);
  launch(scope, dim3(static_cast<unsigned>(ceil_div(2 * m, kWarp))),
         kWarp * static_cast<int>(num_parts), SegmentIouJoin<T>::shared_bytes(),
         SegmentIouJoin<T>{tiles_data, num_tiles, rows / kOverlapTile, static_cast<int>(num_parts),
                           m, grad_b});
}

std::tuple<Tensor, Tensor> segment_iou_backward_cuda(
    const Tensor& grad,  // [N, M], or [N] when aligned; any strides
    const Tensor& a_in,  // [N, 2]
    const Tensor& b_in,  // [M, 2]
    int64_t kind_number, bool aligned, double eps, bool for_a, bool for_b) {
  check_segment_iou(a_in, b_in, aligned, eps);
  const IouKind kind = parse_iou_kind(kind_number);
  const DeviceScope scope(a_in);
  const Tensor a = as_contiguous(a_in);
  const Tensor b = as_contiguous(b_in);
  const int64_t n = a.size(0);
  const int64_t m = b.size(0);
  check_segment_iou_gradient(grad, a, b, aligned);
  const int64_t rows_a = for_a ? n : 0;
  const int64_t rows_b = for_b ? m : 0;
  if (n == 0 || m == 0) {
    return {torch::stable::new_zeros(a, {rows_a, 2}), torch::stable::new_zeros(b, {rows_b, 2})};
  }
  const Tensor grad_a = allocate(a, {rows_a, 2});
  const Tensor grad_b = allocate(b, {rows_b, 2});
  if (!for_a && !for_b) {
    return {grad_a, grad_b};
  }
  dispatch_float(a.scalar_type(), "segment_iou_backward", "a", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* a_out = for_a ? mutable_data<T>(grad_a) : nullptr;
    T* b_out = for_b ? mutable_data<T>(grad_b) : nullptr;
    dispatch_kind(kind, [&](auto kind_tag) {
      constexpr IouKind k = decltype(kind_tag)::value;
      if (!aligned) {
        return launch_pairwise_backward<k, T>(scope, grad, a, b, eps, a_out, b_out);
      }
      using Kernel = SegmentIouAlignedBackward<k, T>;
      launch(scope, dim3(static_cast<unsigned>(ceil_div(n, Kernel::kThreads))), Kernel::kThreads, 0,
             Kernel{const_data<T>(grad), grad.stride(0), const_data<T>(a), const_data<T>(b), n,
                    static_cast<ComputeType<T>>(eps), a_out, b_out});
    });
  });
  return {grad_a, grad_b};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("segment_iou", TORCH_BOX(&segment_iou_cuda));
  m.impl("segment_iou_backward", TORCH_BOX(&segment_iou_backward_cuda));
}

}  // namespace tal_fast
