// SPDX-License-Identifier: Apache-2.0
// Loops over numbers that the reader needs: conversions between the floating-point types, a check
// for NaN and infinity, a blocked transpose. Plain C++ that the compiler vectorises for whatever
// instruction set it compiles for; the one shuffle is a builtin that every target has. Every result
// is the same for each of them, bit for bit.
//
// loops.cpp compiles them once per instruction set (cpu/isa.h), each time in another namespace, so
// that no function of one set can take the place of another's. Elsewhere, as in tests, they are in
// tal_fast::reader itself.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include "reader/reader.h"

#ifdef TAL_FAST_ISA_NAMESPACE
#define TAL_FAST_LOOPS TAL_FAST_ISA_NAMESPACE
#else
#define TAL_FAST_LOOPS plain_loops
#endif

namespace tal_fast::reader {
namespace TAL_FAST_LOOPS {

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

// float -> IEEE half, to nearest, ties to even; beyond 65504 infinity, a NaN stays one.
inline uint16_t float_to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  // Subnormal result: adding 1/2 leaves the half's mantissa, rounded by the addition itself, in the
  // lowest bits.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
  const uint32_t small = std::bit_cast<uint32_t>(shifted) - 0x3f000000U;
  // Normal result: the exponent's bias changes by 112; just under half a unit is added, plus one
  // when the last bit kept is odd.
  const uint32_t odd = (magnitude >> 13) & 1U;
  const uint32_t normal = (magnitude + 0xc8000fffU + odd) >> 13;
  const uint32_t special = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
  uint32_t half = magnitude < 0x38800000U ? small : normal;
  half = magnitude >= 0x477ff000U ? special : half;
  return static_cast<uint16_t>(sign | half);
}

// bfloat16 -> float, exact.
inline float bfloat16_to_float(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

// float -> bfloat16, to nearest, ties to even; a NaN stays one.
inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40U;
  return static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
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
    case DType::kBFloat16:
      for (int64_t i = 0; i < n; ++i) {
        uint16_t value;
        std::memcpy(&value, from + 2 * i, 2);
        to[i] = bfloat16_to_float(value);
      }
      return;
  }
}

// from [n] -> to [n] of dtype (float16, float32 or bfloat16).
inline void from_float32(const float* __restrict__ from, int64_t n, DType dtype,
                         char* __restrict__ to) {
  if (dtype == DType::kFloat32) {
    std::memcpy(to, from, static_cast<size_t>(n) * 4);
    return;
  }
  auto* const out = reinterpret_cast<uint16_t*>(to);
  if (dtype == DType::kFloat16) {
    for (int64_t i = 0; i < n; ++i) {
      out[i] = float_to_half(from[i]);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      out[i] = float_to_bfloat16(from[i]);
    }
  }
}

// from [n] of one dtype -> to [n] of another. A float64 is rounded to float32 first.
inline void convert(const char* __restrict__ from, DType from_dtype, int64_t n,
                    char* __restrict__ to, DType to_dtype) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<size_t>(n * item_size(to_dtype)));
    return;
  }
  if (to_dtype == DType::kFloat32) {
    to_float32(from, from_dtype, n, reinterpret_cast<float*>(to));
    return;
  }
  constexpr int64_t kBlock = 1024;
  float block[kBlock];
  const int64_t from_size = item_size(from_dtype);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    to_float32(from + begin * from_size, from_dtype, count, block);
    from_float32(block, count, to_dtype, to + begin * 2);
  }
}

namespace detail {

// Index of the first number whose exponent bits are all ones, or -1. T holds the bits.
template <typename T, T kExponent, T kLowest>
int64_t first_with_full_exponent(const char* x, int64_t n) {
  constexpr int64_t kBlock = 1024;  // reduced without a branch, so that it vectorises
  constexpr T kMagnitude = static_cast<T>(static_cast<T>(~T{0}) >> 1);
  constexpr T kSign = static_cast<T>(~kMagnitude);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    T bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      T bits;
      std::memcpy(&bits, x + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
      // An exponent of all ones, and only that, carries into the sign bit.
      bad = static_cast<T>(bad | static_cast<T>((bits & kMagnitude) + kLowest));
    }
    if ((bad & kSign) == 0) {
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      T bits;
      std::memcpy(&bits, x + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
      if ((bits & kExponent) == kExponent) {
        return i;
      }
    }
  }
  return -1;
}

}  // namespace detail

// Index of the first NaN or infinity in x [n] of dtype float16, float32 or bfloat16, or -1.
inline int64_t first_not_finite(const void* x, DType dtype, int64_t n) {
  const auto* const bytes = static_cast<const char*>(x);
  switch (dtype) {
    case DType::kFloat16:
      return detail::first_with_full_exponent<uint16_t, 0x7c00U, 0x0400U>(bytes, n);
    case DType::kBFloat16:
      return detail::first_with_full_exponent<uint16_t, 0x7f80U, 0x0080U>(bytes, n);
    default:
      return detail::first_with_full_exponent<uint32_t, 0x7f800000U, 0x00800000U>(bytes, n);
  }
}

// ---- transpose ----------------------------------------------------------------------------------

