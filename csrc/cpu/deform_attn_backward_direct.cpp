// SPDX-License-Identifier: Apache-2.0
// The backward for sequences that fit the second-level cache together with their gradient: value is
// read and grad_value is summed where they are. The general backward (deform_attn_backward.cpp)
// copies both to slabs, which costs as much as some fifty samples per row; with few queries, as in
// a decoder, that is more than the samples themselves.
#include "cpu/deform_attn.h"
#include "cpu/deform_attn_samples.h"
#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// For value and its gradient, of all heads of a batch element.
constexpr int64_t kMostBytes = 640 * 1024;
// Samples per row and head up to which this is not slower. Measured with 128 and 256 rows of 8
// heads of 32 channels: a third less time at 1.25 samples per row, the same at 4.
constexpr int64_t kMostSamplesPerRow = 4;

template <typename C>
constexpr int kGroup = kFullLanes<C> >= 8 ? 4 : kFullLanes<C> / 2;

// What stays the same for all queries, and the taps of the current one; one entry per sample
// k = (h, l, p) of the heads of a unit.
template <typename C>
struct Plan {
  int64_t slots;    // samples rounded up to whole vectors
  C* zeros;         // [D]: what a tap outside its level reads ...
  C* lost;          // [D]: ... and where its gradient goes
  C* length;        // [slots] level length as a number
  int32_t* rows;    // [slots] level length
  int32_t* start;   // [slots] the level's first row
  int32_t* column;  // [slots] where the head's channels begin in a row
  C* fraction;      // [slots]
  C* left_weight;
  C* right_weight;
  int32_t* left;  // [slots] where the taps begin in value and in grad_value; -1: nowhere
  int32_t* right;
  C* partial;  // [slots / kGroup, lanes] products with both taps, partly summed
  C* dots;     // [2 * slots] the same, summed, left and right tap in turn

  Plan(const DeformAttnShape& shape, int64_t heads, Carver& carve) {
    constexpr int64_t kLanes = kFullLanes<C>;
    slots = round_up(heads * shape.levels * shape.points, kLanes);
    zeros = carve.take<C>(shape.channels);
    lost = carve.take<C>(shape.channels);
    length = carve.take<C>(slots);
    rows = carve.take<int32_t>(slots);
    start = carve.take<int32_t>(slots);
    column = carve.take<int32_t>(slots);
    fraction = carve.take<C>(slots);
    left_weight = carve.take<C>(slots);
    right_weight = carve.take<C>(slots);
    left = carve.take<int32_t>(slots);
    right = carve.take<int32_t>(slots);
    partial = carve.take<C>(slots / kGroup<C> * kLanes);
    dots = carve.take<C>(2 * slots);
  }

  void fill(const DeformAttnShape& shape, int64_t heads) const {
    for (int64_t d = 0; d < shape.channels; ++d) {
      zeros[d] = C(0);
      lost[d] = C(0);
    }
    for (int64_t i = 0; i < slots / kGroup<C> * kFullLanes<C>; ++i) {
      partial[i] = C(0);
    }
    int64_t k = 0;
    for (int64_t h = 0; h < heads; ++h) {
      int64_t first = 0;
      for (int64_t l = 0; l < shape.levels; ++l) {
        for (int64_t p = 0; p < shape.points; ++p, ++k) {
          length[k] = static_cast<C>(shape.level_lengths[l]);
          rows[k] = static_cast<int32_t>(shape.level_lengths[l]);
          start[k] = static_cast<int32_t>(first);
          column[k] = static_cast<int32_t>(h * shape.channels);
        }
        first += shape.level_lengths[l];
      }
    }
    for (; k < slots; ++k) {  // whole vectors are computed, so these have to hold something
      length[k] = C(1);
      rows[k] = start[k] = column[k] = 0;
    }
  }
};

template <int kLanes>
inline Vector<int32_t, kLanes> load_rows(const int32_t* source) {
  Vector<int32_t, kLanes> rows;
  std::memcpy(&rows, source, sizeof(rows));
  return rows;
}

