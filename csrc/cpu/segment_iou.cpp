// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_iou.h"

#include "cpu/simd.h"
#include "math/segment_overlap.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

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

template <typename C>
constexpr int kSumLanes = kOverlapLanes<C>;

template <typename C>
inline C sum_of_lanes(C* lanes) {  // [kSumLanes], overwritten
  for (int half = kSumLanes<C> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}

// The first `count` <= kLanes values from `source`, a stride apart; zero in the other lanes.
template <int kLanes, typename T>
inline Vector<ComputeType<T>, kLanes> load_strided(const T* source, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) {
    return load<kLanes>(source);
  }
  Vector<ComputeType<T>, kLanes> result{};
  for (int64_t i = 0; i < count; ++i) {
    result[i] = widen(source[i * stride]);
  }
  return result;
}

template <IouKind kind, bool kForA, bool kForB, typename T>
void pairwise_backward(const T* __restrict__ grad, int64_t grad_row_stride,
                       int64_t grad_column_stride, const T* __restrict__ a,
                       const ComputeType<T>* __restrict__ b_starts,
                       const ComputeType<T>* __restrict__ b_ends, int64_t m, ComputeType<T> eps,
                       int64_t row_begin, int64_t row_end, T* __restrict__ grad_a,
                       ComputeType<T>* __restrict__ grad_b_starts,
                       ComputeType<T>* __restrict__ grad_b_ends) {
  using C = ComputeType<T>;
  constexpr int kLanes = kFullLanes<C>;
  constexpr int kVectors = kSumLanes<C> / kLanes;
  using V = Vector<C, kLanes>;
  V lane_index;
  for (int l = 0; l < kLanes; ++l) {
    lane_index[l] = static_cast<C>(l);
  }
  const V zero{};
  const V eps_lanes = eps - zero;
  for (int64_t i = row_begin; i < row_end; ++i) {
    const V start = widen(a[2 * i]) - zero;
    const V end = widen(a[2 * i + 1]) - zero;
    const T* __restrict__ row = grad + i * grad_row_stride;
    V sums_start[kVectors] = {};
    V sums_end[kVectors] = {};
    for (int64_t first = 0; first < m; first += kSumLanes<C>) {
      for (int v = 0; v < kVectors; ++v) {
        const int64_t j = first + v * kLanes;
        const int64_t left = m - j;
        if (left <= 0) {
          break;
        }
        const bool whole = left >= kLanes;
        const V weight = load_strided<kLanes>(row + j * grad_column_stride, grad_column_stride,
                                              whole ? int64_t{kLanes} : left);
        PairGradient<V> part = overlap_gradient<kind, C, V>(start, end, load<kLanes>(b_starts + j),
                                                            load<kLanes>(b_ends + j), eps_lanes);
        part.a_start *= weight;
        part.a_end *= weight;
        part.b_start *= weight;
        part.b_end *= weight;
        if (!whole) {  // the padding of b takes no part, whatever came out for it
          const auto inside = lane_index < static_cast<C>(left) - zero;
          part.a_start = inside ? part.a_start : zero;
          part.a_end = inside ? part.a_end : zero;
          part.b_start = inside ? part.b_start : zero;
          part.b_end = inside ? part.b_end : zero;
        }
        if constexpr (kForA) {
          sums_start[v] += part.a_start;
          sums_end[v] += part.a_end;
        }
        if constexpr (kForB) {
          store<kLanes>(grad_b_starts + j, load<kLanes>(grad_b_starts + j) + part.b_start);
          store<kLanes>(grad_b_ends + j, load<kLanes>(grad_b_ends + j) + part.b_end);
        }
      }
    }
    if constexpr (kForA) {
      C lanes[kSumLanes<C>];
      std::memcpy(lanes, sums_start, sizeof(lanes));
      grad_a[2 * i] = narrow<T>(sum_of_lanes(lanes));
      std::memcpy(lanes, sums_end, sizeof(lanes));
      grad_a[2 * i + 1] = narrow<T>(sum_of_lanes(lanes));
    }
  }
}

