// SPDX-License-Identifier: Apache-2.0
// The softmax of a band (local_attn_band.h), its gradient, and its weights as the forward hands
// them to the backward. In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include "cpu/local_attn_band.h"
#include "cpu/simd_exp.h"

namespace tal_fast::cpu {
namespace {

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

// Calls body(place, hidden) for the vectors of a row of the band, where a lane of `hidden` that is
// not zero is hidden or behind the band.
template <typename C, typename Body>
inline void for_each_vector(const C* hidden, int64_t window, Vector<C, kFullLanes<C>> behind,
                            Body&& body) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t j = 0;
  for (; j + kLanes <= window; j += kLanes) {
    body(j, load<kLanes>(hidden + j));
  }
  if (j < window) {
    body(j, load<kLanes>(hidden + j) + behind);
  }
}

// Not zero in the lanes of the last vector that are behind the band.
template <typename C>
Vector<C, kFullLanes<C>> lanes_behind(int64_t window) {
  constexpr int kLanes = kFullLanes<C>;
  Vector<C, kLanes> behind;
  for (int i = 0; i < kLanes; ++i) {
    behind[i] = window / kLanes * kLanes + i < window ? C(0) : C(1);
  }
  return behind;
}

// Replaces scores by weights; rows of padding get weights of zero.
template <typename C>
[[gnu::noinline]] void band_softmax(const LocalAttnShape& shape, const C* hidden, Range range,
                                    const Band<C>& band) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const V behind = lanes_behind<C>(shape.window());
  const V lowest = V{} - static_cast<C>(__builtin_inf());
  for (int64_t t = range.begin; t < range.end; ++t) {
    C* row = band[t];
    const C* hide = hidden + (t - range.begin);
    if (hide[shape.half] != 0) {
      fill_zeros<C, kLanes>(row, round_up(shape.window(), kLanes));
      continue;
    }
    V highest = lowest;
    for_each_vector(hide, shape.window(), behind, [&](int64_t j, V off) {
      const V score = off == 0 ? load<kLanes>(row + j) : lowest;
      highest = score > highest ? score : highest;
    });
    highest = over_group<C, kLanes, kLanes>(highest, [](V a, V b) { return a > b ? a : b; });
    V sum{};
    for_each_vector(hide, shape.window(), behind, [&](int64_t j, V off) {
      const V e = exp_nonpositive<kLanes>(load<kLanes>(row + j) - highest);
      const V weight = off == 0 ? e : V{};
      sum += weight;
      store<kLanes>(row + j, weight);
    });
    const V factor = C(1) / group_sum<C, kLanes, kLanes>(sum);
    for (int64_t j = 0; j < shape.window(); j += kLanes) {
      store<kLanes>(row + j, load<kLanes>(row + j) * factor);
    }
  }
}

// Replaces the gradients of weights by those of scores.
template <typename C>
[[gnu::noinline]] void band_softmax_backward(const LocalAttnShape& shape, const C* hidden,
                                             Range range, const Band<C>& weights,
                                             const Band<C>& band) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const V behind = lanes_behind<C>(shape.window());
  for (int64_t t = range.begin; t < range.end; ++t) {
    const C* weight = weights[t];
    C* row = band[t];
    const C* hide = hidden + (t - range.begin);
    V sum{};
    for_each_vector(hide, shape.window(), behind, [&](int64_t j, V off) {
      sum += off == 0 ? load<kLanes>(row + j) * load<kLanes>(weight + j) : V{};
    });
    const V mean = group_sum<C, kLanes, kLanes>(sum);
    for_each_vector(hide, shape.window(), behind, [&](int64_t j, V off) {
      const V grad = load<kLanes>(weight + j) * (load<kLanes>(row + j) - mean);
      store<kLanes>(row + j, off == 0 ? grad : V{});
    });
  }
}

// ---- kept weights -------------------------------------------------------------------------------

// Copies numbers in whole vectors; the last one overlaps the one before.
template <typename C>
inline void copy_numbers(const C* source, C* target, int64_t count) {
  constexpr int kLanes = kFullLanes<C>;
  if (count < kLanes) {
    for (int64_t i = 0; i < count; ++i) {
      target[i] = source[i];
    }
    return;
  }
  for (int64_t i = 0; i + kLanes < count; i += kLanes) {
    store<kLanes>(target + i, load<kLanes>(source + i));
  }
  store<kLanes>(target + count - kLanes, load<kLanes>(source + count - kLanes));
}

// Where the weights of a row lie: [B, T, H, window].
template <typename C>
C* kept_row(const LocalAttnShape& shape, C* kept, int64_t b, int64_t t, int64_t h) {
  return kept + ((b * shape.rows + t) * shape.heads + h) * shape.window();
}

template <typename C>
void keep_weights(const LocalAttnShape& shape, int64_t b, int64_t h, Range range,
                  const Band<C>& band, C* kept) {
  for (int64_t t = range.begin; t < range.end; ++t) {
    copy_numbers<C>(band[t], kept_row(shape, kept, b, t, h), shape.window());
  }
}

template <typename C>
void read_weights(const LocalAttnShape& shape, int64_t b, int64_t h, Range range, const C* kept,
                  const Band<C>& band) {
  for (int64_t t = range.begin; t < range.end; ++t) {
    copy_numbers<C>(kept_row(shape, kept, b, t, h), band[t], shape.window());
  }
}

}  // namespace
}  // namespace tal_fast::cpu
