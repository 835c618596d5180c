// SPDX-License-Identifier: Apache-2.0
// What it costs to match the queries of one video with its instances: focal class cost + L1 - IoU.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "math/matching_cost.h"

namespace tal_fast::cpu {

// The properties of the instances of a video are padded to whole groups of so many, so that the
// loop over them has no tail: videos have few instances, and a tail would take most of the time.
constexpr int64_t kMatchingGroup = 16;

inline int64_t matching_padded(int64_t count) {
  return (count + kMatchingGroup - 1) / kMatchingGroup * kMatchingGroup;
}

// The instances of one video, each property apart so that the loop over them loads whole vectors;
// the padding holds any valid values. P = matching_padded(count).
template <typename T>
struct MatchingTargets {
  int64_t count;
  const T* centers;  // [count]
  const T* widths;   // [count]
  const T* starts;   // [count]
  const T* ends;     // [count]
  // The class of an instance as an index into `classes`: each class is computed once per query.
  const int32_t* slots;    // [P]
  const int64_t* classes;  // [num_classes], those that occur
  int64_t num_classes;
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Starts and ends of segments given as centre and width.
template <typename T>
void matching_cost_split(const T* targets,    // [M, 2] (centre, width)
                         int64_t m,
                         T* centers, T* widths, T* starts, T* ends);  // [M] each

// T is float or double.
template <typename T>
void matching_cost_block(const T* logits,      // [Q, C]
                         const T* segments,    // [Q, 2] (centre, width)
                         int64_t queries, int64_t num_logits,
                         const MatchingTargets<T>& targets,
                         const MatchingWeights<T>& weights,
                         T* scratch,           // [Q, num_classes]
                         T* out);              // [Q, count]
)
// clang-format on

}  // namespace tal_fast::cpu
