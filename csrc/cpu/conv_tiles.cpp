// SPDX-License-Identifier: Apache-2.0
#include "cpu/conv_tiles.h"

#include "cpu/buffer.h"
#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

constexpr double kA = 2.0 / 3.0;
constexpr double kB = 1.5;

// The points a and b with their powers, in the type of the values.
template <typename T>
struct Point {
  static constexpr T a = T(kA), a2 = T(kA * kA), a3 = T(kA * kA * kA);
  static constexpr T b = T(kB), b2 = T(kB * kB), b3 = T(kB * kB * kB);
  static constexpr T s = T(kA * kA + kB * kB);
};

// Calls body(lanes, c) for all channels from c on: as many at once as a vector holds, the rest one
// by one. `lanes` carries their number in its type.
template <int kLanes>
struct Lanes {
  static constexpr int count = kLanes;
};
template <typename T, typename Body>
inline void for_channels(int64_t channels, Body&& body) {
  int64_t c = 0;
  for (; c + kFullLanes<T> <= channels; c += kFullLanes<T>) {
    body(Lanes<kFullLanes<T>>{}, c);
  }
  for (; c < channels; ++c) {
    body(Lanes<1>{}, c);
  }
}

// A row from which zeros are read, or into which goes what nobody needs.
template <typename T>
class SpareRow {
 public:
  explicit SpareRow(int64_t channels) : row_(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      row_.data()[c] = T(0);
    }
  }
  T* get() { return row_.data(); }

 private:
  Buffer<T> row_;
};

// The rows [first, first + kCount) of a tile; `spare` stands for those outside [low, high).
template <int kCount, typename T>
inline void find_rows(T* rows, int64_t channels, int64_t first, int64_t low, int64_t high, T* spare,
                      T** found) {
  for (int i = 0; i < kCount; ++i) {
    const int64_t row = first + i;
    found[i] = row >= low && row < high ? rows + row * channels : spare;
  }
}

// The inputs that outputs of the span read.
inline int64_t first_input(TileSpan span) {
  return span.first > span.low ? span.first - 1 : span.low;
}
inline int64_t end_of_inputs(TileSpan span) {
  return span.end < span.high ? span.end + 1 : span.high;
}

template <typename T>
void tile_of_inputs(const T* const* x, int64_t channels, T* tile, int64_t plane) {
  using P = Point<T>;
  for_channels<T>(channels, [&](auto lanes, int64_t c) {
    constexpr int kLanes = decltype(lanes)::count;
    const auto x0 = load<kLanes>(x[0] + c), x1 = load<kLanes>(x[1] + c);
    const auto x2 = load<kLanes>(x[2] + c), x3 = load<kLanes>(x[3] + c);
    const auto x4 = load<kLanes>(x[4] + c), x5 = load<kLanes>(x[5] + c);
    const auto even_a = x4 - P::b2 * x2, odd_a = P::a * x3 - P::b * x1;
    const auto even_b = x4 - P::a2 * x2, odd_b = P::b * x3 - P::a * x1;
    T* out = tile + c;
    store<kLanes, T>(out, x0 - P::s * x2 + x4);
    store<kLanes, T>(out + plane, even_a + odd_a);
    store<kLanes, T>(out + 2 * plane, even_a - odd_a);
    store<kLanes, T>(out + 3 * plane, even_b + odd_b);
    store<kLanes, T>(out + 4 * plane, even_b - odd_b);
    store<kLanes, T>(out + 5 * plane, x1 - P::s * x3 + x5);
  });
}

template <typename T>
void tile_of_outputs(const T* const* y, int64_t channels, T* tile, int64_t plane) {
  using P = Point<T>;
  for_channels<T>(channels, [&](auto lanes, int64_t c) {
    constexpr int kLanes = decltype(lanes)::count;
    const auto y0 = load<kLanes>(y[0] + c), y1 = load<kLanes>(y[1] + c);
    const auto y2 = load<kLanes>(y[2] + c), y3 = load<kLanes>(y[3] + c);
    const auto even_a = y0 + P::a2 * y2, odd_a = P::a * y1 + P::a3 * y3;
    const auto even_b = y0 + P::b2 * y2, odd_b = P::b * y1 + P::b3 * y3;
    T* out = tile + c;
    store<kLanes, T>(out, y0);
    store<kLanes, T>(out + plane, even_a + odd_a);
    store<kLanes, T>(out + 2 * plane, even_a - odd_a);
    store<kLanes, T>(out + 3 * plane, even_b + odd_b);
    store<kLanes, T>(out + 4 * plane, even_b - odd_b);
    store<kLanes, T>(out + 5 * plane, y3);
  });
}