// `row` is the distance between rows. Samples are read in whole vectors, but for the last ones.
template <typename C>
void locate_query(const Plan<C>& plan, int64_t samples, int32_t row, const C* locations,
                  const C* weights) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  using Rows = Vector<int32_t, kLanes>;
  const Rows nowhere = Rows{} - 1;
  for (int64_t k = 0; k < samples; k += kLanes) {
    const int64_t left = samples - k;
    const V location =
        left >= kLanes ? load<kLanes>(locations + k) : load_partial<kLanes>(locations + k, left);
    const V weight =
        left >= kLanes ? load<kLanes>(weights + k) : load_partial<kLanes>(weights + k, left);
    const auto [tap, fraction] = locate_lanes<C, kLanes>(location, load<kLanes>(plan.length + k));
    const Rows rows = load_rows<kLanes>(plan.rows + k);
    const Rows offset =
        (load_rows<kLanes>(plan.start + k) + tap) * row + load_rows<kLanes>(plan.column + k);
    const Rows next = tap + 1;
    const Rows on_left = (tap >= 0) & (tap < rows) ? offset : nowhere;
    const Rows on_right = (next >= 0) & (next < rows) ? offset + row : nowhere;
    std::memcpy(plan.left + k, &on_left, sizeof(on_left));
    std::memcpy(plan.right + k, &on_right, sizeof(on_right));
    const V share = weight * fraction;
    store<kLanes>(plan.left_weight + k, weight - share);
    store<kLanes>(plan.right_weight + k, share);
    store<kLanes>(plan.fraction + k, fraction);
  }
}

// Sends taps on padded rows where those outside their level go.
template <typename C>
void hide_padding(const Plan<C>& plan, int64_t samples, int64_t row, const bool* padding) {  // [S]
  for (int64_t k = 0; k < samples; ++k) {
    if (plan.left[k] >= 0 && padding[plan.left[k] / row]) {
      plan.left[k] = -1;
    }
    if (plan.right[k] >= 0 && padding[plan.right[k] / row]) {
      plan.right[k] = -1;
    }
  }
}

// One sample: adds to the sums of its two rows, and returns the products of the gradient with both
// rows, still to be summed over lanes, as the two halves of one vector.
template <int kVectors, typename C>
inline Vector<C, kFullLanes<C>> walk_sample(const Plan<C>& plan, int64_t k, const C* value,
                                            C* grad_value, const Vector<C, kFullLanes<C>>* grad) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const int64_t on_left = plan.left[k];
  const int64_t on_right = plan.right[k];
  const C* left = on_left >= 0 ? value + on_left : plan.zeros;
  const C* right = on_right >= 0 ? value + on_right : plan.zeros;
  V left_dot{};
  V right_dot{};
  for (int v = 0; v < kVectors; ++v) {
    left_dot += grad[v] * load<kLanes>(left + v * kLanes);
    right_dot += grad[v] * load<kLanes>(right + v * kLanes);
  }
  C* left_sum = on_left >= 0 ? grad_value + on_left : plan.lost;
  const C left_weight = plan.left_weight[k];
  for (int v = 0; v < kVectors; ++v) {
    store<kLanes>(left_sum + v * kLanes,
                  load<kLanes>(left_sum + v * kLanes) + left_weight * grad[v]);
  }
  C* right_sum = on_right >= 0 ? grad_value + on_right : plan.lost;
  const C right_weight = plan.right_weight[k];
  for (int v = 0; v < kVectors; ++v) {
    store<kLanes>(right_sum + v * kLanes,
                  load<kLanes>(right_sum + v * kLanes) + right_weight * grad[v]);
  }
  return fold<1, C, kLanes>(left_dot, right_dot);
}

template <int kVectors, typename C>
void walk_query(const Plan<C>& plan, int64_t heads, int64_t per_head, const C* value, C* grad_value,
                const C* grad) {  // [heads, D]
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  C* partial = plan.partial;
  int64_t k = 0;
  for (int64_t h = 0; h < heads; ++h, grad += kVectors * kLanes) {
    V g[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      g[v] = load<kLanes>(grad + v * kLanes);
    }
    for (const int64_t end = k + per_head; k < end; k += kGroup<C>) {
      const auto walk = [&](int64_t offset) {
        return walk_sample<kVectors>(plan, k + offset, value, grad_value, g);
      };
      V folded = walk(0);
      if constexpr (kGroup<C> >= 2) {
        folded = fold<2, C, kLanes>(folded, walk(1));
      }
      if constexpr (kGroup<C> == 4) {
        const V third = walk(2);
        folded = fold<4, C, kLanes>(folded, fold<2, C, kLanes>(third, walk(3)));
      }
      store<kLanes>(partial, folded);
      partial += kLanes;
    }
  }
}

// From the products with the taps to the gradients of locations and weights.
template <typename C>
void finish_query(const Plan<C>& plan, int64_t samples, const C* __restrict__ weights,
                  C* __restrict__ by_location, C* __restrict__ by_weight) {
  constexpr int kLanes = kFullLanes<C>;
  for (int64_t k = 0; k < 2 * samples; k += kLanes) {
    store<kLanes>(plan.dots + k,
                  finish_sums<C, kLanes, 2 * kGroup<C>>(plan.partial + k / (2 * kGroup<C>)*kLanes));
  }
  const C* __restrict__ dots = plan.dots;
  const C* __restrict__ fraction = plan.fraction;
  const C* __restrict__ length = plan.length;
  for (int64_t k = 0; k < samples; ++k) {
    const C step = dots[2 * k + 1] - dots[2 * k];
    by_weight[k] = dots[2 * k] + fraction[k] * step;
    // The slope right of the sample: at a row itself, the one towards the next row.
    by_location[k] = length[k] * weights[k] * step;
  }
}

