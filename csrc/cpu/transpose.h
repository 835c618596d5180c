// SPDX-License-Identifier: Apache-2.0
// Transposition of small matrices in registers. In an anonymous namespace because each instruction
// set compiles its own.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace {

// x[0], y[0], x[1], y[1], ... of the lower or the upper halves of x and y.
template <bool kUpper, typename C, int kLanes, std::size_t... kLane>
inline Vector<C, kLanes> interleave(Vector<C, kLanes> x, Vector<C, kLanes> y,
                                    std::index_sequence<kLane...>) {
  return __builtin_shufflevector(
      x, y, static_cast<int>(kLane / 2 + (kUpper ? kLanes / 2 : 0) + (kLane % 2) * kLanes)...);
}

// Riffling the rows of a square once moves one bit of the column number to the row number, so
// log2(kLanes) riffles transpose it.
template <typename C, int kLanes>
inline void transpose_square(Vector<C, kLanes> (&square)[kLanes]) {
  constexpr auto kAll = std::make_index_sequence<kLanes>{};
#pragma GCC unroll 8
  for (int step = 1; step < kLanes; step *= 2) {
    Vector<C, kLanes> riffled[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      riffled[2 * i] = interleave<false, C, kLanes>(square[i], square[i + kLanes / 2], kAll);
      riffled[2 * i + 1] = interleave<true, C, kLanes>(square[i], square[i + kLanes / 2], kAll);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      square[i] = riffled[i];
    }
  }
}

// The squares of a strip of kLanes rows; returns the first column that is left.
template <int kLanes, typename Source, typename Target>
inline int64_t transpose_strip(const Source* __restrict__ source, int64_t source_stride,
                               int64_t columns, Target* __restrict__ target,
                               int64_t target_stride) {
  using C = ComputeType<Source>;
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes) {
    Vector<C, kLanes> square[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      square[i] = load<kLanes>(source + i * source_stride + column);
    }
    transpose_square<C, kLanes>(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      store<kLanes>(target + (column + i) * target_stride, square[i]);
    }
  }
  return column;
}

template <typename Target, typename Source>
inline Target converted(Source value) {
  if constexpr (sizeof(Target) == sizeof(Source)) {
    return value;
  } else {
    return narrow<Target>(widen(value));
  }
}

// target[column][row] = source[row][column]; widened or rounded where the types differ. Much code:
// compiled once for each pair of types, and not into every function that calls it.
template <typename Source, typename Target>
[[gnu::noinline]] void transpose(const Source* source, int64_t source_stride, int64_t rows,
                                 int64_t columns, Target* target, int64_t target_stride) {
  constexpr int kFull = kFullLanes<ComputeType<Source>>;
  // 16 bytes: what every instruction set has, for what is left of the rows.
  constexpr int kLeast = 16 / static_cast<int>(sizeof(ComputeType<Source>));
  const auto rest = [&](int64_t row, int64_t count, int64_t column) {
    for (; column < columns; ++column) {
      for (int64_t i = row; i < row + count; ++i) {
        target[column * target_stride + i] = converted<Target>(source[i * source_stride + column]);
      }
    }
  };
  int64_t row = 0;
  for (; row + kFull <= rows; row += kFull) {
    rest(row, kFull,
         transpose_strip<kFull>(source + row * source_stride, source_stride, columns, target + row,
                                target_stride));
  }
  for (; row + kLeast <= rows; row += kLeast) {
    rest(row, kLeast,
         transpose_strip<kLeast>(source + row * source_stride, source_stride, columns, target + row,
                                 target_stride));
  }
  rest(row, rows - row, 0);
}

}  // namespace
}  // namespace tal_fast::cpu