template <typename T>
void outputs_of_tile(const T* tile, int64_t plane, int64_t channels, T* const* y) {
  using P = Point<T>;
  for_channels<T>(channels, [&](auto lanes, int64_t c) {
    constexpr int kLanes = decltype(lanes)::count;
    const T* in = tile + c;
    const auto t1 = load<kLanes>(in + plane), t2 = load<kLanes>(in + 2 * plane);
    const auto t3 = load<kLanes>(in + 3 * plane), t4 = load<kLanes>(in + 4 * plane);
    const auto even_a = t1 + t2, odd_a = t1 - t2, even_b = t3 + t4, odd_b = t3 - t4;
    store<kLanes, T>(y[0] + c, load<kLanes>(in) + (even_a + even_b));
    store<kLanes, T>(y[1] + c, P::a * odd_a + P::b * odd_b);
    store<kLanes, T>(y[2] + c, P::a2 * even_a + P::b2 * even_b);
    store<kLanes, T>(y[3] + c, P::a3 * odd_a + P::b3 * odd_b + load<kLanes>(in + 5 * plane));
  });
}

// Adds to a tile's first two inputs what `carried` [2, C] holds of the tile before, and leaves
// there its own share of the last two, which are the next tile's first.
template <typename T>
void inputs_of_tile(const T* tile, int64_t plane, int64_t channels, T* carried, T* const* x) {
  using P = Point<T>;
  for_channels<T>(channels, [&](auto lanes, int64_t c) {
    constexpr int kLanes = decltype(lanes)::count;
    const T* in = tile + c;
    const auto r0 = load<kLanes>(in), r5 = load<kLanes>(in + 5 * plane);
    const auto r1 = load<kLanes>(in + plane), r2 = load<kLanes>(in + 2 * plane);
    const auto r3 = load<kLanes>(in + 3 * plane), r4 = load<kLanes>(in + 4 * plane);
    const auto even_a = r1 + r2, odd_a = r1 - r2, even_b = r3 + r4, odd_b = r3 - r4;
    T* first = carried + c;
    T* second = first + channels;
    store<kLanes, T>(x[0] + c, r0 + load<kLanes>(first));
    store<kLanes, T>(x[1] + c, r5 - (P::b * odd_a + P::a * odd_b) + load<kLanes>(second));
    store<kLanes, T>(x[2] + c, -(P::s * r0 + (P::b2 * even_a + P::a2 * even_b)));
    store<kLanes, T>(x[3] + c, P::a * odd_a + P::b * odd_b - P::s * r5);
    store<kLanes, T>(first, r0 + (even_a + even_b));
    store<kLanes, T>(second, r5);
  });
}

template <typename T>
void copy_row(const T* source, int64_t channels, T* target) {
  for (int64_t c = 0; c < channels; ++c) {
    target[c] = source[c];
  }
}

}  // namespace

template <typename T>
void rows_to_tiles(const T* rows, TileSpan span, bool inputs, int64_t channels, int64_t begin,
                   int64_t end, T* tiles, int64_t plane) {
  SpareRow<T> zeros(channels);
  const T* found[kTilePlanes];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = span.first + i * kTileRows;
    if (inputs) {
      find_rows<kTilePlanes, const T>(rows, channels, first - 1, first_input(span),
                                      end_of_inputs(span), zeros.get(), found);
      tile_of_inputs(found, channels, tiles + i * channels, plane);
    } else {
      find_rows<kTileRows, const T>(rows, channels, first, span.first, span.end, zeros.get(),
                                    found);
      tile_of_outputs(found, channels, tiles + i * channels, plane);
    }
  }
}

template <typename T>
void tiles_to_rows(const T* tiles, int64_t plane, TileSpan span, bool inputs, int64_t channels,
                   int64_t begin, int64_t end, T* rows) {
  SpareRow<T> unused(channels);
  T* found[kTilePlanes];
  if (!inputs) {
    for (int64_t i = begin; i < end; ++i) {
      find_rows<kTileRows, T>(rows, channels, span.first + i * kTileRows, span.first, span.end,
                              unused.get(), found);
      outputs_of_tile(tiles + i * channels, plane, channels, found);
    }
    return;
  }
  SpareRow<T> carried(2 * channels);
  const int64_t low = first_input(span);
  const int64_t high = end_of_inputs(span);
  if (begin > 0) {
    for (auto& row : found) {
      row = unused.get();
    }
    inputs_of_tile(tiles + (begin - 1) * channels, plane, channels, carried.get(), found);
  }
  for (int64_t i = begin; i < end; ++i) {
    find_rows<kTilePlanes, T>(rows, channels, span.first + i * kTileRows - 1, low, high,
                              unused.get(), found);
    inputs_of_tile(tiles + i * channels, plane, channels, carried.get(), found);
  }
  if (span.first + end * kTileRows >= span.end) {
    copy_row(carried.get(), channels, found[4]);
    copy_row(carried.get() + channels, channels, found[5]);
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                           \
  template void rows_to_tiles<T>(const T*, TileSpan, bool, int64_t, int64_t, int64_t, T*, \
                                 int64_t);                                                \
  template void tiles_to_rows<T>(const T*, int64_t, TileSpan, bool, int64_t, int64_t, int64_t, T*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