namespace detail {

// A register of elements, as the compiler's vectors. Clang has the builtin since ever, GCC since
// 12; others take the scalar loop.
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#define TAL_FAST_SHUFFLE 1
#else
#define TAL_FAST_SHUFFLE 0
#endif

#if defined(__AVX512F__)
constexpr int kRegister32 = 64;
constexpr int kRegister16 = 32;  // a square of 32 x 32 would need every register there is
#elif defined(__AVX2__)
constexpr int kRegister32 = 32;
constexpr int kRegister16 = 32;
#else
constexpr int kRegister32 = 16;
constexpr int kRegister16 = 16;
#endif

template <typename T>
constexpr int kLanes = (sizeof(T) == 4 ? kRegister32 : kRegister16) / static_cast<int>(sizeof(T));

#if TAL_FAST_SHUFFLE
typedef uint32_t Vector32 __attribute__((vector_size(kRegister32)));
typedef uint16_t Vector16 __attribute__((vector_size(kRegister16)));

template <typename T>
struct VectorOf {
  using type = Vector32;
};
template <>
struct VectorOf<uint16_t> {
  using type = Vector16;
};

// Elements of the first halves (base 0) or second halves (base n / 2) of a and b, in turn.
template <int kBase, typename Vector, int... kI>
inline Vector interleaved(Vector a, Vector b, std::integer_sequence<int, kI...>) {
  constexpr int kN = sizeof...(kI);
  return __builtin_shufflevector(a, b, (kBase + kI / 2 + (kI % 2) * kN)...);
}

// A square of n x n elements, n lanes: log2(n) rounds of interleaving the upper half of the rows
// with the lower half transpose it.
template <typename T>
inline void transpose_square(const T* from, int64_t from_pitch, T* to, int64_t to_pitch) {
  using Vector = typename VectorOf<T>::type;
  constexpr int kN = kLanes<T>;
  constexpr std::make_integer_sequence<int, kN> kAll{};
  Vector a[kN];
  Vector b[kN];
  for (int i = 0; i < kN; ++i) {
    std::memcpy(&a[i], from + i * from_pitch, sizeof(Vector));
  }
#pragma GCC unroll 8
  for (int round = 1; round < kN; round *= 2) {
#pragma GCC unroll 32
    for (int i = 0; i < kN / 2; ++i) {
      b[2 * i] = interleaved<0>(a[i], a[i + kN / 2], kAll);
      b[2 * i + 1] = interleaved<kN / 2>(a[i], a[i + kN / 2], kAll);
    }
#pragma GCC unroll 32
    for (int i = 0; i < kN; ++i) {
      a[i] = b[i];
    }
  }
  for (int i = 0; i < kN; ++i) {
    std::memcpy(to + i * to_pitch, &a[i], sizeof(Vector));
  }
}
#endif

}  // namespace detail

// from[i * from_pitch + k] -> to[k * to_pitch + i] for i < rows, k < columns. T holds the bits.
//
// A tile is one cache line of elements wide on both sides, so that a line is fetched once even when
// a pitch is a power of two and the lines of a column fall into one set of the cache.
template <typename T>
void transpose(const T* __restrict__ from, int64_t from_pitch, int64_t rows, int64_t columns,
               T* __restrict__ to, int64_t to_pitch) {
  constexpr int64_t kTile = 64 / sizeof(T);
#if TAL_FAST_SHUFFLE
  constexpr int64_t kSquare = detail::kLanes<T>;
  const int64_t whole_rows = rows - rows % kSquare;
  const int64_t whole_columns = columns - columns % kSquare;
#else
  const int64_t whole_rows = 0;
  const int64_t whole_columns = 0;
#endif
  for (int64_t k = 0; k < columns; k += kTile) {
    const int64_t k_end = std::min(columns, k + kTile);
    const int64_t next_end = std::min(columns, k_end + kTile);
    for (int64_t i = 0; i < rows; i += kTile) {
      const int64_t i_end = std::min(rows, i + kTile);
      // The lines of the next tiles: stores alone would wait for each of them (measured: 6 -> 8
      // GB/s).
      for (int64_t c = k_end; c < next_end; ++c) {
        __builtin_prefetch(to + c * to_pitch + i, 1);
      }
#if TAL_FAST_SHUFFLE
      for (int64_t r = i; r + kSquare <= i_end; r += kSquare) {
        for (int64_t c = k; c + kSquare <= k_end; c += kSquare) {
          detail::transpose_square(from + r * from_pitch + c, from_pitch, to + c * to_pitch + r,
                                   to_pitch);
        }
      }
#endif
      // What is left at the two far edges.
      for (int64_t c = k; c < k_end; ++c) {
        const int64_t first = c < whole_columns ? std::max(i, whole_rows) : i;
        for (int64_t r = first; r < i_end; ++r) {
          to[c * to_pitch + r] = from[r * from_pitch + c];
        }
      }
    }
  }
}

}  // namespace TAL_FAST_LOOPS
#ifndef TAL_FAST_ISA_NAMESPACE
using namespace plain_loops;
#endif
}  // namespace tal_fast::reader
