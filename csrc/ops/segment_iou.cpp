// SPDX-License-Identifier: Apache-2.0
// segment_iou: the template for new ops. This file has the schema and the CPU implementation:
// check, allocate, call the kernel on row ranges. The checks that all devices share are in
// ops/segment_iou.h, the CUDA implementation in cuda/segment_iou.cu. Fake, autograd and autocast
// are registered in tal_fast/ops/segment_iou.py beside the public function.
#include "cpu/segment_iou.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <functional>
#include <tuple>
#include <vector>

#include "cpu/huge_pages.h"
#include "ops/segment_iou.h"

namespace tal_fast {
namespace {

// b widened to the compute type, starts in row 0 and ends in row 1, with room for `padded`
// segments.
template <typename T>
Tensor split_starts_and_ends(const Tensor& b, int64_t padded) {  // [M, 2] -> [2, padded]
  const int64_t m = b.size(0);
  const ScalarType compute = compute_type(b.scalar_type());
  Tensor split = empty_beside(b, {2, padded}, compute);
  auto* data = mutable_data<ComputeType<T>>(split);
  TAL_FAST_ISA_CALL(segment_iou_split<T>)(const_data<T>(b), m, data, data + padded);
  for (auto* row : {data, data + padded}) {
    std::fill(row + m, row + padded, ComputeType<T>(0));
  }
  return split;
}

Tensor segment_iou_cpu(const Tensor& a_in,  // [N, 2]
                       const Tensor& b_in,  // [M, 2]
                       int64_t kind_number, bool aligned, double eps) {
  check_segment_iou(a_in, b_in, aligned, eps);
  const IouKind kind = parse_iou_kind(kind_number);
  const Tensor a = as_contiguous(a_in);
  const Tensor b = as_contiguous(b_in);
  const int64_t n = a.size(0);
  const int64_t m = b.size(0);
  Tensor out = aligned ? empty_beside(a, {n}) : empty_beside(a, {n, m});
  if (out.numel() == 0) {
    return out;
  }
  dispatch_float(a.scalar_type(), "segment_iou", "a", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto c_eps = static_cast<ComputeType<T>>(eps);
    const T* a_data = const_data<T>(a);
    T* out_data = mutable_data<T>(out);
    if (aligned) {
      const T* b_data = const_data<T>(b);
      torch::stable::parallel_for(0, n, kOverlapPairsPerTask, [&](int64_t begin, int64_t end) {
        TAL_FAST_ISA_CALL(segment_iou_aligned<T>)(kind, a_data, b_data, c_eps, begin, end,
                                                  out_data);
      });
      return;
    }
    cpu::advise_huge_pages(out_data, out.numel() * static_cast<int64_t>(sizeof(T)));
    const Tensor split = split_starts_and_ends<T>(b, m);
    const auto* starts = const_data<ComputeType<T>>(split);
    const int64_t grain = std::max<int64_t>(1, kOverlapPairsPerTask / m);
    torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
      TAL_FAST_ISA_CALL(segment_iou_pairwise<T>)(kind, a_data, starts, starts + m, m, c_eps, begin,
                                                 end, out_data);
    });
  });
  return out;
}

template <typename T>
void pairwise_backward(IouKind kind, const Tensor& grad, const Tensor& a, const Tensor& b,
                       double eps, T* grad_a, T* grad_b) {
  using C = ComputeType<T>;
  const int64_t n = a.size(0);
  const int64_t m = b.size(0);
  const int64_t padded = (m + cpu::kSegmentIouPadding<C> - 1) / cpu::kSegmentIouPadding<C> *
                         cpu::kSegmentIouPadding<C>;
  const Tensor split = split_starts_and_ends<T>(b, padded);
  const C* starts = const_data<C>(split);
  const T* grad_data = const_data<T>(grad);
  const T* a_data = const_data<T>(a);
  const auto run = [&](int64_t begin, int64_t end, C* part) {
    TAL_FAST_ISA_CALL(segment_iou_pairwise_backward<T>)(
        kind, grad_data, grad.stride(0), grad.stride(1), a_data, starts, starts + padded, m,
        static_cast<C>(eps), begin, end, grad_a, part, part == nullptr ? nullptr : part + padded);
  };
  const int64_t grain = std::max<int64_t>(1, kOverlapPairsPerTask / m);
  if (grad_b == nullptr) {
    torch::stable::parallel_for(0, n, grain,
                                [&](int64_t begin, int64_t end) { run(begin, end, nullptr); });
    return;
  }
  const auto [rows, num_parts] = overlap_parts(n, m);
  std::vector<C> parts(static_cast<size_t>(num_parts * 2 * padded), C(0));
  torch::stable::parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<C> tile(static_cast<size_t>(2 * padded));
    for (int64_t p = begin; p < end; ++p) {
      C* part = parts.data() + p * 2 * padded;
      const int64_t last = std::min(n, (p + 1) * rows);
      for (int64_t first = p * rows; first < last; first += kOverlapTile) {
        std::fill(tile.begin(), tile.end(), C(0));
        run(first, std::min(last, first + kOverlapTile), tile.data());
        std::transform(tile.begin(), tile.end(), part, part, std::plus<C>());
      }
    }
  });
  TAL_FAST_ISA_CALL(segment_iou_join<T>)(parts.data(), num_parts, m, padded, grad_b);
}

// The gradients for a and for b; one that is not asked for comes back without rows.
std::tuple<Tensor, Tensor> segment_iou_backward_cpu(
    const Tensor& grad,  // [N, M], or [N] when aligned; any strides
    const Tensor& a_in,  // [N, 2]
    const Tensor& b_in,  // [M, 2]
    int64_t kind_number, bool aligned, double eps, bool for_a, bool for_b) {
  check_segment_iou(a_in, b_in, aligned, eps);
  const IouKind kind = parse_iou_kind(kind_number);
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
  Tensor grad_a = empty_beside(a, {rows_a, 2});
  Tensor grad_b = empty_beside(b, {rows_b, 2});
  if (!for_a && !for_b) {
    return {grad_a, grad_b};
  }
  dispatch_float(a.scalar_type(), "segment_iou_backward", "a", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* a_out = for_a ? mutable_data<T>(grad_a) : nullptr;
    T* b_out = for_b ? mutable_data<T>(grad_b) : nullptr;
    if (!aligned) {
      return pairwise_backward<T>(kind, grad, a, b, eps, a_out, b_out);
    }
    const T* grad_data = const_data<T>(grad);
    const T* a_data = const_data<T>(a);
    const T* b_data = const_data<T>(b);
    torch::stable::parallel_for(0, n, kOverlapPairsPerTask, [&](int64_t begin, int64_t end) {
      TAL_FAST_ISA_CALL(segment_iou_aligned_backward<T>)(kind, grad_data, grad.stride(0), a_data,
                                                         b_data, static_cast<ComputeType<T>>(eps),
                                                         begin, end, a_out, b_out);
    });
  });
  return {grad_a, grad_b};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "segment_iou(Tensor a, Tensor b, int kind=0, bool aligned=False, float eps=0.0) -> "
      "Tensor");
  m.def(
      "segment_iou_backward(Tensor grad, Tensor a, Tensor b, int kind, bool aligned, float eps, "
      "bool for_a, bool for_b) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("segment_iou", TORCH_BOX(&segment_iou_cpu));
  m.impl("segment_iou_backward", TORCH_BOX(&segment_iou_backward_cpu));
}

}  // namespace tal_fast
