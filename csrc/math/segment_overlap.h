// SPDX-License-Identifier: Apache-2.0
// The overlap of two segments and its derivatives, in the order of operations that
// tal_fast/ops/segment_iou.py documents. Compile with -ffp-contract=off (nvcc: -fmad=false).
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include "math/host_device.h"

namespace tal_fast {

enum class IouKind { kIou = 0, kGiou = 1, kDiou = 2, kIoa = 3 };

// The pairwise backward adds in this order on every device, whatever its vectors and threads, so
// that every bit is the same on all of them. For a: in so many lanes over the columns, halved at
// the end. For b: the rows of a tile, the tiles of a part (ops/segment_iou.h), the parts.
template <typename C>
constexpr int kOverlapLanes = 64 / static_cast<int>(sizeof(C));
constexpr int kOverlapTile = 16;

namespace {

// V is C itself or a vector of C. The comparisons are written so that they become one min or max
// instruction each, and so that a NaN in y comes out.
template <typename V>
TAL_FAST_HD V smaller(V x, V y) {
  return x < y ? x : y;
}

template <typename V>
TAL_FAST_HD V larger(V x, V y) {
  return x > y ? x : y;
}

// How the overlap compares and divides. Another one (cuda/segment_iou_ordinary.cuh) has the same
// bits for less than all numbers.
struct PlainArithmetic {
  template <typename C>
  TAL_FAST_HD C smaller_of(C x, C y) const {
    return smaller(x, y);
  }
  template <typename C>
  TAL_FAST_HD C larger_of(C x, C y) const {
    return larger(x, y);
  }
  template <typename C>
  TAL_FAST_HD C ratio(C x, C y) const {
    return x / y;
  }
};

// A NaN in a segment gives NaN: one in b passes through every comparison, one in a makes its length
// NaN.
template <IouKind kind, typename Arithmetic = PlainArithmetic, typename C>
TAL_FAST_HD C overlap(C a_start, C a_end, C b_start, C b_end, C eps) {
  const Arithmetic by{};
  const C inner = by.larger_of(C(0), by.smaller_of(a_end, b_end) - by.larger_of(a_start, b_start));
  if constexpr (kind == IouKind::kIoa) {
    return by.ratio(inner, (a_end - a_start) + eps);
  }
  const C both = (a_end - a_start) + (b_end - b_start) - inner;
  const C iou = by.ratio(inner, both + eps);
  if constexpr (kind == IouKind::kIou) {
    return iou;
  }
  const C hull = by.larger_of(a_end, b_end) - by.smaller_of(a_start, b_start);
  if constexpr (kind == IouKind::kGiou) {
    return iou - by.ratio(hull - both, hull + eps);
  }
  // Squares leave the range of what is divided faster.
  const C distance = C(0.5) * ((a_start + a_end) - (b_start + b_end));
  return iou - (distance * distance) / (hull * hull + eps);
}

// Derivative of max(x, y) for x: 1, 0, or one half at a tie, as torch.maximum has it.
template <typename C, typename V>
TAL_FAST_HD V share(V x, V y) {
  const V zero{};
  return x > y ? C(1) - zero : (x == y ? C(0.5) - zero : zero);
}

template <typename V>
struct PairGradient {
  V a_start, a_end, b_start, b_end;
};

// The derivative for all four ends of a pair; what the caller does not use costs nothing.
template <IouKind kind, typename C, typename V>
TAL_FAST_HD PairGradient<V> overlap_gradient(V a_start, V a_end, V b_start, V b_end, V eps) {
  const V zero{};
  const V one = C(1) - zero;
  const V raw = smaller(a_end, b_end) - larger(a_start, b_start);
  const V inner = larger(zero, raw);
  // Segments that just touch (raw == 0) still pull on each other, as torch's clamp has it.
  const V touching = raw >= zero ? one : zero;
  const V starts_later = share<C>(a_start, b_start);  // how much of max(starts) is a's
  const V ends_earlier = share<C>(b_end, a_end);      // how much of min(ends) is a's
  const PairGradient<V> by_inner{-touching * starts_later, touching * ends_earlier,
                                 -touching * (one - starts_later), touching * (one - ends_earlier)};
  if constexpr (kind == IouKind::kIoa) {
    const V inverse = one / ((a_end - a_start) + eps);
    const V ratio = inner * inverse;
    return {(by_inner.a_start + ratio) * inverse, (by_inner.a_end - ratio) * inverse,
            by_inner.b_start * inverse, by_inner.b_end * inverse};
  }
  const V both = (a_end - a_start) + (b_end - b_start) - inner;
  const PairGradient<V> by_both{-one - by_inner.a_start, one - by_inner.a_end,
                                -one - by_inner.b_start, one - by_inner.b_end};
  const V inverse = one / (both + eps);
  const V ratio = inner * inverse;
  PairGradient<V> result{(by_inner.a_start - ratio * by_both.a_start) * inverse,
                         (by_inner.a_end - ratio * by_both.a_end) * inverse,
                         (by_inner.b_start - ratio * by_both.b_start) * inverse,
                         (by_inner.b_end - ratio * by_both.b_end) * inverse};
  if constexpr (kind == IouKind::kIou) {
    return result;
  }
  const V hull = larger(a_end, b_end) - smaller(a_start, b_start);
  const PairGradient<V> by_hull{starts_later - one, one - ends_earlier, -starts_later,
                                ends_earlier};
  if constexpr (kind == IouKind::kGiou) {
    const V inverse_hull = one / (hull + eps);
    const V filled = one - (hull - both) * inverse_hull;
    result.a_start -= (by_hull.a_start * filled - by_both.a_start) * inverse_hull;
    result.a_end -= (by_hull.a_end * filled - by_both.a_end) * inverse_hull;
    result.b_start -= (by_hull.b_start * filled - by_both.b_start) * inverse_hull;
    result.b_end -= (by_hull.b_end * filled - by_both.b_end) * inverse_hull;
    return result;
  }
  const V distance = C(0.5) * ((a_start + a_end) - (b_start + b_end));
  const V inverse_square = one / (hull * hull + eps);
  const V pull = C(2) * (distance * distance * inverse_square) * hull;
  result.a_start -= (distance - pull * by_hull.a_start) * inverse_square;
  result.a_end -= (distance - pull * by_hull.a_end) * inverse_square;
  result.b_start += (distance + pull * by_hull.b_start) * inverse_square;
  result.b_end += (distance + pull * by_hull.b_end) * inverse_square;
  return result;
}

}  // namespace
}  // namespace tal_fast
