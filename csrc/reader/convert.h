// SPDX-License-Identifier: Apache-2.0
// Loops over numbers that the reader needs: widening, a finiteness check, a blocked transpose.
// Written so that any compiler vectorises them for its baseline; no intrinsics.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "reader/reader.h"

namespace tal_fast {

// IEEE half -> float, exact, for every input including subnormal numbers, infinities and NaN.
inline float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffU) << 13;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  // The exponent's bias is 15 in a half and 127 in a float: multiply by 2^112. That also turns
  // subnormal halves into normal floats.
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112F);
  const uint32_t special = magnitude >= 0x0f800000U ? 0x7f800000U : 0U;
  return std::bit_cast<float>(scaled | special | sign);
}

// from [n] of dtype -> to [n]. from needs no alignment.
inline void to_float32(const char* __restrict__ from, DType dtype, int64_t n,
                       float* __restrict__ to) {
  switch (dtype) {
    case DType::kFloat16:
      for (int64_t i = 0; i < n; ++i) {
        uint16_t value;
        std::memcpy(&value, from + 2 * i, 2);
        to[i] = half_to_float(value);
      }
      return;
    case DType::kFloat32:
      std::memcpy(to, from, static_cast<size_t>(n) * 4);
      return;
    case DType::kFloat64:
      for (int64_t i = 0; i < n; ++i) {
        double value;
        std::memcpy(&value, from + 8 * i, 8);
        to[i] = static_cast<float>(value);
      }
      return;
  }
}

// Index of the first NaN or infinity in x [n], or -1.
inline int64_t first_not_finite(const float* x, int64_t n) {
  constexpr int64_t kBlock = 1024;  // reduced without a branch, so that it vectorises
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    uint32_t bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      // An exponent of all ones, and only that, carries into the sign bit.
      bad |= (std::bit_cast<uint32_t>(x[i]) & 0x7fffffffU) + 0x00800000U;
    }
    if ((bad & 0x80000000U) == 0) {
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      if ((std::bit_cast<uint32_t>(x[i]) & 0x7f800000U) == 0x7f800000U) {
        return i;
      }
    }
  }
  return -1;
}

// from [channels, rows] -> to[r * stride + c]; both sides are touched in blocks that fit the L1
// cache.
inline void transpose(const float* __restrict__ from, int64_t channels, int64_t rows,
                      float* __restrict__ to, int64_t stride) {
  constexpr int64_t kTile = 16;  // 16 floats: one cache line on either side
  for (int64_t r = 0; r < rows; r += kTile) {
    const int64_t r_end = std::min(rows, r + kTile);
    for (int64_t c = 0; c < channels; c += kTile) {
      const int64_t c_end = std::min(channels, c + kTile);
      for (int64_t i = r; i < r_end; ++i) {
        for (int64_t k = c; k < c_end; ++k) {
          to[i * stride + k] = from[k * rows + i];
        }
      }
    }
  }
}

}  // namespace tal_fast
