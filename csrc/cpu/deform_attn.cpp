// SPDX-License-Identifier: Apache-2.0
// The forward; the backward is in deform_attn_backward.cpp.
#include "cpu/deform_attn.h"

#include "cpu/deform_attn_samples.h"
#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// What stays the same for all queries, one entry per sample k = (h, l, p) of a query.
template <typename C>
struct ForwardPlan {
  std::byte* zeros;  // [D] values of the type of the tensors
  C* length;         // [K] level length as a number
  int32_t* rows;     // [K] level length
  int64_t* start;    // [K] rows before the level
  int64_t* first;    // [K] byte offset of the level's first row of this head
  int64_t* left;     // [K] byte offsets of the two taps of the current query ...
  int64_t* right;
  C* left_weight;  // [K] ... and their weights
  C* right_weight;
};

template <typename C>
ForwardPlan<C> take_forward_plan(const DeformAttnShape& shape, int64_t item_size, Carver& carve) {
  const int64_t samples = shape.heads * shape.levels * shape.points;
  ForwardPlan<C> plan;
  plan.zeros = carve.take<std::byte>(shape.channels * item_size);
  plan.length = carve.take<C>(samples);
  plan.rows = carve.take<int32_t>(samples);
  plan.start = carve.take<int64_t>(samples);
  plan.first = carve.take<int64_t>(samples);
  plan.left = carve.take<int64_t>(samples);
  plan.right = carve.take<int64_t>(samples);
  plan.left_weight = carve.take<C>(samples);
  plan.right_weight = carve.take<C>(samples);
  return plan;
}

template <typename C>
void fill_forward_plan(const DeformAttnShape& shape, int64_t item_size,
                       const ForwardPlan<C>& plan) {
  int64_t k = 0;
  for (int64_t h = 0; h < shape.heads; ++h) {
    int64_t start = 0;
    for (int64_t l = 0; l < shape.levels; ++l) {
      const int64_t length = shape.level_lengths[l];
      for (int64_t p = 0; p < shape.points; ++p, ++k) {
        plan.length[k] = static_cast<C>(length);
        plan.rows[k] = static_cast<int32_t>(length);
        plan.start[k] = start;
        plan.first[k] = (start * shape.heads + h) * shape.channels * item_size;
      }
      start += length;
    }
  }
}

// Byte offsets, relative to the batch element's first row, and weights of both taps of all samples
// of a query. A tap outside its level reads the row of zeros at `zeros`: no branch is left for the
// loop over channels, and a NaN in a row that no tap touches cannot leak in through a zero weight.
template <typename C>
void locate_query(const ForwardPlan<C>& plan, int64_t samples, int64_t row_bytes, int64_t zeros,
                  const C* __restrict__ locations, const C* __restrict__ weights) {
  const C* __restrict__ length = plan.length;
  const int32_t* __restrict__ rows = plan.rows;
  const int64_t* __restrict__ first = plan.first;
  int64_t* __restrict__ left = plan.left;
  int64_t* __restrict__ right = plan.right;
  C* __restrict__ left_weight = plan.left_weight;
  C* __restrict__ right_weight = plan.right_weight;
  for (int64_t k = 0; k < samples; ++k) {
    const Position<C> position = locate(locations[k], length[k]);
    const int64_t offset = first[k] + position.tap * row_bytes;
    const bool left_inside = static_cast<uint32_t>(position.tap) < static_cast<uint32_t>(rows[k]);
    const bool right_inside =
        static_cast<uint32_t>(position.tap + 1) < static_cast<uint32_t>(rows[k]);
    left[k] = left_inside ? offset : zeros;
    right[k] = right_inside ? offset + row_bytes : zeros;
    const C share = weights[k] * position.fraction;
    left_weight[k] = weights[k] - share;
    right_weight[k] = share;
  }
}

// Sends the taps of a query that lie on padded rows to the row of zeros, too. Only batch elements
// that have padding pay for this.
template <typename C>
void hide_padding(const ForwardPlan<C>& plan, int64_t samples, int64_t zeros, const C* locations,
                  const bool* padding) {  // [S]
  for (int64_t k = 0; k < samples; ++k) {
    const int32_t tap = locate(locations[k], plan.length[k]).tap;
    const bool* row = padding + plan.start[k];
    if (tap >= 0 && tap < plan.rows[k] && row[tap]) {
      plan.left[k] = zeros;
    }
    if (tap >= -1 && tap + 1 < plan.rows[k] && row[tap + 1]) {
      plan.right[k] = zeros;
    }
  }
}

