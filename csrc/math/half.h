// SPDX-License-Identifier: Apache-2.0
// The 16-bit floating-point types of the kernels, without torch: bits, and conversion to and from
// float. Layout-compatible with torch's Half and BFloat16, so that ops may cast data pointers.
//
// The functions are in an anonymous namespace because each instruction set compiles its own. On a
// GPU they are its conversion instructions.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/host_device.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#elif defined(__F16C__)
#include <immintrin.h>
#endif

namespace tal_fast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type to compute in for values stored as T: float for the 16-bit types, else T itself.
template <typename T>
struct ComputeTypeOf {
  using type = T;
};
template <>
struct ComputeTypeOf<Half> {
  using type = float;
};
template <>
struct ComputeTypeOf<BFloat16> {
  using type = float;
};
template <typename T>
using ComputeType = typename ComputeTypeOf<T>::type;

namespace {

[[maybe_unused]] TAL_FAST_HD float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

[[maybe_unused]] TAL_FAST_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

[[maybe_unused]] TAL_FAST_HD double widen(double value) {
  return value;
}
[[maybe_unused]] TAL_FAST_HD float widen(float value) {
  return value;
}
[[maybe_unused]] TAL_FAST_HD float widen(BFloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
[[maybe_unused]] TAL_FAST_HD float widen(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#elif defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  // Shift exponent and mantissa into place and let one multiplication rebias the exponent, which
  // also makes subnormals right; infinity and NaN need their exponent set afterwards.
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const float scaled = bits_to_float(rest) * bits_to_float(0x77800000u);  // * 2^112
  uint32_t bits = float_to_bits(scaled);
  bits = (value.bits & 0x7c00u) == 0x7c00u ? (rest | 0x7f800000u) : bits;
  return bits_to_float(bits | sign);
#endif
}

// Rounds to nearest, ties to even.
template <typename T>
TAL_FAST_HD T narrow(ComputeType<T> value) {
  return value;
}
template <>
[[maybe_unused]] TAL_FAST_HD BFloat16 narrow<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  // A NaN with a small payload must not round to infinity.
  const uint32_t nan = (bits >> 16) | 0x40u;
  return BFloat16{static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
#endif
}
template <>
[[maybe_unused]] TAL_FAST_HD Half narrow<Half>(float value) {
#if defined(__CUDA_ARCH__)
  return Half{__half_as_ushort(__float2half_rn(value))};
#elif defined(__F16C__)
  return Half{static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal in half: adding 0.5 puts the units of 2^-24 into the lowest mantissa bits, rounded
    // by the addition itself.
    result = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return Half{static_cast<uint16_t>(result | sign)};
#endif
}

}  // namespace
}  // namespace tal_fast
