// SPDX-License-Identifier: Apache-2.0
// The two products with a band that banded self-attention consists of: dots of rows (q . k, grad .
// v), and sums of rows weighted by the band, read along its rows (out, grad of q) or across (grads
// of k and v). In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/local_attn_rows.h"

namespace tal_fast::cpu {
namespace {

// Tiles of the dots: their sums fill one vector.
constexpr int kDotRows = 2;
template <typename C>
constexpr int kDotKeys = kFullLanes<C> / kDotRows;
// Tiles of the weighted sums, in rows and vectors: twelve sums leave registers for the operands.
constexpr int kSumRows = 3;
constexpr int kSumVectors = 4;

// ---- bands --------------------------------------------------------------------------------------

// One number for each pair (t, s) of rows with |t - s| <= half: the pair lies at
// (t - first) * stride + (s - t + half), so that both t and s step by a fixed number of elements.
// Around the pairs of a row there may be anything.
template <typename C>
struct Band {
  Rows<C> rows;
  int64_t half;

  C* operator[](int64_t t) const { return rows[t]; }
};

// The last tile of the dots may reach behind the rows: what it reads there goes nowhere.
template <typename C>
Rows<C> take_rows(Carver& carver, const LocalAttnShape& shape, int64_t rows) {
  const int64_t stride = round_up(shape.channels, kFullLanes<C>);
  return {carver.take<C>((rows + kDotRows + kDotKeys<C>)*stride), rows, stride, 0, 0};
}

template <typename C>
Band<C> take_band(Carver& carver, const LocalAttnShape& shape, int64_t rows) {
  const int64_t stride = round_up(shape.window() + kDotKeys<C> + 1, kFullLanes<C>);
  // A tile of dots begins one element before the pairs of its second row.
  C* data = carver.take<C>((rows + kDotRows) * stride + 2 * kFullLanes<C>);
  return {{data == nullptr ? nullptr : data + kFullLanes<C>, rows, stride, 0, 0}, shape.half};
}

// ---- dots ---------------------------------------------------------------------------------------

// Lane that the first sums read: neighbours in x, then in y, within 16 bytes, where it is cheap.
template <typename C>
constexpr int pair_lane(int lane, int lanes, int second) {
  constexpr int kGroup = 16 / static_cast<int>(sizeof(C));
  const int within = lane % kGroup;
  const int source = within < kGroup / 2 ? 0 : lanes;
  return source + lane / kGroup * kGroup + within % (kGroup / 2) * 2 + second;
}

template <typename C, int kLanes, std::size_t... kLane>
inline Vector<C, kLanes> add_pairs(Vector<C, kLanes> x, Vector<C, kLanes> y,
                                   std::index_sequence<kLane...>) {
  return __builtin_shufflevector(x, y, pair_lane<C>(kLane, kLanes, 0)...) +
         __builtin_shufflevector(x, y, pair_lane<C>(kLane, kLanes, 1)...);
}

// The sums of the lanes of kCount vectors, in their order. kDone: partial sums that were added
// already, per vector.
template <typename C, int kLanes, int kCount, int kDone = 1>
inline Vector<C, kLanes> lane_sums(const Vector<C, kLanes> (&vectors)[kCount]) {
  constexpr int kGroup = 16 / static_cast<int>(sizeof(C));
  if constexpr (kCount == 1) {
    return vectors[0];
  } else {
    Vector<C, kLanes> sums[kCount / 2];
#pragma GCC unroll 16
    for (int i = 0; i < kCount / 2; ++i) {
      if constexpr (kDone < kGroup) {
        sums[i] = add_pairs<C, kLanes>(vectors[2 * i], vectors[2 * i + 1],
                                       std::make_index_sequence<kLanes>{});
      } else {
        sums[i] = fold<kDone / kGroup, C, kLanes>(vectors[2 * i], vectors[2 * i + 1]);
      }
    }
    return lane_sums<C, kLanes, kCount / 2, 2 * kDone>(sums);
  }
}

// GCC would read a vector from memory for each multiplication that it is used in: more than the two
// per cycle that a core loads.
template <typename V>
inline V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

inline int64_t dot_tiles(Range range, int64_t half, int64_t keys) {
  return (range.size() + kDotRows - 1) / kDotRows * ((2 * half + kDotRows + keys - 1) / keys);
}

// band[t, s] = left[t] . right[s] for t in `range`, s in the video.
template <typename C>
[[gnu::noinline]] void band_dots(const Rows<C>& left, const Rows<C>& right, Range range,
                                 int64_t rows, const Band<C>& band, Ahead& ahead) {
  constexpr int kLanes = kFullLanes<C>;
  constexpr int kKeys = kDotKeys<C>;
  using V = Vector<C, kLanes>;
  const int64_t stride = left.stride;
  for (int64_t t = range.begin; t < range.end; t += kDotRows) {
    const Range seen = Range{t, t + kDotRows}.widened(band.half, rows);
    const C* a = left[t];
    C* target = band[t] + (seen.begin - t + band.half);
    for (int64_t s = seen.begin; s < seen.end; s += kKeys, target += kKeys) {
      ahead.ask();
      const C* b = right[s];
      V sums[kDotRows * kKeys] = {};
      for (int64_t d = 0; d < stride; d += kLanes) {
        V rows_of_a[kDotRows];
#pragma GCC unroll 16
        for (int i = 0; i < kDotRows; ++i) {
          rows_of_a[i] = load<kLanes>(a + i * stride + d);
        }
#pragma GCC unroll 16
        for (int j = 0; j < kKeys; ++j) {
          const V row_of_b = in_register(load<kLanes>(b + j * stride + d));
#pragma GCC unroll 16
          for (int i = 0; i < kDotRows; ++i) {
            sums[i * kKeys + j] += rows_of_a[i] * row_of_b;
          }
        }
      }
      const V dots = lane_sums<C, kLanes, kDotRows * kKeys>(sums);
#pragma GCC unroll 16
      for (int i = 0; i < kDotRows; ++i) {
        __builtin_memcpy(target + i * (band.rows.stride - 1),
                         reinterpret_cast<const C*>(&dots) + i * kKeys, sizeof(C) * kKeys);
      }
    }
  }
}

// ---- sums ---------------------------------------------------------------------------------------

// A band's numbers as the weights of a matrix product: (row, column) at row * row_step +
// column * column_step.
template <typename C>
struct Weights {
  const C* origin;  // of row and column 0: may lie outside of the band's memory
  int64_t row_step;
  int64_t column_step;
};

// The rows of one head of a result.
template <typename T>
struct Output {
  T* data;  // of the video's first row
  int64_t row_stride;
  int64_t channels;
};

// sums[i] += weight * source for the rows [kFirst, kLast) of a tile.
template <int kFirst, int kLast, int kRows, int kVectors, typename C, int kLanes>
inline void add_column(const C* weights, int64_t step, const C* source,
                       Vector<C, kLanes> (&sums)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int i = kFirst; i < kLast; ++i) {
    const C weight = weights[i * step];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] += weight * load<kLanes>(source + v * kLanes);
    }
  }
}

