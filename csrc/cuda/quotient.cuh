// SPDX-License-Identifier: Apache-2.0
// Division where a caller knows what its operands are not: `/` tests them, and leaves for a
// subroutine where they, or the quotient, are out of range.
#pragma once

#include <cmath>

#include "cuda/platform.cuh"

namespace tal_fast {

// x * y + z, rounded once on every device: the correction of a quotient is nothing without.
TAL_FAST_DEVICE float rounded_once(float x, float y, float z) {
#if defined(__CUDACC__)
  return __fmaf_rn(x, y, z);
#else
  return std::fma(x, y, z);
#endif
}

// 1 / x, wrong by an ulp at most, for x whose reciprocal is a normal number. One instruction; the
// emulator takes one of the three numbers that it may be.
TAL_FAST_DEVICE float approximate_reciprocal(float x) {
#if defined(__CUDACC__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return bits_to_float(float_to_bits(1.0f / x) + float_to_bits(x) % 3 - 1);
#endif
}

// x / y from 1 / y that may be wrong by an ulp: the correction of the reciprocal and of the
// quotient that nvcc makes of `/` where operands are in range. Rounded correctly while y, its
// reciprocal and the quotient are normal numbers and the remainder, 2^24 times smaller than x, is
// exact.
TAL_FAST_DEVICE float quotient(float x, float y, float reciprocal) {
  const float better = rounded_once(reciprocal, rounded_once(-y, reciprocal, 1.0f), reciprocal);
  const float near = x * better;
  return rounded_once(better, rounded_once(-y, near, x), near);
}

// Divides by a number that the host knows, rounding down, in two multiplications.
struct Divisor {
  uint64_t factor;

  Divisor() = default;
  explicit Divisor(int64_t d) : factor(~uint64_t{0} / static_cast<uint64_t>(d)) {}
  // 0 <= n < 2^31
  TAL_FAST_DEVICE int divide(int n) const {
    const uint64_t behind = static_cast<uint32_t>(n) + 1u;
    const uint64_t low = behind * static_cast<uint32_t>(factor) >> 32;
    return static_cast<int>((behind * (factor >> 32) + low) >> 32);
  }
};

}  // namespace tal_fast
