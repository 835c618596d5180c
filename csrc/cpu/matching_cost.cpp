// SPDX-License-Identifier: Apache-2.0
#include "cpu/matching_cost.h"

#include <cstring>

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Logits in, focal cost of the class being there minus that of it not being there out.
template <Exponent exponent, typename T>
void focal_costs(T* __restrict__ values, int64_t count, T alpha, T gamma) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = focal_cost<exponent>(values[i], alpha, gamma);
  }
}

}  // namespace

template <typename T>
void matching_cost_split(const T* targets, int64_t m, T* centers, T* widths, T* starts, T* ends) {
  for (int64_t t = 0; t < m; ++t) {
    const MatchingSegment<T> target = matching_segment(targets[2 * t], targets[2 * t + 1]);
    centers[t] = target.center;
    widths[t] = target.width;
    starts[t] = target.start;
    ends[t] = target.end;
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
    const MatchingSegment<T> query = matching_segment(segments[2 * q], segments[2 * q + 1]);
    const T* __restrict__ class_costs = scratch + q * num_classes;
    T* row = out + q * count;
    for (int64_t first = 0; first < count; first += kMatchingGroup) {
      T group[kMatchingGroup];
      for (int64_t l = 0; l < kMatchingGroup; ++l) {
        const int64_t t = first + l;
        group[l] = w.classification * class_costs[slots[t]] +
                   matching_distance(query, {centers[t], widths[t], starts[t], ends[t]}, w);
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
}  // namespace tal_fast::cpu
