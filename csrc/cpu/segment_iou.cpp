// SPDX-License-Identifier: Apache-2.0
// The loops are compiled for the compute types, float and double. What is stored in 16 bits is
// widened before and rounded after, a row at a time: the same bits, and half of the code.
#include "cpu/segment_iou.h"

#include <type_traits>

#include "cpu/buffer.h"
#include "cpu/simd.h"
#include "math/segment_overlap.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

template <IouKind kind, typename C>
void pairwise(const C* __restrict__ a, const C* __restrict__ b_starts, const C* __restrict__ b_ends,
              int64_t m, C eps, int64_t row_begin, int64_t row_end, C* __restrict__ out) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    const C start = a[2 * i];
    const C end = a[2 * i + 1];
    C* __restrict__ row = out + i * m;
    for (int64_t j = 0; j < m; ++j) {
      row[j] = overlap<kind>(start, end, b_starts[j], b_ends[j], eps);
    }
  }
}

template <IouKind kind, typename C>
void aligned(const C* __restrict__ a, const C* __restrict__ b, C eps, int64_t row_begin,
             int64_t row_end, C* __restrict__ out) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    out[i] = overlap<kind>(a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1], eps);
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
template <int kLanes, typename C>
inline Vector<C, kLanes> load_strided(const C* source, int64_t stride, int64_t count) {
  if (stride == 1 && count == kLanes) {
    return load<kLanes>(source);
  }
  Vector<C, kLanes> result{};
  for (int64_t i = 0; i < count; ++i) {
    result[i] = source[i * stride];
  }
  return result;
}

template <IouKind kind, typename C, bool kForB>
void pairwise_backward(const C* __restrict__ grad, int64_t grad_row_stride,
                       int64_t grad_column_stride, const C* __restrict__ a,
                       const C* __restrict__ b_starts, const C* __restrict__ b_ends, int64_t m,
                       C eps, int64_t row_begin, int64_t row_end, C* __restrict__ grad_a,
                       C* __restrict__ grad_b_starts, C* __restrict__ grad_b_ends) {
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
    const V start = a[2 * i] - zero;
    const V end = a[2 * i + 1] - zero;
    const C* __restrict__ row = grad + i * grad_row_stride;
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
        sums_start[v] += part.a_start;
        sums_end[v] += part.a_end;
        if constexpr (kForB) {
          store<kLanes>(grad_b_starts + j, load<kLanes>(grad_b_starts + j) + part.b_start);
          store<kLanes>(grad_b_ends + j, load<kLanes>(grad_b_ends + j) + part.b_end);
        }
      }
    }
    if (grad_a != nullptr) {
      C lanes[kSumLanes<C>];
      std::memcpy(lanes, sums_start, sizeof(lanes));
      grad_a[2 * i] = sum_of_lanes(lanes);
      std::memcpy(lanes, sums_end, sizeof(lanes));
      grad_a[2 * i + 1] = sum_of_lanes(lanes);
    }
  }
}

template <IouKind kind, typename C>
void aligned_backward(const C* __restrict__ grad, int64_t grad_stride, const C* __restrict__ a,
                      const C* __restrict__ b, C eps, int64_t row_begin, int64_t row_end,
                      C* __restrict__ grad_a, C* __restrict__ grad_b) {
  for (int64_t i = row_begin; i < row_end; ++i) {
    const C weight = grad[i * grad_stride];
    const auto part =
        overlap_gradient<kind, C, C>(a[2 * i], a[2 * i + 1], b[2 * i], b[2 * i + 1], eps);
    if (grad_a != nullptr) {
      grad_a[2 * i] = weight * part.a_start;
      grad_a[2 * i + 1] = weight * part.a_end;
    }
    if (grad_b != nullptr) {
      grad_b[2 * i] = weight * part.b_start;
      grad_b[2 * i + 1] = weight * part.b_end;
    }
  }
}

template <typename T, typename C = ComputeType<T>>
void widen_strided(const T* source, int64_t stride, int64_t count, C* target) {
  if (stride == 1) {
    widen_row(source, count, target);
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    target[j] = widen(source[j * stride]);
  }
}

template <typename T>
constexpr bool kWidened = !std::is_same_v<T, ComputeType<T>>;

// Pairs that the aligned forms widen at once.
constexpr int64_t kPairs = 256;

}  // namespace

