// SPDX-License-Identifier: Apache-2.0
// A unit copies the rows that it needs, and everything is then a product with a band
// (local_attn_band.h) or a softmax of one.
#include "cpu/local_attn.h"

#include "cpu/local_attn_band.h"
#include "cpu/simd_exp.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// ---- softmax ------------------------------------------------------------------------------------

// Calls body(place, hidden) for the vectors of a row of the band, where a lane of `hidden` that is
// not zero is hidden or behind the band.
template <typename C, typename Body>
inline void for_each_vector(const C* hidden, int64_t window, Body&& body) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t j = 0;
  for (; j + kLanes <= window; j += kLanes) {
    body(j, load<kLanes>(hidden + j));
  }
  if (j < window) {
    Vector<C, kLanes> behind;
    for (int i = 0; i < kLanes; ++i) {
      behind[i] = j + i < window ? C(0) : C(1);
    }
    body(j, load<kLanes>(hidden + j) + behind);
  }
}

// Replaces scores by weights; rows of padding get weights of zero.
template <typename C>
void band_softmax(const LocalAttnShape& shape, const C* hidden, Range range, const Band<C>& band) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const V lowest = V{} - static_cast<C>(__builtin_inf());
  for (int64_t t = range.begin; t < range.end; ++t) {
    C* row = band.row(t);
    const C* hide = hidden + (t - range.begin);
    if (hide[shape.half] != 0) {
      fill_zeros<C, kLanes>(row, round_up(shape.window(), kLanes));
      continue;
    }
    V highest = lowest;
    for_each_vector(hide, shape.window(), [&](int64_t j, V off) {
      const V score = off == 0 ? load<kLanes>(row + j) : lowest;
      highest = score > highest ? score : highest;
    });
    highest = over_group<C, kLanes, kLanes>(highest, [](V a, V b) { return a > b ? a : b; });
    V sum{};
    for_each_vector(hide, shape.window(), [&](int64_t j, V off) {
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
void band_softmax_backward(const LocalAttnShape& shape, const C* hidden, Range range,
                           const Band<C>& weights, const Band<C>& band) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  for (int64_t t = range.begin; t < range.end; ++t) {
    const C* weight = weights.row(t);
    C* row = band.row(t);
    const C* hide = hidden + (t - range.begin);
    V sum{};
    for_each_vector(hide, shape.window(), [&](int64_t j, V off) {
      sum += off == 0 ? load<kLanes>(row + j) * load<kLanes>(weight + j) : V{};
    });
    const V mean = group_sum<C, kLanes, kLanes>(sum);
    for_each_vector(hide, shape.window(), [&](int64_t j, V off) {
      const V grad = load<kLanes>(weight + j) * (load<kLanes>(row + j) - mean);
      store<kLanes>(row + j, off == 0 ? grad : V{});
    });
  }
}

// ---- units --------------------------------------------------------------------------------------

struct Unit {
  int64_t b;
  int64_t h;
  Range range;
};

inline Unit unit_at(const LocalAttnShape& shape, int64_t block, int64_t unit) {
  const int64_t blocks = (shape.rows + block - 1) / block;
  const int64_t first = unit / shape.heads % blocks * block;
  return {
      unit / shape.heads / blocks, unit % shape.heads, {first, least(first + block, shape.rows)}};
}

inline bool all_padding(const LocalAttnShape& shape, const bool* padding, const Unit& unit) {
  if (padding == nullptr) {
    return false;
  }
  for (int64_t t = unit.range.begin; t < unit.range.end; ++t) {
    if (!padding[unit.b * shape.rows + t]) {
      return false;
    }
  }
  return true;
}

template <typename T, typename C = ComputeType<T>>
Output<T> output(const LocalAttnShape& shape, const Unit& unit, C scale, T* tensor) {
  const int64_t row_stride = shape.heads * shape.channels;
  return {tensor + unit.b * shape.rows * row_stride + unit.h * shape.channels, row_stride,
          shape.channels, scale};
}

template <typename T>
void put_zeros(const Output<T>& out, int64_t t) {
  T* row = out.data + t * out.row_stride;
  for (int64_t d = 0; d < out.channels; ++d) {
    row[d] = narrow<T>(0);
  }
}

template <typename T>
void put_zeros(const LocalAttnShape& shape, const Unit& unit, T* tensor) {
  for (int64_t t = unit.range.begin; tensor != nullptr && t < unit.range.end; ++t) {
    put_zeros(output<T>(shape, unit, ComputeType<T>(1), tensor), t);
  }
}

// Writes the weighted sums, times `scale`, to the unit's rows of a result; rows of padding are
// zero.
template <typename T, typename C = ComputeType<T>>
void put_sums(const LocalAttnShape& shape, const bool* padding, const Unit& unit,
              const Weights<C>& weights, const Rows<C>& source, C scale, T* tensor) {
  const Output<T> out = output<T>(shape, unit, scale, tensor);
  band_sums(weights, source, unit.range, shape.rows, shape.half, out);
  // A row of NaN among those that see it gives a NaN here too.
  for (int64_t t = unit.range.begin; padding != nullptr && t < unit.range.end; ++t) {
    if (padding[unit.b * shape.rows + t]) {
      put_zeros(out, t);
    }
  }
}

template <typename C>
C score_scale(const LocalAttnShape& shape) {
  return static_cast<C>(1.0 / __builtin_sqrt(static_cast<double>(shape.channels)));
}

template <typename C>
struct ForwardScratch {
  Rows<C> query, key, value;
  Band<C> band;
  C* hidden;
  size_t bytes;

  ForwardScratch(const LocalAttnShape& shape, int64_t block, std::byte* memory) {
    Carver carver(memory);
    const int64_t rows = least(block, shape.rows);
    const int64_t seen = least(block + 2 * shape.half, shape.rows);
    query = take_rows<C>(carver, shape, rows);
    key = take_rows<C>(carver, shape, seen);
    value = take_rows<C>(carver, shape, seen);
    band = take_band<C>(carver, shape, rows);
    hidden = take_hidden<C>(carver, shape, rows);
    bytes = carver.used();
  }
};

template <typename C>
struct BackwardScratch {
  Rows<C> query, grad, key, value;
  Band<C> weights, scores;
  C* hidden;
  size_t bytes;

  BackwardScratch(const LocalAttnShape& shape, int64_t block, std::byte* memory) {
    Carver carver(memory);
    const int64_t rows = least(block + 2 * shape.half, shape.rows);
    const int64_t seen = least(block + 4 * shape.half, shape.rows);
    query = take_rows<C>(carver, shape, rows);
    grad = take_rows<C>(carver, shape, rows);
    key = take_rows<C>(carver, shape, seen);
    value = take_rows<C>(carver, shape, seen);
    weights = take_band<C>(carver, shape, rows);
    scores = take_band<C>(carver, shape, rows);
    hidden = take_hidden<C>(carver, shape, rows);
    bytes = carver.used();
  }
};

}  // namespace

template <typename T>
size_t local_attn_scratch(const LocalAttnShape& shape, int64_t block, bool backward) {
  using C = ComputeType<T>;
  return backward ? BackwardScratch<C>(shape, block, nullptr).bytes
                  : ForwardScratch<C>(shape, block, nullptr).bytes;
}

template <typename T>
void local_attn_forward(const LocalAttnShape& shape, int64_t block, const LocalAttnInput<T>& query,
                        const LocalAttnInput<T>& key, const LocalAttnInput<T>& value,
                        const bool* padding, int64_t unit_begin, int64_t unit_end,
                        std::byte* scratch, T* out) {
  using C = ComputeType<T>;
  ForwardScratch<C> s(shape, block, scratch);
  for (int64_t number = unit_begin; number < unit_end; ++number) {
    const Unit unit = unit_at(shape, block, number);
    if (all_padding(shape, padding, unit)) {
      put_zeros(shape, unit, out);
      continue;
    }
    const Range range = unit.range;
    const Range seen = range.widened(shape.half, shape.rows);
    copy_rows(shape, query, unit.b, unit.h, padding, range, score_scale<C>(shape), s.query);
    copy_rows(shape, key, unit.b, unit.h, padding, seen, C(1), s.key);
    copy_rows(shape, value, unit.b, unit.h, padding, seen, C(1), s.value);
    mark_hidden(shape, padding, unit.b, range, s.hidden);
    s.band.first = range.begin;
    band_dots(s.query, s.key, range, shape.rows, s.band);
    band_softmax(shape, s.hidden, range, s.band);
    put_sums(shape, padding, unit, along(s.band), s.value, C(1), out);
  }
}

template <typename T>
void local_attn_backward(const LocalAttnShape& shape, int64_t block, const LocalAttnInput<T>& grad,
                         const LocalAttnInput<T>& query, const LocalAttnInput<T>& key,
                         const LocalAttnInput<T>& value, const bool* padding, int64_t unit_begin,
                         int64_t unit_end, std::byte* scratch, T* grad_query, T* grad_key,
                         T* grad_value) {
  using C = ComputeType<T>;
  BackwardScratch<C> s(shape, block, scratch);
  const C scale = score_scale<C>(shape);
  for (int64_t number = unit_begin; number < unit_end; ++number) {
    const Unit unit = unit_at(shape, block, number);
    if (all_padding(shape, padding, unit)) {
      put_zeros(shape, unit, grad_query);
      put_zeros(shape, unit, grad_key);
      put_zeros(shape, unit, grad_value);
      continue;
    }
    // The rows that see a row of the unit, and what these see.
    const Range range = unit.range.widened(shape.half, shape.rows);
    const Range seen = range.widened(shape.half, shape.rows);
    copy_rows(shape, query, unit.b, unit.h, padding, range, scale, s.query);
    copy_rows(shape, grad, unit.b, unit.h, padding, range, C(1), s.grad);
    copy_rows(shape, key, unit.b, unit.h, padding, seen, C(1), s.key);
    mark_hidden(shape, padding, unit.b, range, s.hidden);
    s.weights.first = s.scores.first = range.begin;
    band_dots(s.query, s.key, range, shape.rows, s.weights);
    band_softmax(shape, s.hidden, range, s.weights);
    if (grad_value != nullptr) {
      put_sums(shape, padding, unit, across(s.weights), s.grad, C(1), grad_value);
    }
    if (grad_query == nullptr && grad_key == nullptr) {
      continue;
    }
    copy_rows(shape, value, unit.b, unit.h, padding, seen, C(1), s.value);
    band_dots(s.grad, s.value, range, shape.rows, s.scores);
    band_softmax_backward(shape, s.hidden, range, s.weights, s.scores);
    if (grad_query != nullptr) {
      put_sums(shape, padding, unit, along(s.scores), s.key, scale, grad_query);
    }
    if (grad_key != nullptr) {  // the copied queries are scaled already
      put_sums(shape, padding, unit, across(s.scores), s.query, C(1), grad_key);
    }
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                                  \
  template size_t local_attn_scratch<T>(const LocalAttnShape&, int64_t, bool);                   \
  template void local_attn_forward<T>(const LocalAttnShape&, int64_t, const LocalAttnInput<T>&,  \
                                      const LocalAttnInput<T>&, const LocalAttnInput<T>&,        \
                                      const bool*, int64_t, int64_t, std::byte*, T*);            \
  template void local_attn_backward<T>(const LocalAttnShape&, int64_t, const LocalAttnInput<T>&, \
                                       const LocalAttnInput<T>&, const LocalAttnInput<T>&,       \
                                       const LocalAttnInput<T>&, const bool*, int64_t, int64_t,  \
                                       std::byte*, T*, T*, T*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
