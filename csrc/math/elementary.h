// SPDX-License-Identifier: Apache-2.0
// exp and log in float for loops that the compiler turns into vectors: no call, no branch, and the
// same bits on every instruction set (compile with -ffp-contract=off). The polynomials are those of
// the Cephes library (S. Moshier). In double the functions of the C library (on a GPU CUDA's) are
// used. CUDA kernels that include this are compiled with -fmad=false: then they give the same bits.
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>

#include "math/half.h"

// Not the overloads of <cmath>: csrc/cpu/isa.h says why no inline function may come from there.
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define TAL_FAST_C_FUNCTION(name) ::name
#else
#define TAL_FAST_C_FUNCTION(name) __builtin_##name
#endif

namespace tal_fast {
namespace {

// exp(x) for x <= 0, within 1 ulp (0.98 over all floats); below -87, where the result is less than
// 2^-125, exp(-87). NaN stays NaN.
[[maybe_unused]] TAL_FAST_HD float exp_of_nonpositive(float x) {
  x = -87.0f > x ? -87.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  // ln 2 in two parts: the product with the first one is exact.
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float exp_r = (p * (r * r) + r) + 1.0f;
  const uint32_t power = (float_to_bits(shifted) - 0x4b400000u + 127u) << 23;
  return exp_r * bits_to_float(power);
}

// log(x) for finite x >= 2^-126, within 1 ulp (0.83 over all floats up to 4). NaN stays NaN.
[[maybe_unused]] TAL_FAST_HD float log_of_positive(float x) {
  // x = 2^n * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
  const auto offset = static_cast<int32_t>(float_to_bits(x) - 0x3f3504f3u);
  const auto n = static_cast<float>(offset >> 23);
  const float f = bits_to_float((static_cast<uint32_t>(offset) & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float square = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float rest = (p * f * square + n * -2.12194440e-4f) - 0.5f * square;
  return ((f + rest) + n * 0.693359375f) + (x - x);
}

[[maybe_unused]] TAL_FAST_HD double exp_of_nonpositive(double x) {
  return TAL_FAST_C_FUNCTION(exp)(x);
}
[[maybe_unused]] TAL_FAST_HD double log_of_positive(double x) {
  return TAL_FAST_C_FUNCTION(log)(x);
}
[[maybe_unused]] TAL_FAST_HD float power(float base, float exponent) {
  return TAL_FAST_C_FUNCTION(powf)(base, exponent);
}
[[maybe_unused]] TAL_FAST_HD double power(double base, double exponent) {
  return TAL_FAST_C_FUNCTION(pow)(base, exponent);
}

}  // namespace
}  // namespace tal_fast