// Sums kVectors vectors of kRows rows, over `columns` that start with the band of the first row and
// end with that of the last one. At the edges a column belongs to some rows alone: a weight of zero
// for the others would not keep out a NaN.
template <int kRows, int kVectors, typename C>
inline void sum_vectors(const Weights<C>& weights, const Rows<C>& source, int64_t d, int64_t row,
                        Range columns, C scale, const Output<C>& out) {
  constexpr int kLanes = kFullLanes<C>;
  Vector<C, kLanes> sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {  // `= {}` would fill memory instead of registers
      sums[i][v] = Vector<C, kLanes>{};
    }
  }
  const C* weight = weights.origin + (row * weights.row_step + columns.begin * weights.column_step);
  const C* from = source[columns.begin] + d;
  const auto add = [&](auto first, auto last) {
    add_column<decltype(first)::value, decltype(last)::value, kRows, kVectors, C, kLanes>(
        weight, weights.row_step, from, sums);
    weight += weights.column_step;
    from += source.stride;
  };
  using First = std::integral_constant<int, 0>;
  using Last = std::integral_constant<int, kRows>;
  [&]<std::size_t... kEdge>(std::index_sequence<kEdge...>) {
    (add(First{}, std::integral_constant<int, static_cast<int>(kEdge) + 1>{}), ...);
    for (int64_t n = columns.size() - 2 * (kRows - 1); n > 0; --n) {
      add(First{}, Last{});
    }
    (add(std::integral_constant<int, static_cast<int>(kEdge) + 1>{}, Last{}), ...);
  }(std::make_index_sequence<kRows - 1>{});
  C* target = out.data + row * out.row_stride + d;
  const int64_t left = out.channels - d;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i, target += out.row_stride) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Vector<C, kLanes> sum = sums[i][v] * scale;
      if ((v + 1) * kLanes <= left) {
        store<kLanes, C>(target + v * kLanes, sum);
      } else {
        store_partial<kLanes, C>(target + v * kLanes, sum, left - v * kLanes);
      }
    }
  }
}