template <int kVectors, typename C>
void backward(const DeformAttnShape& shape, int64_t heads_per_unit, const C* grad, const C* value,
              const bool* padding, const C* locations, const C* weights, int64_t unit_begin,
              int64_t unit_end, std::byte* scratch, C* grad_value, C* grad_locations,
              C* grad_weights) {
  Carver carve(scratch);
  const Plan<C> plan(shape, heads_per_unit, carve);
  plan.fill(shape, heads_per_unit);
  const int64_t row = shape.heads * shape.channels;
  const int64_t per_head = shape.levels * shape.points;
  const int64_t units_per_batch = (shape.heads + heads_per_unit - 1) / heads_per_unit;
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t b = unit / units_per_batch;
    const int64_t first_head = unit % units_per_batch * heads_per_unit;
    const int64_t heads =
        first_head + heads_per_unit <= shape.heads ? heads_per_unit : shape.heads - first_head;
    const int64_t samples = heads * per_head;
    const int64_t value_offset = b * shape.rows * row + first_head * shape.channels;
    const C* unit_value = value + value_offset;
    C* unit_sums = grad_value + value_offset;
    for (int64_t s = 0; s < shape.rows; ++s) {
      std::memset(unit_sums + s * row, 0, static_cast<size_t>(heads * shape.channels) * sizeof(C));
    }
    const bool* padded = padding == nullptr ? nullptr : padding + b * shape.rows;
    if (padded != nullptr && std::memchr(padded, 1, static_cast<size_t>(shape.rows)) == nullptr) {
      padded = nullptr;
    }
    for (int64_t q = b * shape.queries; q < (b + 1) * shape.queries; ++q) {
      const int64_t first = q * shape.samples_per_query() + first_head * per_head;
      locate_query(plan, samples, static_cast<int32_t>(row), locations + first, weights + first);
      if (padded != nullptr) {
        hide_padding(plan, samples, row, padded);
      }
      walk_query<kVectors>(plan, heads, per_head, unit_value, unit_sums,
                           grad + q * row + first_head * shape.channels);
      finish_query(plan, samples, weights + first, grad_locations + first, grad_weights + first);
    }
  }
}

}  // namespace

template <typename C>
bool deform_attn_backward_is_direct(const DeformAttnShape& shape) {
  constexpr int64_t kLanes = kFullLanes<C>;
  const int64_t vectors = shape.channels / kLanes;
  return shape.channels % kLanes == 0 &&
         (vectors == 1 || vectors == 2 || vectors == 4 || vectors == 8) &&
         shape.levels * shape.points % kGroup<C> == 0 &&
         shape.queries * shape.levels * shape.points <= kMostSamplesPerRow * shape.rows &&
         2 * shape.rows * shape.heads * shape.channels * int64_t{sizeof(C)} <= kMostBytes;
}

template <typename C>
size_t deform_attn_backward_direct_scratch(const DeformAttnShape& shape, int64_t heads_per_unit) {
  Carver carve(nullptr);
  Plan<C>(shape, heads_per_unit, carve);
  return carve.used();
}

template <typename C>
void deform_attn_backward_direct(const DeformAttnShape& shape, int64_t heads_per_unit,
                                 const C* grad, const C* value, const bool* padding,
                                 const C* locations, const C* weights, int64_t unit_begin,
                                 int64_t unit_end, std::byte* scratch, C* grad_value,
                                 C* grad_locations, C* grad_weights) {
  auto run = &backward<8, C>;
  switch (shape.channels / kFullLanes<C>) {
    case 1:
      run = &backward<1, C>;
      break;
    case 2:
      run = &backward<2, C>;
      break;
    case 4:
      run = &backward<4, C>;
      break;
  }
  run(shape, heads_per_unit, grad, value, padding, locations, weights, unit_begin, unit_end,
      scratch, grad_value, grad_locations, grad_weights);
}

#define TAL_FAST_INSTANTIATE(C)                                                                    \
  template bool deform_attn_backward_is_direct<C>(const DeformAttnShape&);                         \
  template size_t deform_attn_backward_direct_scratch<C>(const DeformAttnShape&, int64_t);         \
  template void deform_attn_backward_direct<C>(const DeformAttnShape&, int64_t, const C*,          \
                                               const C*, const bool*, const C*, const C*, int64_t, \
                                               int64_t, std::byte*, C*, C*, C*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
