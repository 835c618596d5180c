// SPDX-License-Identifier: Apache-2.0
// The rule that turns a location into a row (math/deform_attn.h) in vectors. In an anonymous
// namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/scratch.h"
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

}  // namespace
}  // namespace tal_fast::cpu
