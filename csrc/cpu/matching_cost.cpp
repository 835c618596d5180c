// SPDX-License-Identifier: Apache-2.0
#include "cpu/matching_cost.h"

#include <cstring>

#include "math/elementary.h"

namespace tal_fast {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Keeps the logarithms finite, as in the matchers of DETR's family.
template <typename T>
constexpr T kLogEps = T(1e-8);

enum class Exponent { kTwo, kAny };

template <Exponent exponent, typename T>
inline T focus(T value, T gamma) {
  if constexpr (exponent == Exponent::kTwo) {
    return value * value;
  } else {
    return power(value, gamma);
  }
}

// Logits in, focal cost of the class being there minus that of it not being there out.
template <Exponent exponent, typename T>
void focal_costs(T* __restrict__ values, int64_t count, T alpha, T gamma) {
  for (int64_t i = 0; i < count; ++i) {
    const T x = values[i];
    // sigmoid(x) and 1 - sigmoid(x), neither by a subtraction that cancels.
    const T e = exp_of_nonpositive(x > T(0) ? -x : x);
    const T larger = T(1) / (T(1) + e);
    const T smaller = e * larger;
    const T p = x > T(0) ? larger : smaller;
    const T rest = x > T(0) ? smaller : larger;
    const T negative =
        (T(1) - alpha) * focus<exponent>(p, gamma) * -log_of_positive(rest + kLogEps<T>);
    const T positive = alpha * focus<exponent>(rest, gamma) * -log_of_positive(p + kLogEps<T>);
    values[i] = positive - negative;
  }
}

template <typename T>
inline T distance(T x, T y) {
  const T difference = x - y;
  return difference < T(0) ? -difference : difference;
}

}  // namespace

template <typename T>
void matching_cost_split(const T* targets, int64_t m, T* centers, T* widths, T* starts, T* ends) {
  for (int64_t t = 0; t < m; ++t) {
    centers[t] = targets[2 * t];
    widths[t] = targets[2 * t + 1];
    const T half_width = T(0.5) * widths[t];
    starts[t] = centers[t] - half_width;
    ends[t] = centers[t] + half_width;
  }
}

template <typename T>
void matching_cost_block(const T* logits, const T* segments, int64_t queries, int64_t num_logits,
                         const MatchingTargets<T>& targets, const MatchingWeights<T>& weights,
                         T* scratch, T* out) {
  const int64_t num_classes = targets.num_classes;
  for (int64_t q = 0; q < queries; ++q) {
    for (int64_t u = 0; u < num_classes; ++u) {
      scratch[q * num_classes + u] = logits[q * num_logits + targets.classes[u]];
    }
  }
  const auto run =
      weights.gamma == T(2) ? &focal_costs<Exponent::kTwo, T> : &focal_costs<Exponent::kAny, T>;
  run(scratch, queries * num_classes, weights.alpha, weights.gamma);

  const int64_t count = targets.count;
  const T* __restrict__ centers = targets.centers;
  const T* __restrict__ widths = targets.widths;
  const T* __restrict__ starts = targets.starts;
  const T* __restrict__ ends = targets.ends;
  const int32_t* __restrict__ slots = targets.slots;
  const MatchingWeights<T> w = weights;
  for (int64_t q = 0; q < queries; ++q) {
    const T center = segments[2 * q];
    const T width = segments[2 * q + 1];
    const T half_width = T(0.5) * width;
    const T start = center - half_width;
    const T end = center + half_width;
    const T* __restrict__ class_costs = scratch + q * num_classes;
    T* row = out + q * count;
    for (int64_t first = 0; first < count; first += kMatchingGroup) {
      T group[kMatchingGroup];
      for (int64_t l = 0; l < kMatchingGroup; ++l) {
        const int64_t t = first + l;
        const T later = start > starts[t] ? start : starts[t];
        const T earlier = end < ends[t] ? end : ends[t];
        const T gap = earlier - later;
        const T inner = T(0) > gap ? T(0) : gap;
        const T both = (end - start) + (ends[t] - starts[t]) - inner;
        const T iou = inner / (both + w.eps);
        const T l1 = distance(center, centers[t]) + distance(width, widths[t]);
        group[l] = w.classification * class_costs[slots[t]] + (w.l1 * l1 - w.iou * iou);
      }
      const int64_t left = count - first;
      if (left >= kMatchingGroup) {
        std::memcpy(row + first, group, sizeof(group));
      } else {
        std::memcpy(row + first, group, static_cast<size_t>(left) * sizeof(T));
      }
    }
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                                  \
  template void matching_cost_split<T>(const T*, int64_t, T*, T*, T*, T*);                       \
  template void matching_cost_block<T>(const T*, const T*, int64_t, int64_t,                     \
                                       const MatchingTargets<T>&, const MatchingWeights<T>&, T*, \
                                       T*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast
