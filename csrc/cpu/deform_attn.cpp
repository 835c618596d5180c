// SPDX-License-Identifier: Apache-2.0
#include "cpu/deform_attn.h"

#include "cpu/simd.h"

namespace tal_fast {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

constexpr size_t kAlignment = 64;
// Samples that the backward handles between two horizontal reductions: enough to amortise them,
// few enough that their scratch stays in the first-level cache.
constexpr int64_t kSamplesPerBlock = 64;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Hands out aligned pieces of a scratch block; with a null block it only adds up their sizes.
class Arena {
 public:
  explicit Arena(std::byte* base)
      : base_(base == nullptr
                  ? nullptr
                  : base + (kAlignment - reinterpret_cast<uintptr_t>(base) % kAlignment)) {}

  template <typename V>
  V* take(int64_t count) {
    V* piece = base_ == nullptr ? nullptr : reinterpret_cast<V*>(base_ + used_);
    used_ += static_cast<size_t>(
        round_up(count * static_cast<int64_t>(sizeof(V)), static_cast<int64_t>(kAlignment)));
    return piece;
  }

  size_t needed() const { return used_ + kAlignment; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

// Where a sample lies: the tap left of it, relative to its level, and the distance from that tap.
template <typename C>
struct Position {
  int32_t tap;  // -2 (contributes nothing), -1 (only the right tap counts), ..., T - 1, T (nothing)
  C fraction;
};

// Branch-free and without a floor instruction, so that loops over samples vectorise everywhere.
template <typename C>
inline Position<C> locate(C location, C length) {
  const C x = location * length - C(0.5);
  // A NaN fails the first comparison and becomes -2; so does everything that does not contribute.
  const C low = x > C(-1) ? x : C(-2);
  const C bounded = low < length ? low : length;
  int32_t tap = static_cast<int32_t>(bounded);
  tap -= static_cast<C>(tap) > bounded ? 1 : 0;
  // x - x is zero unless the location is NaN or infinite: then the result must say so.
  return {tap, (bounded - static_cast<C>(tap)) + (x - x)};
}

// ---- forward ----------------------------------------------------------------------------------

// What stays the same for all queries, one entry per sample k = (h, l, p) of a query.
template <typename C>
struct ForwardPlan {
  C* length;       // [K] level length as a number
  int32_t* rows;   // [K] level length
  int64_t* first;  // [K] byte offset of the level's first row of this head
  int64_t* left;   // [K] byte offsets of the two taps of the current query ...
  int64_t* right;
  C* left_weight;  // [K] ... and their weights
  C* right_weight;
};

template <typename T, typename C = ComputeType<T>>
ForwardPlan<C> take_forward_plan(const DeformAttnShape& shape, Arena& arena, T** zeros) {
  const int64_t samples = shape.heads * shape.levels * shape.points;
  *zeros = arena.take<T>(shape.channels);
  ForwardPlan<C> plan;
  plan.length = arena.take<C>(samples);
  plan.rows = arena.take<int32_t>(samples);
  plan.first = arena.take<int64_t>(samples);
  plan.left = arena.take<int64_t>(samples);
  plan.right = arena.take<int64_t>(samples);
  plan.left_weight = arena.take<C>(samples);
  plan.right_weight = arena.take<C>(samples);
  return plan;
}

template <typename T, typename C>
void fill_forward_plan(const DeformAttnShape& shape, const ForwardPlan<C>& plan) {
  int64_t k = 0;
  for (int64_t h = 0; h < shape.heads; ++h) {
    int64_t start = 0;
    for (int64_t l = 0; l < shape.levels; ++l) {
      const int64_t length = shape.level_lengths[l];
      for (int64_t p = 0; p < shape.points; ++p, ++k) {
        plan.length[k] = static_cast<C>(length);
        plan.rows[k] = static_cast<int32_t>(length);
        plan.first[k] = (start * shape.heads + h) * shape.channels * int64_t{sizeof(T)};
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

// kVectors > 0: channels == kVectors * kLanes. kVectors == 0: any number of channels.
template <typename T, int kLanes, int kVectors, typename C = ComputeType<T>>
void forward(const DeformAttnShape& shape, const T* value, const C* locations, const C* weights,
             int64_t unit_begin, int64_t unit_end, std::byte* scratch, T* out) {
  Arena arena(scratch);
  T* zeros;
  const ForwardPlan<C> plan = take_forward_plan<T>(shape, arena, &zeros);
  std::memset(zeros, 0, static_cast<size_t>(shape.channels) * sizeof(T));
  fill_forward_plan<T>(shape, plan);
  const int64_t per_head = shape.levels * shape.points;
  const int64_t samples = shape.heads * per_head;
  const int64_t row = shape.heads * shape.channels;
  const int64_t row_bytes = row * int64_t{sizeof(T)};
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const char* base =
        reinterpret_cast<const char*>(value) + unit / shape.queries * shape.rows * row_bytes;
    const auto zeros_offset =
        static_cast<int64_t>(reinterpret_cast<intptr_t>(zeros) - reinterpret_cast<intptr_t>(base));
    locate_query(plan, samples, row_bytes, zeros_offset, locations + unit * samples,
                 weights + unit * samples);
    T* target = out + unit * row;
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
}

// ---- backward ---------------------------------------------------------------------------------

// A unit copies its rows of value into a slab of the compute type with one row of zeros around
// every level, and gathers grad_value in a second one. The zero rows replace all boundary checks,
// and packed rows avoid the cache conflicts of rows that are H * D values apart.
template <typename C>
struct BackwardPlan {
  int64_t width;        // channels rounded up to whole vectors
  int64_t block;        // queries per block
  int64_t block_slots;  // samples of a block rounded up to whole vectors
  C* values;            // [S + L + 1, width]
  C* sums;              // [S + L + 1, width]
  C* grads;             // [block, width]
  // The samples of a block one query after another. The first three only depend on the level, but
  // repeated per query they turn short loops into one long loop that vectorises.
  C* length;       // [block_slots]
  int32_t* rows;   // [block_slots]
  int32_t* first;  // [block_slots] slab row of the level's first row
  C* location;     // [block_slots], then the gradient
  C* weight;       // [block_slots]
  C* fraction;     // [block_slots]
  int32_t* left;   // [block_slots] slab rows of the taps
  int32_t* right;  // [block_slots]
  C* partial;      // [block_slots / kGroup, lanes] products with both taps, partly summed
  C* dots;         // [block_slots, 2] the same, summed, for the left and the right tap
  C* by_weight;    // [block_slots]
};

template <typename C>
BackwardPlan<C> take_backward_plan(const DeformAttnShape& shape, Arena& arena) {
  constexpr int64_t kLanes = kFullLanes<C>;
  const int64_t samples = shape.levels * shape.points;
  const int64_t slab_rows = shape.rows + shape.levels + 1;
  BackwardPlan<C> plan;
  plan.width = round_up(shape.channels, kLanes);
  plan.block = samples >= kSamplesPerBlock ? 1 : kSamplesPerBlock / (samples == 0 ? 1 : samples);
  plan.block_slots = round_up(plan.block * samples, kLanes);
  plan.values = arena.take<C>(slab_rows * plan.width);
  plan.sums = arena.take<C>(slab_rows * plan.width);
  plan.grads = arena.take<C>(plan.block * plan.width);
  plan.length = arena.take<C>(plan.block_slots);
  plan.rows = arena.take<int32_t>(plan.block_slots);
  plan.first = arena.take<int32_t>(plan.block_slots);
  plan.location = arena.take<C>(plan.block_slots);
  plan.weight = arena.take<C>(plan.block_slots);
  plan.fraction = arena.take<C>(plan.block_slots);
  plan.left = arena.take<int32_t>(plan.block_slots);
  plan.right = arena.take<int32_t>(plan.block_slots);
  plan.partial = arena.take<C>(plan.block_slots * kLanes);
  plan.dots = arena.take<C>(2 * plan.block_slots);
  plan.by_weight = arena.take<C>(plan.block_slots);
  return plan;
}

template <typename C>
void fill_backward_plan(const DeformAttnShape& shape, const BackwardPlan<C>& plan) {
  int64_t k = 0;
  for (int64_t q = 0; q < plan.block; ++q) {
    int64_t first = 1;
    for (int64_t l = 0; l < shape.levels; ++l) {
      for (int64_t p = 0; p < shape.points; ++p, ++k) {
        plan.length[k] = static_cast<C>(shape.level_lengths[l]);
        plan.rows[k] = static_cast<int32_t>(shape.level_lengths[l]);
        plan.first[k] = static_cast<int32_t>(first);
      }
      first += shape.level_lengths[l] + 1;
    }
  }
  const int64_t slab = (shape.rows + shape.levels + 1) * plan.width;
  for (int64_t i = 0; i < slab; ++i) {
    plan.values[i] = C(0);
  }
  for (int64_t i = 0; i < plan.block * plan.width; ++i) {
    plan.grads[i] = C(0);
  }
  for (int64_t i = 0; i < plan.block_slots * kFullLanes<C>; ++i) {
    plan.partial[i] = C(0);
  }
}

// Copies `count` strided rows of T into packed rows of the compute type.
template <typename T, typename C>
void pack_rows(const T* source, int64_t stride, int64_t count, int64_t channels, C* target,
               int64_t width) {
  for (int64_t i = 0; i < count; ++i, source += stride, target += width) {
    int64_t d = 0;
    for (; d + kFullLanes<C> <= channels; d += kFullLanes<C>) {
      store<kFullLanes<C>>(target + d, load<kFullLanes<C>>(source + d));
    }
    for (; d < channels; ++d) {
      target[d] = widen(source[d]);
    }
  }
}

template <typename T, typename C>
void unpack_rows(const C* source, int64_t width, int64_t count, int64_t channels, T* target,
                 int64_t stride) {
  for (int64_t i = 0; i < count; ++i, source += width, target += stride) {
    for (int64_t d = 0; d < channels; ++d) {
      target[d] = narrow<T>(source[d]);
    }
  }
}

// Moves the samples of one head and several queries between tensor and block.
template <typename C>
inline void copy_samples(const C* source, int64_t source_stride, C* target, int64_t target_stride,
                         int64_t samples, int64_t query_count) {
  if (samples == 4) {  // TadTR: one level of four points; a constant size is one instruction
    for (int64_t q = 0; q < query_count; ++q) {
      std::memcpy(target + q * target_stride, source + q * source_stride, 4 * sizeof(C));
    }
    return;
  }
  for (int64_t q = 0; q < query_count; ++q) {
    std::memcpy(target + q * target_stride, source + q * source_stride,
                static_cast<size_t>(samples) * sizeof(C));
  }
}

template <typename C>
void locate_block(const BackwardPlan<C>& plan, int64_t count) {
  const C* __restrict__ location = plan.location;
  const C* __restrict__ length = plan.length;
  const int32_t* __restrict__ rows = plan.rows;
  const int32_t* __restrict__ first = plan.first;
  int32_t* __restrict__ left = plan.left;
  int32_t* __restrict__ right = plan.right;
  C* __restrict__ fraction = plan.fraction;
  for (int64_t k = 0; k < count; ++k) {
    const Position<C> position = locate(location[k], length[k]);
    const int32_t next = position.tap + 1;
    left[k] = first[k] + (position.tap > -1 ? position.tap : -1);
    right[k] = first[k] + (next < rows[k] ? next : rows[k]);
    fraction[k] = position.fraction;
  }
}

// One sample of a query: adds to the sums of its two rows, and returns the products of `grad` with
// both rows, still to be summed over lanes, as the two halves of one vector.
template <typename C, int kVectors, bool kValue, bool kSamples>
inline Vector<C, kFullLanes<C>> walk_sample(const BackwardPlan<C>& plan, int64_t k,
                                            const C* grad_row,
                                            const Vector<C, kFullLanes<C>>* grad) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const int64_t width = kVectors > 0 ? int64_t{kVectors} * kLanes : plan.width;
  const int64_t left = plan.left[k] * width;
  const int64_t right = plan.right[k] * width;
  const C right_weight = plan.weight[k] * plan.fraction[k];
  const C left_weight = plan.weight[k] - right_weight;
  V left_dot{};
  V right_dot{};
  for (int64_t v = 0; v < width / kLanes; ++v) {
    const int64_t d = v * kLanes;
    V g;
    if constexpr (kVectors > 0) {
      g = grad[v];
    } else {
      g = load<kLanes>(grad_row + d);
    }
    if constexpr (kSamples) {
      left_dot += g * load<kLanes>(plan.values + left + d);
      right_dot += g * load<kLanes>(plan.values + right + d);
    }
    if constexpr (kValue) {
      C* left_sum = plan.sums + left + d;
      store<kLanes>(left_sum, load<kLanes>(left_sum) + left_weight * g);
      C* right_sum = plan.sums + right + d;
      store<kLanes>(right_sum, load<kLanes>(right_sum) + right_weight * g);
    }
  }
  return fold<1, C, kLanes>(left_dot, right_dot);
}

// kVectors == 0: the number of vectors per row is only known at run time. Samples are taken kGroup
// at a time (a divisor of their number per query), whose products are folded while they are still
// in registers: stores are what limits this loop.
template <typename C, int kVectors, bool kValue, bool kSamples, int kGroup>
void walk_block(const BackwardPlan<C>& plan, int64_t query_count, int64_t samples) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  for (int64_t q = 0; q < query_count; ++q) {
    const C* grad_row = plan.grads + q * plan.width;
    V grad[kVectors > 0 ? kVectors : 1];
    if constexpr (kVectors > 0) {
      for (int v = 0; v < kVectors; ++v) {
        grad[v] = load<kLanes>(grad_row + v * kLanes);
      }
    }
    for (int64_t k = q * samples; k < (q + 1) * samples; k += kGroup) {
      const auto walk = [&](int64_t offset) {
        return walk_sample<C, kVectors, kValue, kSamples>(plan, k + offset, grad_row, grad);
      };
      V folded = walk(0);
      if constexpr (kGroup >= 2) {
        folded = fold<2, C, kLanes>(folded, walk(1));
      }
      if constexpr (kGroup == 4) {
        const V third = walk(2);
        folded = fold<4, C, kLanes>(folded, fold<2, C, kLanes>(third, walk(3)));
      }
      if constexpr (kSamples) {
        store<kLanes>(plan.partial + k / kGroup * kLanes, folded);
      }
    }
  }
}

// Turns the products into gradients: for the locations in plan.location, for the weights in
// plan.by_weight.
template <typename C, int kGroup>
void finish_samples(const BackwardPlan<C>& plan, int64_t count) {
  constexpr int kLanes = kFullLanes<C>;
  for (int64_t k = 0; k < 2 * count; k += kLanes) {
    store<kLanes>(plan.dots + k,
                  finish_sums<C, kLanes, 2 * kGroup>(plan.partial + k / (2 * kGroup) * kLanes));
  }
  const C* __restrict__ dots = plan.dots;
  const C* __restrict__ fraction = plan.fraction;
  const C* __restrict__ weight = plan.weight;
  const C* __restrict__ length = plan.length;
  C* __restrict__ by_location = plan.location;
  C* __restrict__ by_weight = plan.by_weight;
  for (int64_t k = 0; k < count; ++k) {
    const C step = dots[2 * k + 1] - dots[2 * k];
    by_weight[k] = dots[2 * k] + fraction[k] * step;
    // The slope right of the sample: at a row itself, the one towards the next row.
    by_location[k] = length[k] * weight[k] * step;
  }
}

template <typename T, int kVectors, bool kValue, bool kSamples, int kGroup = 1,
          typename C = ComputeType<T>>
void backward(const DeformAttnShape& shape, const T* grad, const T* value, const C* locations,
              const C* weights, int64_t unit_begin, int64_t unit_end, std::byte* scratch,
              T* grad_value, C* grad_locations, C* grad_weights) {
  Arena arena(scratch);
  const BackwardPlan<C> plan = take_backward_plan<C>(shape, arena);
  fill_backward_plan(shape, plan);
  const int64_t samples = shape.levels * shape.points;
  const int64_t row = shape.heads * shape.channels;
  const int64_t query_stride = shape.heads * samples;
  const int64_t slab = (shape.rows + shape.levels + 1) * plan.width;
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t b = unit / shape.heads;
    const int64_t h = unit % shape.heads;
    const int64_t value_offset = b * shape.rows * row + h * shape.channels;
    int64_t level_start = 0;
    for (int64_t l = 0; kSamples && l < shape.levels; ++l) {
      pack_rows(value + value_offset + level_start * row, row, shape.level_lengths[l],
                shape.channels, plan.values + (level_start + l + 1) * plan.width, plan.width);
      level_start += shape.level_lengths[l];
    }
    if constexpr (kValue) {
      for (int64_t i = 0; i < slab; ++i) {
        plan.sums[i] = C(0);
      }
    }
    for (int64_t q = 0; q < shape.queries; q += plan.block) {
      const int64_t count = q + plan.block <= shape.queries ? plan.block : shape.queries - q;
      const int64_t unit_query = b * shape.queries + q;
      const int64_t sample_offset = unit_query * query_stride + h * samples;
      pack_rows(grad + unit_query * row + h * shape.channels, row, count, shape.channels,
                plan.grads, plan.width);
      copy_samples(locations + sample_offset, query_stride, plan.location, samples, samples, count);
      copy_samples(weights + sample_offset, query_stride, plan.weight, samples, samples, count);
      locate_block(plan, count * samples);
      walk_block<C, kVectors, kValue, kSamples, kGroup>(plan, count, samples);
      if constexpr (kSamples) {
        finish_samples<C, kGroup>(plan, count * samples);
        copy_samples(plan.location, samples, grad_locations + sample_offset, query_stride, samples,
                     count);
        copy_samples(plan.by_weight, samples, grad_weights + sample_offset, query_stride, samples,
                     count);
      }
    }
    level_start = 0;
    for (int64_t l = 0; kValue && l < shape.levels; ++l) {
      unpack_rows(plan.sums + (level_start + l + 1) * plan.width, plan.width,
                  shape.level_lengths[l], shape.channels,
                  grad_value + value_offset + level_start * row, row);
      level_start += shape.level_lengths[l];
    }
  }
}

}  // namespace

template <typename T>
size_t deform_attn_scratch(const DeformAttnShape& shape) {
  Arena arena(nullptr);
  T* zeros;
  take_forward_plan<T>(shape, arena, &zeros);
  return arena.needed();
}

template <typename T>
size_t deform_attn_backward_scratch(const DeformAttnShape& shape) {
  Arena arena(nullptr);
  take_backward_plan<ComputeType<T>>(shape, arena);
  return arena.needed();
}

template <typename T>
void deform_attn_forward(const DeformAttnShape& shape, const T* value,
                         const ComputeType<T>* locations, const ComputeType<T>* weights,
                         int64_t unit_begin, int64_t unit_end, std::byte* scratch, T* out) {
  constexpr int kLanes = kFullLanes<ComputeType<T>>;
  constexpr int kHalfLanes = kLanes > 4 ? kLanes / 2 : kLanes;
  // The usual channel counts get their own code: all sums of a head then stay in registers.
  auto run = &forward<T, kLanes, 0>;
  if (shape.channels == kLanes) {
    run = &forward<T, kLanes, 1>;
  } else if (shape.channels == 2 * kLanes) {
    run = &forward<T, kLanes, 2>;
  } else if (shape.channels == 4 * kLanes) {
    run = &forward<T, kLanes, 4>;
  } else if (shape.channels == 8 * kLanes) {
    run = &forward<T, kLanes, 8>;
  } else if (shape.channels == kHalfLanes) {
    run = &forward<T, kHalfLanes, 1>;
  }
  run(shape, value, locations, weights, unit_begin, unit_end, scratch, out);
}

template <typename T>
void deform_attn_backward(const DeformAttnShape& shape, const T* grad, const T* value,
                          const ComputeType<T>* locations, const ComputeType<T>* weights,
                          int64_t unit_begin, int64_t unit_end, std::byte* scratch, T* grad_value,
                          ComputeType<T>* grad_locations, ComputeType<T>* grad_weights) {
  constexpr int kLanes = kFullLanes<ComputeType<T>>;
  const int64_t vectors = (shape.channels + kLanes - 1) / kLanes;
  constexpr int kGroup = kLanes >= 8 ? 4 : kLanes / 2;
  const bool grouped = shape.levels * shape.points % kGroup == 0;
  // Training needs all gradients, of the usual channel and point counts; other cases are not worth
  // as much code.
  auto run = &backward<T, 0, true, true>;
  if (grad_value == nullptr) {
    run = &backward<T, 0, false, true>;
  } else if (grad_locations == nullptr) {
    run = &backward<T, 0, true, false>;
  } else if (grouped && vectors == 1) {
    run = &backward<T, 1, true, true, kGroup>;
  } else if (grouped && vectors == 2) {
    run = &backward<T, 2, true, true, kGroup>;
  } else if (grouped && vectors == 4) {
    run = &backward<T, 4, true, true, kGroup>;
  } else if (grouped && vectors == 8) {
    run = &backward<T, 8, true, true, kGroup>;
  }
  run(shape, grad, value, locations, weights, unit_begin, unit_end, scratch, grad_value,
      grad_locations, grad_weights);
}

#define TAL_FAST_INSTANTIATE(T)                                                                  \
  template size_t deform_attn_scratch<T>(const DeformAttnShape&);                                \
  template size_t deform_attn_backward_scratch<T>(const DeformAttnShape&);                       \
  template void deform_attn_forward<T>(const DeformAttnShape&, const T*, const ComputeType<T>*,  \
                                       const ComputeType<T>*, int64_t, int64_t, std::byte*, T*); \
  template void deform_attn_backward<T>(                                                         \
      const DeformAttnShape&, const T*, const T*, const ComputeType<T>*, const ComputeType<T>*,  \
      int64_t, int64_t, std::byte*, T*, ComputeType<T>*, ComputeType<T>*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast
