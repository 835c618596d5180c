// SPDX-License-Identifier: Apache-2.0
// The two products with a band that banded self-attention consists of: dots of rows (q . k, grad .
// v), and sums of rows weighted by the band, read along its rows (out, grad of q) or across (grads
// of k and v). In an anonymous namespace because each instruction set compiles its own.
//
// The rows are copies in one block of memory, where they follow each other as whole vectors of the
// compute type and padding is zero: models lay heads and rows at powers of two, which share few
// places of the first-level cache.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "math/local_attn.h"

namespace tal_fast::cpu {
namespace {

inline int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// Rows [begin, end) of a video.
struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
  Range widened(int64_t half, int64_t rows) const {
    return {most(begin - half, 0), least(end + half, rows)};
  }
};

// ---- rows ---------------------------------------------------------------------------------------

// Tiles of the dots: their sums fill one vector.
constexpr int kDotRows = 2;
template <typename C>
constexpr int kDotKeys = kFullLanes<C> / kDotRows;
// Tiles of the weighted sums, in rows and vectors: twelve sums leave registers for the operands.
constexpr int kSumRows = 3;
constexpr int kSumVectors = 4;

// Consecutive rows of one head.
template <typename C>
struct Rows {
  C* data;        // [rows.size(), stride], and a few rows of zeros behind
  int64_t first;  // the row of the video that lies at `data`
  int64_t stride;

  const C* operator[](int64_t row) const { return data + (row - first) * stride; }
};

template <typename C>
int64_t row_stride(const LocalAttnShape& shape) {
  return round_up(shape.channels, kFullLanes<C>);
}

template <typename C>
Rows<C> take_rows(Carver& carver, const LocalAttnShape& shape, int64_t rows) {
  const int64_t stride = row_stride<C>(shape);
  return {carver.take<C>((rows + kDotRows + kDotKeys<C>)*stride), 0, stride};
}

template <typename C, int kLanes>
inline void fill_zeros(C* target, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store<kLanes>(target + i, Vector<C, kLanes>{});
  }
}

// Rows of a head lie far from each other: no prefetcher of the hardware follows them. The first
// head asks for those beside it, too: memory prefers to be read in its order.
constexpr int64_t kRowsAhead = 16;

// Copies the rows of `range`, times `scale`; rows of padding become zero.
template <typename T, typename C = ComputeType<T>>
void copy_rows(const LocalAttnShape& shape, const LocalAttnInput<T>& input, int64_t b, int64_t h,
               const bool* padding, Range range, C scale, Rows<C>& rows) {
  constexpr int kLanes = kFullLanes<C>;
  const T* source = input.data + b * input.batch_stride + h * input.head_stride;
  const int64_t channels = shape.channels;
  const int64_t whole = input.channel_stride == 1 ? channels / kLanes * kLanes : 0;
  const int64_t prefetched = whole * static_cast<int64_t>(sizeof(T)) *
                             (h == 0 && input.head_stride == channels ? shape.heads : 1);
  rows.first = range.begin;
  C* target = rows.data;
  for (int64_t t = range.begin; t < range.end; ++t, target += rows.stride) {
    const T* row = source + t * input.row_stride;
    if (t + kRowsAhead < range.end) {
      const char* ahead = reinterpret_cast<const char*>(row + kRowsAhead * input.row_stride);
      for (int64_t byte = 0; byte < prefetched; byte += 64) {
        __builtin_prefetch(ahead + byte);
      }
    }
    if (padding != nullptr && padding[b * shape.rows + t]) {
      fill_zeros<C, kLanes>(target, rows.stride);
      continue;
    }
    for (int64_t d = 0; d < whole; d += kLanes) {
      store<kLanes>(target + d, load<kLanes>(row + d) * scale);
    }
    for (int64_t d = whole; d < channels; ++d) {
      target[d] = widen(row[d * input.channel_stride]) * scale;
    }
    for (int64_t d = channels; d < rows.stride; ++d) {
      target[d] = 0;
    }
  }
  fill_zeros<C, kLanes>(target, (kDotRows + kDotKeys<C>)*rows.stride);
}

// ---- bands --------------------------------------------------------------------------------------

// One number for each pair (t, s) of rows with |t - s| <= half: the pair lies at
// (t - first) * stride + (s - t + half), so that both t and s step by a fixed number of elements.
// Around the pairs of a row there may be anything.
template <typename C>
struct Band {
  C* data;
  int64_t first;
  int64_t half;
  int64_t stride;

  C* row(int64_t t) const { return data + (t - first) * stride; }
};

template <typename C>
int64_t band_stride(const LocalAttnShape& shape) {
  return round_up(shape.window() + kDotKeys<C> + 1, kFullLanes<C>);
}

template <typename C>
Band<C> take_band(Carver& carver, const LocalAttnShape& shape, int64_t rows) {
  const int64_t stride = band_stride<C>(shape);
  // A tile of dots begins one element before the pairs of its second row.
  C* data = carver.take<C>((rows + kDotRows) * stride + 2 * kFullLanes<C>);
  return {data == nullptr ? nullptr : data + kFullLanes<C>, 0, shape.half, stride};
}

// 1 for the places that a row must not see, 0 for the others: place i belongs to row first - half +
// i.
template <typename C>
C* take_hidden(Carver& carver, const LocalAttnShape& shape, int64_t rows) {
  return carver.take<C>(rows + 2 * shape.half + 2 * kFullLanes<C>);
}

template <typename C>
void mark_hidden(const LocalAttnShape& shape, const bool* padding, int64_t b, Range range,
                 C* hidden) {
  const int64_t count = range.size() + 2 * shape.half + 2 * kFullLanes<C>;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t s = range.begin - shape.half + i;
    const bool outside = s < 0 || s >= shape.rows;
    hidden[i] = outside || (padding != nullptr && padding[b * shape.rows + s]) ? C(1) : C(0);
  }
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

// band[t, s] = left[t] . right[s] for t in `range`, s in the video.
template <typename C>
void band_dots(const Rows<C>& left, const Rows<C>& right, Range range, int64_t rows,
               const Band<C>& band) {
  constexpr int kLanes = kFullLanes<C>;
  constexpr int kKeys = kDotKeys<C>;
  using V = Vector<C, kLanes>;
  const int64_t stride = left.stride;
  for (int64_t t = range.begin; t < range.end; t += kDotRows) {
    const Range seen = Range{t, t + kDotRows}.widened(band.half, rows);
    const C* a = left[t];
    C* target = band.row(t) + (seen.begin - t + band.half);
    for (int64_t s = seen.begin; s < seen.end; s += kKeys, target += kKeys) {
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
          const V row_of_b = load<kLanes>(b + j * stride + d);
#pragma GCC unroll 16
          for (int i = 0; i < kDotRows; ++i) {
            sums[i * kKeys + j] += rows_of_a[i] * row_of_b;
          }
        }
      }
      const V dots = lane_sums<C, kLanes, kDotRows * kKeys>(sums);
#pragma GCC unroll 16
      for (int i = 0; i < kDotRows; ++i) {
        __builtin_memcpy(target + i * (band.stride - 1),
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
  ComputeType<T> scale;
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

// Sums kVectors vectors of kRows rows. At the edges of the band a column belongs to some rows
// alone: a weight of zero for the others would not keep out a NaN.
template <int kRows, int kVectors, typename T, typename C = ComputeType<T>>
inline void sum_vectors(const Weights<C>& weights, const Rows<C>& source, int64_t d, int64_t row,
                        int64_t rows, int64_t half, const Output<T>& out) {
  constexpr int kLanes = kFullLanes<C>;
  const Range columns = Range{row, row + kRows}.widened(half, rows);
  Vector<C, kLanes> sums[kRows][kVectors] = {};
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
  if (columns.size() == kRows + 2 * half && 2 * half >= kRows) {
    [&]<std::size_t... kEdge>(std::index_sequence<kEdge...>) {
      (add(First{}, std::integral_constant<int, static_cast<int>(kEdge) + 1>{}), ...);
      for (int64_t n = 2 * half + 2 - kRows; n > 0; --n) {
        add(First{}, Last{});
      }
      (add(std::integral_constant<int, static_cast<int>(kEdge) + 1>{}, Last{}), ...);
    }(std::make_index_sequence<kRows - 1>{});
  } else {  // near an end of the video, or a window of fewer rows than the tile
    for (int64_t s = columns.begin; s < columns.end; ++s) {
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        if (s >= row + i - half && s <= row + i + half) {
          const C w = weight[i * weights.row_step];
          for (int v = 0; v < kVectors; ++v) {
            sums[i][v] += w * load<kLanes>(from + v * kLanes);
          }
        }
      }
      weight += weights.column_step;
      from += source.stride;
    }
  }
  T* target = out.data + row * out.row_stride + d;
  const int64_t left = out.channels - d;
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i, target += out.row_stride) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Vector<C, kLanes> sum = sums[i][v] * out.scale;
      if ((v + 1) * kLanes <= left) {
        store<kLanes>(target + v * kLanes, sum);
      } else {
        store_partial<kLanes>(target + v * kLanes, sum, left - v * kLanes);
      }
    }
  }
}

template <int kRows, typename T, typename C = ComputeType<T>>
void sum_rows(const Weights<C>& weights, const Rows<C>& source, int64_t row, int64_t rows,
              int64_t half, const Output<T>& out) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t d = 0;
  for (; d + kSumVectors * kLanes <= source.stride; d += kSumVectors * kLanes) {
    sum_vectors<kRows, kSumVectors>(weights, source, d, row, rows, half, out);
  }
  for (; d + 2 * kLanes <= source.stride; d += 2 * kLanes) {
    sum_vectors<kRows, 2>(weights, source, d, row, rows, half, out);
  }
  for (; d < source.stride; d += kLanes) {
    sum_vectors<kRows, 1>(weights, source, d, row, rows, half, out);
  }
}

// out[row] = scale * sum over the columns of weight * source[column], for the rows of `range`.
template <typename T, typename C = ComputeType<T>>
void band_sums(const Weights<C>& weights, const Rows<C>& source, Range range, int64_t rows,
               int64_t half, const Output<T>& out) {
  int64_t row = range.begin;
  for (; row + kSumRows <= range.end; row += kSumRows) {
    // Results to come, for writing: a store that misses the cache waits for its line.
    for (int64_t t = row + 4 * kSumRows; t < least(row + 5 * kSumRows, range.end); ++t) {
      const char* ahead = reinterpret_cast<const char*>(out.data + t * out.row_stride);
      for (int64_t byte = 0; byte < out.channels * static_cast<int64_t>(sizeof(T)); byte += 64) {
        __builtin_prefetch(ahead + byte, 1);
      }
    }
    sum_rows<kSumRows>(weights, source, row, rows, half, out);
  }
  for (; row < range.end; ++row) {
    sum_rows<1>(weights, source, row, rows, half, out);
  }
}

// (t, s) lies at (t - first) * stride + s - t + half = t * (stride - 1) + s + (half - first *
// stride)
template <typename C>
Weights<C> along(const Band<C>& band) {
  return {band.data + (band.half - band.first * band.stride), band.stride - 1, 1};
}
template <typename C>
Weights<C> across(const Band<C>& band) {
  return {band.data + (band.half - band.first * band.stride), 1, band.stride - 1};
}

}  // namespace
}  // namespace tal_fast::cpu
