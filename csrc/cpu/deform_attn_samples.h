// SPDX-License-Identifier: Apache-2.0
// Samples: the rule that turns a location into a row (math/deform_attn.h) in vectors, and what both
// backwards do before and after. In an anonymous namespace because each instruction set compiles
// its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/carver.h"
#include "cpu/simd.h"
#include "math/deform_attn.h"

namespace tal_fast::cpu {
namespace {

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// locate() for a vector of locations: GCC 12 does not vectorise every loop over locate().
template <typename C, int kLanes>
struct LanePositions {
  Vector<int32_t, kLanes> tap;
  Vector<C, kLanes> fraction;
};

template <typename C, int kLanes>
inline LanePositions<C, kLanes> locate_lanes(Vector<C, kLanes> location, Vector<C, kLanes> length) {
  using V = Vector<C, kLanes>;
  using Whole = Vector<std::conditional_t<sizeof(C) == 4, int32_t, int64_t>, kLanes>;
  const V x = location * length - C(0.5);
  const V low = x > C(-1) ? x : broadcast<C, kLanes>(C(-2));
  const V bounded = low < length ? low : length;
  Whole tap = __builtin_convertvector(bounded, Whole);
  tap += __builtin_convertvector(tap, V) > bounded;  // a comparison that holds is -1
  return {__builtin_convertvector(tap, Vector<int32_t, kLanes>),
          (bounded - __builtin_convertvector(tap, V)) + (x - x)};
}

// Moves the samples of one head and several queries between tensor and block.
template <typename C>
inline void copy_samples(const C* source, int64_t source_stride, C* target, int64_t target_stride,
                         int64_t samples, int64_t query_count) {
  constexpr int64_t kStep = 4;  // the usual number of points: a constant size is one instruction
  for (int64_t q = 0; q < query_count; ++q) {
    int64_t k = 0;
    for (; k + kStep <= samples; k += kStep) {
      std::memcpy(target + k, source + k, kStep * sizeof(C));
    }
    for (; k < samples; ++k) {
      target[k] = source[k];
    }
    source += source_stride;
    target += target_stride;
  }
}

// From the products of a sample's gradient with its left and its right tap, in turn, to the
// gradients for its location and its weight.
template <typename C>
inline void slope_and_value(const C* __restrict__ dots, const C* __restrict__ fraction,
                            const C* __restrict__ weight, const C* __restrict__ length,
                            int64_t count, C* __restrict__ by_location, C* __restrict__ by_weight) {
  for (int64_t k = 0; k < count; ++k) {
    const C step = dots[2 * k + 1] - dots[2 * k];
    by_weight[k] = dots[2 * k] + fraction[k] * step;
    // The slope right of the sample: at a row itself, the one towards the next row.
    by_location[k] = length[k] * weight[k] * step;
  }
}

}  // namespace
}  // namespace tal_fast::cpu
