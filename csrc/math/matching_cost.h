// SPDX-License-Identifier: Apache-2.0
// The cost of matching a query with an instance, in the order of operations that every device
// keeps. Compile with -ffp-contract=off (nvcc: -fmad=false).
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include "math/elementary.h"

namespace tal_fast {

template <typename T>
struct MatchingWeights {
  T classification, l1, iou;
  T alpha, gamma;  // of the focal loss
  T eps;           // added to the union
};

// Whether the focusing exponent gamma is 2, which needs no power function.
enum class Exponent { kTwo, kAny };

namespace {

// Keeps the logarithms finite, as in the matchers of DETR's family.
template <typename T>
constexpr T kLogEps = T(1e-8);

template <Exponent exponent, typename T>
TAL_FAST_HD T focus(T value, T gamma) {
  if constexpr (exponent == Exponent::kTwo) {
    return value * value;
  } else {
    return power(value, gamma);
  }
}

// The focal cost of the class with logit x being there minus that of it not being there.
template <Exponent exponent, typename T>
TAL_FAST_HD T focal_cost(T x, T alpha, T gamma) {
  // sigmoid(x) and 1 - sigmoid(x), neither by a subtraction that cancels.
  const T e = exp_of_nonpositive(x > T(0) ? -x : x);
  const T larger = T(1) / (T(1) + e);
  const T smaller = e * larger;
  const T p = x > T(0) ? larger : smaller;
  const T rest = x > T(0) ? smaller : larger;
  const T negative =
      (T(1) - alpha) * focus<exponent>(p, gamma) * -log_of_positive(rest + kLogEps<T>);
  const T positive = alpha * focus<exponent>(rest, gamma) * -log_of_positive(p + kLogEps<T>);
  return positive - negative;
}

template <typename T>
TAL_FAST_HD T distance(T x, T y) {
  const T difference = x - y;
  return difference < T(0) ? -difference : difference;
}

// A segment both ways, in the order of operations of tal_fast/models/segments.py.
template <typename T>
struct MatchingSegment {
  T center, width, start, end;
};

template <typename T>
TAL_FAST_HD MatchingSegment<T> matching_segment(T center, T width) {
  const T half_width = T(0.5) * width;
  return {center, width, center - half_width, center + half_width};
}

// What a pair costs beside its class: weighted L1 distance - weighted IoU.
template <typename T>
TAL_FAST_HD T matching_distance(const MatchingSegment<T>& query, const MatchingSegment<T>& target,
                                const MatchingWeights<T>& weights) {
  const T later = query.start > target.start ? query.start : target.start;
  const T earlier = query.end < target.end ? query.end : target.end;
  const T gap = earlier - later;
  const T inner = T(0) > gap ? T(0) : gap;
  const T both = (query.end - query.start) + (target.end - target.start) - inner;
  const T iou = inner / (both + weights.eps);
  const T l1 = distance(query.center, target.center) + distance(query.width, target.width);
  return weights.l1 * l1 - weights.iou * iou;
}

}  // namespace
}  // namespace tal_fast
