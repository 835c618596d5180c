// SPDX-License-Identifier: Apache-2.0
// The rule that turns a location into a row, for all kernels of deformable attention. In an
// anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace tal_fast {
namespace {

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Where a sample lies: the tap left of it, relative to its level, and the distance from that tap.
template <typename C>
struct Position {
  int32_t tap;  // -2 (contributes nothing), -1 (only the right tap counts), ..., T - 1, T (nothing)
  C fraction;
};

// Branch-free and without a floor instruction, so that loops over samples vectorise everywhere.
template <typename C>
inline Position<C> locate(C location, C length) {
  const C x = location * length - C(0.5);
  // A NaN fails the first comparison and becomes -2; so does everything that does not contribute.
  const C low = x > C(-1) ? x : C(-2);
  const C bounded = low < length ? low : length;
  int32_t tap = static_cast<int32_t>(bounded);
  tap -= static_cast<C>(tap) > bounded ? 1 : 0;
  // x - x is zero unless the location is NaN or infinite: then the result must say so.
  return {tap, (bounded - static_cast<C>(tap)) + (x - x)};
}

// The same for a vector of locations: GCC 12 does not vectorise every loop over locate().
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
}  // namespace tal_fast