// The kind becomes a template argument here, outside every loop.
#define TAL_FAST_OF_KIND(function, ...)                              \
  (kind == IouKind::kIou    ? &function<IouKind::kIou, __VA_ARGS__>  \
   : kind == IouKind::kGiou ? &function<IouKind::kGiou, __VA_ARGS__> \
   : kind == IouKind::kDiou ? &function<IouKind::kDiou, __VA_ARGS__> \
                            : &function<IouKind::kIoa, __VA_ARGS__>)

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
  using C = ComputeType<T>;
  const auto run = TAL_FAST_OF_KIND(pairwise, C);
  if constexpr (kWidened<T>) {
    Buffer<C> row(m);
    for (int64_t i = row_begin; i < row_end; ++i) {
      const C segment[2] = {widen(a[2 * i]), widen(a[2 * i + 1])};
      run(segment, b_starts, b_ends, m, eps, 0, 1, row.data());
      narrow_row(row.data(), m, out + i * m);
    }
  } else {
    run(a, b_starts, b_ends, m, eps, row_begin, row_end, out);
  }
}

template <typename T>
void segment_iou_aligned(IouKind kind, const T* a, const T* b, ComputeType<T> eps,
                         int64_t row_begin, int64_t row_end, T* out) {
  using C = ComputeType<T>;
  const auto run = TAL_FAST_OF_KIND(aligned, C);
  if constexpr (kWidened<T>) {
    C wide_a[2 * kPairs];
    C wide_b[2 * kPairs];
    C overlaps[kPairs];
    for (int64_t i = row_begin; i < row_end; i += kPairs) {
      const int64_t some = kPairs < row_end - i ? kPairs : row_end - i;
      widen_row(a + 2 * i, 2 * some, wide_a);
      widen_row(b + 2 * i, 2 * some, wide_b);
      run(wide_a, wide_b, eps, 0, some, overlaps);
      narrow_row(overlaps, some, out + i);
    }
  } else {
    run(a, b, eps, row_begin, row_end, out);
  }
}

template <typename T>
void segment_iou_pairwise_backward(IouKind kind, const T* grad, int64_t grad_row_stride,
                                   int64_t grad_column_stride, const T* a,
                                   const ComputeType<T>* b_starts, const ComputeType<T>* b_ends,
                                   int64_t m, ComputeType<T> eps, int64_t row_begin,
                                   int64_t row_end, T* grad_a, ComputeType<T>* grad_b_starts,
                                   ComputeType<T>* grad_b_ends) {
  using C = ComputeType<T>;
  const auto run = grad_b_starts == nullptr ? TAL_FAST_OF_KIND(pairwise_backward, C, false)
                                            : TAL_FAST_OF_KIND(pairwise_backward, C, true);
  if constexpr (kWidened<T>) {
    Buffer<C> row(m);
    for (int64_t i = row_begin; i < row_end; ++i) {
      const C segment[2] = {widen(a[2 * i]), widen(a[2 * i + 1])};
      C by_a[2];
      widen_strided(grad + i * grad_row_stride, grad_column_stride, m, row.data());
      run(row.data(), m, 1, segment, b_starts, b_ends, m, eps, 0, 1, by_a, grad_b_starts,
          grad_b_ends);
      if (grad_a != nullptr) {
        narrow_row(by_a, 2, grad_a + 2 * i);
      }
    }
  } else {
    run(grad, grad_row_stride, grad_column_stride, a, b_starts, b_ends, m, eps, row_begin, row_end,
        grad_a, grad_b_starts, grad_b_ends);
  }
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
                                  int64_t row_end, T* grad_a, T* grad_b) {
  using C = ComputeType<T>;
  const auto run = TAL_FAST_OF_KIND(aligned_backward, C);
  if constexpr (kWidened<T>) {
    C wide_grad[kPairs];
    C wide_a[2 * kPairs];
    C wide_b[2 * kPairs];
    C by_a[2 * kPairs];
    C by_b[2 * kPairs];
    for (int64_t i = row_begin; i < row_end; i += kPairs) {
      const int64_t some = kPairs < row_end - i ? kPairs : row_end - i;
      widen_strided(grad + i * grad_stride, grad_stride, some, wide_grad);
      widen_row(a + 2 * i, 2 * some, wide_a);
      widen_row(b + 2 * i, 2 * some, wide_b);
      run(wide_grad, 1, wide_a, wide_b, eps, 0, some, by_a, by_b);
      if (grad_a != nullptr) {
        narrow_row(by_a, 2 * some, grad_a + 2 * i);
      }
      if (grad_b != nullptr) {
        narrow_row(by_b, 2 * some, grad_b + 2 * i);
      }
    }
  } else {
    run(grad, grad_stride, a, b, eps, row_begin, row_end, grad_a, grad_b);
  }
}

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
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