template <int kRows, typename C>
[[gnu::noinline]] void sum_rows(const Weights<C>& weights, const Rows<C>& source, int64_t row,
                                Range columns, C scale, const Output<C>& out, Ahead& ahead) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t d = 0;
  for (; d + kSumVectors * kLanes <= source.stride; d += kSumVectors * kLanes) {
    ahead.ask();
    sum_vectors<kRows, kSumVectors>(weights, source, d, row, columns, scale, out);
  }
  for (; d + 2 * kLanes <= source.stride; d += 2 * kLanes) {
    sum_vectors<kRows, 2>(weights, source, d, row, columns, scale, out);
  }
  for (; d < source.stride; d += kLanes) {
    sum_vectors<kRows, 1>(weights, source, d, row, columns, scale, out);
  }
}

inline int64_t sum_tiles(Range range, int64_t stride, int64_t lanes) {
  return range.size() / kSumRows * most(stride / (kSumVectors * lanes), 1);
}

// out[row] = scale * sum over the columns of weight * source[column], for the rows of `range`.
template <typename C>
[[gnu::noinline]] void band_sums(const Weights<C>& weights, const Rows<C>& source, Range range,
                                 int64_t rows, int64_t half, C scale, const Output<C>& out,
                                 Ahead& ahead) {
  const auto one_by_one = [&](Range few) {
    for (int64_t t = few.begin; t < few.end; ++t) {
      sum_rows<1>(weights, source, t, Range{t, t + 1}.widened(half, rows), scale, out, ahead);
    }
  };
  int64_t row = range.begin;
  for (; row + kSumRows <= range.end; row += kSumRows) {
    const Range tile = {row, row + kSumRows};
    const Range columns = tile.widened(half, rows);
    if (2 * half >= kSumRows && columns.size() == kSumRows + 2 * half) {
      sum_rows<kSumRows>(weights, source, row, columns, scale, out, ahead);
    } else {  // near an end of the video, or a window of fewer rows than the tile
      one_by_one(tile);
    }
  }
  one_by_one({row, range.end});
}

// (t, s) lies at (t - first) * stride + s - t + half = t * (stride - 1) + s + (half - first *
// stride)
template <typename C>
Weights<C> along(const Band<C>& band) {
  const Rows<C>& rows = band.rows;
  return {rows.data + (band.half - rows.first * rows.stride), rows.stride - 1, 1};
}
template <typename C>
Weights<C> across(const Band<C>& band) {
  const Weights<C> weights = along(band);
  return {weights.origin, weights.column_step, weights.row_step};
}

}  // namespace
}  // namespace tal_fast::cpu