template <IouKind kind, typename T>
void pairwise_backward_for(const T* grad, int64_t grad_row_stride, int64_t grad_column_stride,
                           const T* a, const ComputeType<T>* b_starts, const ComputeType<T>* b_ends,
                           int64_t m, ComputeType<T> eps, int64_t row_begin, int64_t row_end,
                           T* grad_a, ComputeType<T>* grad_b_starts, ComputeType<T>* grad_b_ends) {
  const auto run = grad_b_starts == nullptr ? &pairwise_backward<kind, true, false, T>
                   : grad_a == nullptr      ? &pairwise_backward<kind, false, true, T>
                                            : &pairwise_backward<kind, true, true, T>;
  run(grad, grad_row_stride, grad_column_stride, a, b_starts, b_ends, m, eps, row_begin, row_end,
      grad_a, grad_b_starts, grad_b_ends);
}

template <IouKind kind, typename T>
void aligned_backward(const T* __restrict__ grad, int64_t grad_stride, const T* __restrict__ a,
                      const T* __restrict__ b, ComputeType<T> eps, int64_t row_begin,
                      int64_t row_end, T* __restrict__ grad_a, T* __restrict__ grad_b) {
  using C = ComputeType<T>;
  for (int64_t i = row_begin; i < row_end; ++i) {
    const C weight = widen(grad[i * grad_stride]);
    const auto part = overlap_gradient<kind, C, C>(widen(a[2 * i]), widen(a[2 * i + 1]),
                                                   widen(b[2 * i]), widen(b[2 * i + 1]), eps);
    if (grad_a != nullptr) {
      grad_a[2 * i] = narrow<T>(weight * part.a_start);
      grad_a[2 * i + 1] = narrow<T>(weight * part.a_end);
    }
    if (grad_b != nullptr) {
      grad_b[2 * i] = narrow<T>(weight * part.b_start);
      grad_b[2 * i + 1] = narrow<T>(weight * part.b_end);
    }
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
    case IouKind::kIoa:                                \
      return function<IouKind::kIoa, T>(__VA_ARGS__);  \
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
                                   int64_t row_end, T* grad_a, ComputeType<T>* grad_b_starts,
                                   ComputeType<T>* grad_b_ends) {
  TAL_FAST_BY_KIND(pairwise_backward_for, grad, grad_row_stride, grad_column_stride, a, b_starts,
                   b_ends, m, eps, row_begin, row_end, grad_a, grad_b_starts, grad_b_ends)
}

template <typename T>
void segment_iou_join(const ComputeType<T>* parts, int64_t num_parts, int64_t m, int64_t padded_m,
                      T* grad_b) {
  using C = ComputeType<T>;
  for (int64_t j = 0; j < m; ++j) {
    C start = 0;
    C end = 0;
    for (int64_t p = 0; p < num_parts; ++p) {
      start += parts[2 * p * padded_m + j];
      end += parts[(2 * p + 1) * padded_m + j];
    }
    grad_b[2 * j] = narrow<T>(start);
    grad_b[2 * j + 1] = narrow<T>(end);
  }
}

template <typename T>
void segment_iou_aligned_backward(IouKind kind, const T* grad, int64_t grad_stride, const T* a,
                                  const T* b, ComputeType<T> eps, int64_t row_begin,
                                  int64_t row_end, T* grad_a, T* grad_b){
    TAL_FAST_BY_KIND(aligned_backward, grad, grad_stride, a, b, eps, row_begin, row_end, grad_a,
                     grad_b)}

#define TAL_FAST_INSTANTIATE(T)                                                                    \
  template void segment_iou_split<T>(const T*, int64_t, ComputeType<T>*, ComputeType<T>*);         \
  template void segment_iou_pairwise<T>(IouKind, const T*, const ComputeType<T>*,                  \
                                        const ComputeType<T>*, int64_t, ComputeType<T>, int64_t,   \
                                        int64_t, T*);                                              \
  template void segment_iou_aligned<T>(IouKind, const T*, const T*, ComputeType<T>, int64_t,       \
                                       int64_t, T*);                                               \
  template void segment_iou_pairwise_backward<T>(                                                  \
      IouKind, const T*, int64_t, int64_t, const T*, const ComputeType<T>*, const ComputeType<T>*, \
      int64_t, ComputeType<T>, int64_t, int64_t, T*, ComputeType<T>*, ComputeType<T>*);            \
  template void segment_iou_join<T>(const ComputeType<T>*, int64_t, int64_t, int64_t, T*);         \
  template void segment_iou_aligned_backward<T>(IouKind, const T*, int64_t, const T*, const T*,    \
                                                ComputeType<T>, int64_t, int64_t, T*, T*);
TAL_FAST_INSTANTIATE(double) TAL_FAST_INSTANTIATE(float) TAL_FAST_INSTANTIATE(Half)
    TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
