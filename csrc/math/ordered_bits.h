// SPDX-License-Identifier: Apache-2.0
// Integers that order as floating-point numbers do, for sorts and searches for the greatest.
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/half.h"

namespace tal_fast {
namespace {

// An unsigned integer that orders as `value` does; -0 equals 0, a NaN lies outside the infinities.
[[maybe_unused]] TAL_FAST_HD uint32_t ordered_bits(float value) {
  const uint32_t bits = float_to_bits(value + 0.0f);  // -0 becomes 0
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

[[maybe_unused]] TAL_FAST_HD uint64_t ordered_bits(double value) {
  const double plain = value + 0.0;
  uint64_t bits;
  std::memcpy(&bits, &plain, sizeof(bits));
  return (bits >> 63) != 0 ? ~bits : bits | 0x8000000000000000u;
}

// The same as signed integers, which torch sorts: rising as the values rise, or as they fall.
[[maybe_unused]] TAL_FAST_HD int32_t rising_key(float value) {
  return static_cast<int32_t>(ordered_bits(value) ^ 0x80000000u);
}
[[maybe_unused]] TAL_FAST_HD int64_t rising_key(double value) {
  return static_cast<int64_t>(ordered_bits(value) ^ 0x8000000000000000u);
}
template <typename T>
TAL_FAST_HD auto falling_key(T value) {
  return static_cast<decltype(rising_key(value))>(~rising_key(value));
}

}  // namespace
}  // namespace tal_fast
