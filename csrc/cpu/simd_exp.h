// SPDX-License-Identifier: Apache-2.0
// exp of vectors (simd.h), as a softmax needs it. In an anonymous namespace because each
// instruction set compiles its own.
#pragma once

#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace {

// e^x for x <= 0 or NaN, within 2 ulp; results below the normal numbers are zero. Splits
// x = n ln 2 + r with |r| <= ln 2 / 2 and takes the Taylor series of e^r to the seventh power.
template <int kLanes>
[[maybe_unused]] inline Vector<float, kLanes> exp_nonpositive(Vector<float, kLanes> x) {
  using V = Vector<float, kLanes>;
  constexpr float kSmallest = -87.0f;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, kept in the low bits
  const V bounded = x > kSmallest ? x : V{} + kSmallest;
  const V shifted = bounded * 1.44269504f + kRound;
  const V n = shifted - kRound;
  const V r = (bounded - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
  V p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const auto scaled = (V)((Bits32<kLanes>)p + ((Bits32<kLanes>)shifted << 23));
  const V result = x > kSmallest ? scaled : V{};
  return x == x ? result : x;
}

template <int kLanes>
[[maybe_unused]] inline Vector<double, kLanes> exp_nonpositive(Vector<double, kLanes> x) {
  for (int i = 0; i < kLanes; ++i) {  // float64 is for checking gradients, not for speed
    x[i] = __builtin_exp(x[i]);
  }
  return x;
}

}  // namespace
}  // namespace tal_fast::cpu