// kVectors vectors of channels from `channel` on, over all samples of one head.
template <typename T, int kLanes, int kVectors, typename C>
inline void sum_head(const char* base, const ForwardPlan<C>& plan, int64_t first, int64_t count,
                     int64_t channel, T* out) {
  Vector<C, kLanes> sum[kVectors] = {};
  for (int64_t k = first; k < first + count; ++k) {
    const T* left = reinterpret_cast<const T*>(base + plan.left[k]) + channel;
    const T* right = reinterpret_cast<const T*>(base + plan.right[k]) + channel;
    const C left_weight = plan.left_weight[k];
    const C right_weight = plan.right_weight[k];
    for (int v = 0; v < kVectors; ++v) {
      sum[v] += left_weight * load<kLanes>(left + v * kLanes);
      sum[v] += right_weight * load<kLanes>(right + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store<kLanes>(out + channel + v * kLanes, sum[v]);
  }
}

template <typename T, int kLanes, typename C>
inline void sum_head_tail(const char* base, const ForwardPlan<C>& plan, int64_t first,
                          int64_t count, int64_t channel, int64_t channels, T* out) {
  Vector<C, kLanes> sum{};
  const int64_t rest = channels - channel;
  for (int64_t k = first; k < first + count; ++k) {
    const T* left = reinterpret_cast<const T*>(base + plan.left[k]) + channel;
    const T* right = reinterpret_cast<const T*>(base + plan.right[k]) + channel;
    sum += plan.left_weight[k] * load_partial<kLanes>(left, rest);
    sum += plan.right_weight[k] * load_partial<kLanes>(right, rest);
  }
  store_partial<kLanes>(out + channel, sum, rest);
}

// All heads of a query. kVectors > 0: channels == kVectors * kLanes. kVectors == 0: any number of
// channels. The one part of the forward that is compiled for every type of the tensors and for the
// usual channel counts: all sums of a head then stay in registers.
template <typename T, int kLanes, int kVectors, typename C = ComputeType<T>>
void sum_query(const DeformAttnShape& shape, const char* base, const ForwardPlan<C>& plan,
               std::byte* out) {  // [H, D]
  const int64_t per_head = shape.levels * shape.points;
  T* target = reinterpret_cast<T*>(out);
  for (int64_t h = 0; h < shape.heads; ++h, target += shape.channels) {
    if constexpr (kVectors > 0) {
      sum_head<T, kLanes, kVectors>(base, plan, h * per_head, per_head, 0, target);
    } else {
      int64_t channel = 0;
      for (; channel + kLanes <= shape.channels; channel += kLanes) {
        sum_head<T, kLanes, 1>(base, plan, h * per_head, per_head, channel, target);
      }
      if (channel < shape.channels) {
        sum_head_tail<T, kLanes>(base, plan, h * per_head, per_head, channel, shape.channels,
                                 target);
      }
    }
  }
}

template <typename C>
using SumQuery = void (*)(const DeformAttnShape&, const char*, const ForwardPlan<C>&, std::byte*);

template <typename C>
void forward(const DeformAttnShape& shape, int64_t item_size, SumQuery<C> sum_query,
             const std::byte* value, const bool* padding, const C* locations, const C* weights,
             int64_t unit_begin, int64_t unit_end, std::byte* scratch, std::byte* out) {
  Carver carve(scratch);
  const ForwardPlan<C> plan = take_forward_plan<C>(shape, item_size, carve);
  std::memset(plan.zeros, 0, static_cast<size_t>(shape.channels * item_size));
  fill_forward_plan(shape, item_size, plan);
  const int64_t samples = shape.samples_per_query();
  const int64_t row_bytes = shape.heads * shape.channels * item_size;
  const bool* padded = nullptr;  // of the current batch element, null if it has none
  int64_t batch = -1;
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    if (padding != nullptr && unit / shape.queries != batch) {
      batch = unit / shape.queries;
      padded = padding + batch * shape.rows;
      padded =
          std::memchr(padded, 1, static_cast<size_t>(shape.rows)) == nullptr ? nullptr : padded;
    }
    const char* base =
        reinterpret_cast<const char*>(value) + unit / shape.queries * shape.rows * row_bytes;
    const auto zeros = static_cast<int64_t>(reinterpret_cast<intptr_t>(plan.zeros) -
                                            reinterpret_cast<intptr_t>(base));
    locate_query(plan, samples, row_bytes, zeros, locations, weights);
    if (padded != nullptr) {
      hide_padding(plan, samples, zeros, locations, padded);
    }
    sum_query(shape, base, plan, out);
    locations += samples;
    weights += samples;
    out += row_bytes;
  }
}

}  // namespace

template <typename T>
size_t deform_attn_scratch(const DeformAttnShape& shape) {
  Carver carve(nullptr);
  take_forward_plan<ComputeType<T>>(shape, sizeof(T), carve);
  return carve.used();
}

template <typename T>
void deform_attn_forward(const DeformAttnShape& shape, const T* value, const bool* padding,
                         const ComputeType<T>* locations, const ComputeType<T>* weights,
                         int64_t unit_begin, int64_t unit_end, std::byte* scratch, T* out) {
  constexpr int kLanes = kFullLanes<ComputeType<T>>;
  constexpr int kHalfLanes = kLanes > 4 ? kLanes / 2 : kLanes;
  SumQuery<ComputeType<T>> sum = &sum_query<T, kLanes, 0>;
  if (shape.channels == kLanes) {
    sum = &sum_query<T, kLanes, 1>;
  } else if (shape.channels == 2 * kLanes) {
    sum = &sum_query<T, kLanes, 2>;
  } else if (shape.channels == 4 * kLanes) {
    sum = &sum_query<T, kLanes, 4>;
  } else if (shape.channels == 8 * kLanes) {
    sum = &sum_query<T, kLanes, 8>;
  } else if (shape.channels == kHalfLanes) {
    sum = &sum_query<T, kHalfLanes, 1>;
  }
  forward(shape, sizeof(T), sum, reinterpret_cast<const std::byte*>(value), padding, locations,
          weights, unit_begin, unit_end, scratch, reinterpret_cast<std::byte*>(out));
}

#define TAL_FAST_INSTANTIATE(T)                                                               \
  template size_t deform_attn_scratch<T>(const DeformAttnShape&);                             \
  template void deform_attn_forward<T>(const DeformAttnShape&, const T*, const bool*,         \
                                       const ComputeType<T>*, const ComputeType<T>*, int64_t, \
                                       int64_t, std::byte*, T*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
