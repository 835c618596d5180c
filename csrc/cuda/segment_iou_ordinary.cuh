// SPDX-License-Identifier: Apache-2.0
// The overlap of ordinary segments: the bits of PlainArithmetic with half its instructions. A
// division by `/` tests in every pair whether its operands are in range, and leaves for a
// subroutine where they are not, which a zero (segments that do not meet) is not. Here what holds
// for every pair is found once per segment.
#pragma once

#include <cmath>

#include "cuda/quotient.cuh"

namespace tal_fast {

// For segments that are ordinary_segment, one of them ordinary_row. Their ends are +0 or multiples
// of 2^-80 up to 2^40, and so is every sum and difference of ends, since rounding keeps multiples:
// numerators are +0 or at least 2^-80 in size, and none is above 2^42. The intersection is no
// longer than either segment, so the union no shorter than the row, and denominators are at least
// 2^-80. There is no NaN and no -0, so that a minimum is one instruction.
struct OrdinaryArithmetic {
  TAL_FAST_DEVICE float smaller_of(float x, float y) const { return fminf(x, y); }
  TAL_FAST_DEVICE float larger_of(float x, float y) const { return fmaxf(x, y); }
  TAL_FAST_DEVICE float ratio(float x, float y) const {
    return quotient(x, y, approximate_reciprocal(y));
  }
};

TAL_FAST_DEVICE bool ordinary_end(float x) {
  constexpr float kLeast = 0x1p-56f;  // with the last bit at 2^-79
  constexpr float kMost = 0x1p40f;
  const float size = fabsf(x);
  return (size >= kLeast && size <= kMost) || float_to_bits(x) == 0;
}

TAL_FAST_DEVICE bool ordinary_segment(float start, float end) {
  return ordinary_end(start) && ordinary_end(end) && end >= start;
}

TAL_FAST_DEVICE bool ordinary_row(float start, float end, float eps) {
  constexpr float kLeast = 0x1p-80f;
  constexpr float kMost = 0x1p41f;
  const float denominator = (end - start) + eps;
  return ordinary_segment(start, end) && denominator >= kLeast && denominator <= kMost;
}

}  // namespace tal_fast
