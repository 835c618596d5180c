// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_iou.h"

namespace tal_fast {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// The comparisons are written so that they become one min or max instruction each. A NaN in a
// segment still gives NaN: it makes that segment's length, and with it the union, NaN.
template <typename C>
inline C smaller(C x, C y) {
  return x < y ? x : y;
}

template <typename C>
inline C larger(C x, C y) {
  return x > y ? x : y;
}

template <IouKind kind, typename C>
inline C overlap(C a_start, C a_end, C b_start, C b_end, C eps) {
  const C inner = larger(smaller(a_end, b_end) - larger(a_start, b_start), C(0));
  const C both = (a_end - a_start) + (b_end - b_start) - inner;
  const C iou = inner / (both + eps);
  if constexpr (kind == IouKind::kIou) {
    return iou;
  }
  const C hull = larger(a_end, b_end) - smaller(a_start, b_start);
  if constexpr (kind == IouKind::kGiou) {
    return iou - (hull - both) / (hull + eps);
  }
  const C distance = C(0.5) * ((a_start + a_end) - (b_start + b_end));
  return iou - (distance * distance) / (hull * hull + eps);
}

// Derivative of max(x, y) for x: 1, 0, or one half at a tie, as torch.maximum has it.
template <typename C>
inline C share(C x, C y) {
  return x > y ? C(1) : (x == y ? C(0.5) : C(0));
}

template <typename C>
struct SegmentGradient {
  C start;
  C end;
};

template <IouKind kind, typename C>
inline SegmentGradient<C> overlap_gradient(C a_start, C a_end, C b_start, C b_end, C eps) {
  const C raw = smaller(a_end, b_end) - larger(a_start, b_start);
  const C inner = larger(raw, C(0));
  const C both = (a_end - a_start) + (b_end - b_start) - inner;
  // Segments that just touch (raw == 0) still pull on each other, as torch's clamp has it.
  const C touching = raw >= C(0) ? C(1) : C(0);
  const C inner_by_start = -touching * share(a_start, b_start);
  const C inner_by_end = touching * share(b_end, a_end);
  const C both_by_start = C(-1) - inner_by_start;
  const C both_by_end = C(1) - inner_by_end;
  const C inverse = C(1) / (both + eps);
  const C ratio = inner * inverse;
  SegmentGradient<C> result{(inner_by_start - ratio * both_by_start) * inverse,
                            (inner_by_end - ratio * both_by_end) * inverse};
  if constexpr (kind == IouKind::kIou) {
    return result;
  }
  const C hull = larger(a_end, b_end) - smaller(a_start, b_start);
  const C hull_by_start = -share(b_start, a_start);
  const C hull_by_end = share(a_end, b_end);
  if constexpr (kind == IouKind::kGiou) {
    const C inverse_hull = C(1) / (hull + eps);
    const C empty = (hull - both) * inverse_hull;
    result.start -= (hull_by_start - both_by_start - empty * hull_by_start) * inverse_hull;
    result.end -= (hull_by_end - both_by_end - empty * hull_by_end) * inverse_hull;
    return result;
  }
  const C distance = C(0.5) * ((a_start + a_end) - (b_start + b_end));
  const C inverse_square = C(1) / (hull * hull + eps);
  const C penalty = distance * distance * inverse_square;
  result.start -= (distance - C(2) * penalty * hull * hull_by_start) * inverse_square;
  result.end -= (distance - C(2) * penalty * hull * hull_by_end) * inverse_square;
  return result;
}

template <IouKind kind, typename T>
void pairwise(const T* __restrict__ a, const ComputeType<T>* __restrict__ b_starts,
              const ComputeType<T>* __restrict__ b_ends, int64_t m, ComputeType<T> eps,
              int64_t row_begin, int64_t row_end, T* __restrict__ out) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    const ComputeType<T> start = widen(a[2 * i]);
    const ComputeType<T> end = widen(a[2 * i + 1]);
    T* __restrict__ row = out + i * m;
    for (int64_t j = 0; j < m; ++j) {
      row[j] = narrow<T>(overlap<kind>(start, end, b_starts[j], b_ends[j], eps));
    }
  }
}

template <IouKind kind, typename T>
void aligned(const T* __restrict__ a, const T* __restrict__ b, ComputeType<T> eps,
             int64_t row_begin, int64_t row_end, T* __restrict__ out) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    out[i] = narrow<T>(overlap<kind>(widen(a[2 * i]), widen(a[2 * i + 1]), widen(b[2 * i]),
                                     widen(b[2 * i + 1]), eps));
  }
}

template <IouKind kind, typename T>
void pairwise_backward(const T* __restrict__ grad, int64_t grad_row_stride,
                       int64_t grad_column_stride, const T* __restrict__ a,
                       const ComputeType<T>* __restrict__ b_starts,
                       const ComputeType<T>* __restrict__ b_ends, int64_t m, ComputeType<T> eps,
                       int64_t row_begin, int64_t row_end, T* __restrict__ grad_a) {
  using C = ComputeType<T>;
  for (int64_t i = row_begin; i < row_end; ++i) {
    const C start = widen(a[2 * i]);
    const C end = widen(a[2 * i + 1]);
    const T* __restrict__ row = grad + i * grad_row_stride;
    C sum_start = 0;
    C sum_end = 0;
    for (int64_t j = 0; j < m; ++j) {
      const C weight = widen(row[j * grad_column_stride]);
      const auto part = overlap_gradient<kind>(start, end, b_starts[j], b_ends[j], eps);
      sum_start += weight * part.start;
      sum_end += weight * part.end;
    }
    grad_a[2 * i] = narrow<T>(sum_start);
    grad_a[2 * i + 1] = narrow<T>(sum_end);
  }
}

template <IouKind kind, typename T>
void aligned_backward(const T* __restrict__ grad, int64_t grad_stride, const T* __restrict__ a,
                      const T* __restrict__ b, ComputeType<T> eps, int64_t row_begin,
                      int64_t row_end, T* __restrict__ grad_a) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    const ComputeType<T> weight = widen(grad[i * grad_stride]);
    const auto part = overlap_gradient<kind>(widen(a[2 * i]), widen(a[2 * i + 1]), widen(b[2 * i]),
                                             widen(b[2 * i + 1]), eps);
    grad_a[2 * i] = narrow<T>(weight * part.start);
    grad_a[2 * i + 1] = narrow<T>(weight * part.end);
  }
}

}  // namespace

// The kind becomes a template argument here, outside every loop.
#define TAL_FAST_BY_KIND(function, ...)                \
  switch (kind) {                                      \
    case IouKind::kIou:                                \
      return function<IouKind::kIou, T>(__VA_ARGS__);  \
    case IouKind::kGiou:                               \
      return function<IouKind::kGiou, T>(__VA_ARGS__); \
    case IouKind::kDiou:                               \
      return function<IouKind::kDiou, T>(__VA_ARGS__); \
  }

template <typename T>
void segment_iou_split(const T* b, int64_t m, ComputeType<T>* b_starts, ComputeType<T>* b_ends) {
  for (int64_t j = 0; j < m; ++j) {
    b_starts[j] = widen(b[2 * j]);
    b_ends[j] = widen(b[2 * j + 1]);
  }
}

template <typename T>
void segment_iou_pairwise(IouKind kind, const T* a, const ComputeType<T>* b_starts,
                          const ComputeType<T>* b_ends, int64_t m, ComputeType<T> eps,
                          int64_t row_begin, int64_t row_end, T* out) {
  TAL_FAST_BY_KIND(pairwise, a, b_starts, b_ends, m, eps, row_begin, row_end, out)
}

template <typename T>
void segment_iou_aligned(IouKind kind, const T* a, const T* b, ComputeType<T> eps,
                         int64_t row_begin, int64_t row_end, T* out) {
  TAL_FAST_BY_KIND(aligned, a, b, eps, row_begin, row_end, out)
}

template <typename T>
void segment_iou_pairwise_backward(IouKind kind, const T* grad, int64_t grad_row_stride,
                                   int64_t grad_column_stride, const T* a,
                                   const ComputeType<T>* b_starts, const ComputeType<T>* b_ends,
                                   int64_t m, ComputeType<T> eps, int64_t row_begin,
                                   int64_t row_end, T* grad_a) {
  TAL_FAST_BY_KIND(pairwise_backward, grad, grad_row_stride, grad_column_stride, a, b_starts,
                   b_ends, m, eps, row_begin, row_end, grad_a)
}

template <typename T>
void segment_iou_aligned_backward(IouKind kind, const T* grad, int64_t grad_stride, const T* a,
                                  const T* b, ComputeType<T> eps, int64_t row_begin,
                                  int64_t row_end, T* grad_a){
    TAL_FAST_BY_KIND(aligned_backward, grad, grad_stride, a, b, eps, row_begin, row_end, grad_a)}

#define TAL_FAST_INSTANTIATE(T)                                                                  \
  template void segment_iou_split<T>(const T*, int64_t, ComputeType<T>*, ComputeType<T>*);       \
  template void segment_iou_pairwise<T>(IouKind, const T*, const ComputeType<T>*,                \
                                        const ComputeType<T>*, int64_t, ComputeType<T>, int64_t, \
                                        int64_t, T*);                                            \
  template void segment_iou_aligned<T>(IouKind, const T*, const T*, ComputeType<T>, int64_t,     \
                                       int64_t, T*);                                             \
  template void segment_iou_pairwise_backward<T>(IouKind, const T*, int64_t, int64_t, const T*,  \
                                                 const ComputeType<T>*, const ComputeType<T>*,   \
                                                 int64_t, ComputeType<T>, int64_t, int64_t, T*); \
  template void segment_iou_aligned_backward<T>(IouKind, const T*, int64_t, const T*, const T*,  \
                                                ComputeType<T>, int64_t, int64_t, T*);
TAL_FAST_INSTANTIATE(double) TAL_FAST_INSTANTIATE(float) TAL_FAST_INSTANTIATE(Half)
    TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast
