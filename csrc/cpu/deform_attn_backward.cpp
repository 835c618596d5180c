// SPDX-License-Identifier: Apache-2.0
// The backward; the forward is in deform_attn.cpp.
//
// A unit copies its rows of value into slabs of the compute type, one per head, with rows of zeros
// around every level, and gathers grad_value in slabs of the same form. The rows of zeros replace
// all boundary checks, a head's rows lie together (in the tensor they are H * D values apart, which
// the first-level cache does not bear), and the tensors are read and written row by row with all
// heads of the unit at once, as a stream.
#include "cpu/deform_attn.h"
#include "cpu/deform_attn_samples.h"
#include "cpu/deform_attn_slabs.h"
#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Repeats the group's levels over the queries of a block.
template <typename C>
void fill_levels(const DeformAttnShape& shape, const LevelGroup& group, int64_t query_count,
                 const BackwardPlan<C>& plan) {
  int64_t k = 0;
  for (int64_t q = 0; q < query_count; ++q) {
    int64_t first = kZeroRows;
    for (int64_t l = group.first; l < group.end; ++l) {
      for (int64_t p = 0; p < shape.points; ++p, ++k) {
        plan.length[k] = static_cast<C>(shape.level_lengths[l]);
        plan.first[k] = static_cast<int32_t>(first);
      }
      first += shape.level_lengths[l] + kZeroRows;
    }
  }
}

// Asks for the samples of the block after this one: in the tensor the other heads' lie between.
// kWrite says what for.
template <bool kWrite, typename C>
inline void prefetch_samples(const C* tensor, int64_t stride, int64_t samples,
                             int64_t query_count) {
  constexpr int64_t kLine = 64 / sizeof(C);
  constexpr int64_t kHidden = 512 / sizeof(C);  // measured: below it the requests only cost time
  for (int64_t q = query_count; stride >= kHidden && q < 2 * query_count; ++q) {
    for (int64_t k = 0; k < samples; k += kLine) {
      __builtin_prefetch(tensor + q * stride + k, kWrite ? 1 : 0);
    }
  }
}

// Slots past `count` are filled with whatever comes out.
template <typename C>
[[gnu::noinline]] void locate_block(const BackwardPlan<C>& plan, int64_t count) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  for (int64_t k = 0; k < count; k += kLanes) {
    const auto [tap, fraction] =
        locate_lanes<C, kLanes>(load<kLanes>(plan.location + k), load<kLanes>(plan.length + k));
    Vector<int32_t, kLanes> row;
    std::memcpy(&row, plan.first + k, sizeof(row));
    row += tap;
    std::memcpy(plan.left + k, &row, sizeof(row));
    const V weight = load<kLanes>(plan.weight + k);
    const V share = weight * fraction;
    store<kLanes>(plan.left_weight + k, weight - share);
    store<kLanes>(plan.right_weight + k, share);
    store<kLanes>(plan.fraction + k, fraction);
  }
}

constexpr int64_t kQueriesAhead = 8;

template <int kVectors, typename C>
inline void prefetch_row(const C* row) {
  for (int64_t v = 0; v < kVectors; ++v) {
    __builtin_prefetch(row + v * kFullLanes<C>);
  }
}

// One sample of a query: adds to the sums of its two rows, and returns the products of the gradient
// with both rows, still to be summed over lanes, as the two halves of one vector. `values` and
// `sums` point to the left row.
template <typename C, int kVectors, bool kValue, bool kSamples>
inline Vector<C, kFullLanes<C>> walk_sample(const C* values, C* sums, int64_t width, C left_weight,
                                            C right_weight, const C* grad_row,
                                            const Vector<C, kFullLanes<C>>* grad) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  V left_dot{};
  V right_dot{};
  for (int64_t v = 0; v < width / kLanes; ++v) {
    const int64_t left = v * kLanes;
    const int64_t right = width + v * kLanes;
    V g;
    if constexpr (kVectors > 0) {
      g = grad[v];
    } else {
      g = load<kLanes>(grad_row + left);
    }
    if constexpr (kSamples) {
      left_dot += g * load<kLanes>(values + left);
      right_dot += g * load<kLanes>(values + right);
    }
    if constexpr (kValue) {
      store<kLanes>(sums + left, load<kLanes>(sums + left) + left_weight * g);
      store<kLanes>(sums + right, load<kLanes>(sums + right) + right_weight * g);
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
  // Copies, because the stores below could change *plan for all that the compiler knows.
  const int64_t width = kVectors > 0 ? int64_t{kVectors} * kLanes : plan.width;
  const C* const values = plan.values;
  C* const sums = plan.sums;
  const int32_t* const left = plan.left;
  const C* const left_weight = plan.left_weight;
  const C* const right_weight = plan.right_weight;
  const int64_t grad_stride = plan.grad_stride;
  const C* grad_row = plan.grads;
  C* partial = plan.partial;
  int64_t k = 0;
  for (int64_t q = 0; q < query_count; ++q, grad_row += grad_stride) {
    // Rows of the gradient are too far apart for the hardware to see a stream.
    prefetch_row<kVectors>(grad_row + kQueriesAhead * grad_stride);
    V grad[kVectors > 0 ? kVectors : 1];
    for (int v = 0; v < kVectors; ++v) {
      grad[v] = load<kLanes>(grad_row + v * kLanes);
    }
    for (const int64_t end = k + samples; k < end; k += kGroup) {
      const auto walk = [&](int64_t offset) {
        const int64_t row = left[k + offset] * width;
        return walk_sample<C, kVectors, kValue, kSamples>(values + row, sums + row, width,
                                                          left_weight[k + offset],
                                                          right_weight[k + offset], grad_row, grad);
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
        store<kLanes>(partial, folded);
        partial += kLanes;
      }
    }
  }
}

// Turns the products into gradients: for the locations in plan.location, for the weights in
// plan.by_weight.
template <typename C, int kGroup>
[[gnu::noinline]] void finish_samples(const BackwardPlan<C>& plan, int64_t count) {
  constexpr int kLanes = kFullLanes<C>;
  for (int64_t k = 0; k < 2 * count; k += kLanes) {
    store<kLanes>(plan.dots + k,
                  finish_sums<C, kLanes, 2 * kGroup>(plan.partial + k / (2 * kGroup) * kLanes));
  }
  slope_and_value(plan.dots, plan.fraction, plan.weight, plan.length, count, plan.location,
                  plan.by_weight);
}

// The loops over a block that depend on the shape.
template <typename C>
struct BlockLoops {
  void (*walk)(const BackwardPlan<C>& plan, int64_t query_count, int64_t samples);
  void (*finish)(const BackwardPlan<C>& plan, int64_t count);
};

template <typename C, int kVectors, bool kValue, bool kSamples, int kGroup = 1>
constexpr BlockLoops<C> kBlockLoops{&walk_block<C, kVectors, kValue, kSamples, kGroup>,
                                    &finish_samples<C, kGroup>};

// grad, value and grad_value are of the type that `access` is for.
template <typename C>
void backward(const DeformAttnShape& shape, const RowAccess<C>& access, const BlockLoops<C>& loops,
              int64_t heads_per_unit, const std::byte* grad, const std::byte* value,
              const bool* padding, const C* locations, const C* weights, int64_t unit_begin,
              int64_t unit_end, std::byte* scratch, std::byte* grad_value, C* grad_locations,
              C* grad_weights) {
  Carver carve(scratch);
  BackwardPlan<C> plan = take_backward_plan<C>(shape, heads_per_unit, carve);
  const int64_t row = shape.heads * shape.channels;
  const int64_t query_stride = shape.samples_per_query();
  const int64_t units_per_batch = (shape.heads + heads_per_unit - 1) / heads_per_unit;
  // Rows of the gradient that are whole vectors of the compute type need no copy.
  const bool in_place = access.item_size == sizeof(C) && shape.channels == plan.width;

  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t b = unit / units_per_batch;
    const int64_t first_head = unit % units_per_batch * heads_per_unit;
    const int64_t heads =
        first_head + heads_per_unit <= shape.heads ? heads_per_unit : shape.heads - first_head;
    const int64_t value_offset =
        (b * shape.rows * row + first_head * shape.channels) * access.item_size;
    const bool* padded = padding == nullptr ? nullptr : padding + b * shape.rows;

    for_each_group<C>(shape, [&](const LevelGroup& group) {
      const int64_t samples = (group.end - group.first) * shape.points;
      const int64_t block = queries_per_block(samples);
      fill_levels(shape, group, block, plan);
      if (grad_locations != nullptr) {
        access.pack_values(shape, group, value + value_offset, padded, heads, plan);
      }
      if (grad_value != nullptr) {
        std::memset(plan.all_sums, 0, static_cast<size_t>(heads * plan.slab) * sizeof(C));
      }
      for (int64_t h = 0; h < heads; ++h) {
        plan.values = plan.all_values + h * plan.slab;
        plan.sums = plan.all_sums + h * plan.slab;
        for (int64_t q = 0; q < shape.queries; q += block) {
          const int64_t count = q + block <= shape.queries ? block : shape.queries - q;
          const int64_t query = b * shape.queries + q;
          const std::byte* grad_rows =
              grad + (query * row + (first_head + h) * shape.channels) * access.item_size;
          if (in_place) {
            plan.grads = reinterpret_cast<const C*>(grad_rows);
            plan.grad_stride = row;
          } else {
            access.pack_grads(grad_rows, row, count, shape.channels, plan);
            plan.grads = plan.all_grads;
            plan.grad_stride = plan.width;
          }
          const int64_t sample_offset =
              query * query_stride + ((first_head + h) * shape.levels + group.first) * shape.points;
          prefetch_samples<false>(locations + sample_offset, query_stride, samples, count);
          prefetch_samples<false>(weights + sample_offset, query_stride, samples, count);
          copy_samples(locations + sample_offset, query_stride, plan.location, samples, samples,
                       count);
          copy_samples(weights + sample_offset, query_stride, plan.weight, samples, samples, count);
          locate_block(plan, count * samples);
          loops.walk(plan, count, samples);
          if (grad_locations != nullptr) {
            loops.finish(plan, count * samples);
            prefetch_samples<true>(grad_locations + sample_offset, query_stride, samples, count);
            prefetch_samples<true>(grad_weights + sample_offset, query_stride, samples, count);
            copy_samples(plan.location, samples, grad_locations + sample_offset, query_stride,
                         samples, count);
            copy_samples(plan.by_weight, samples, grad_weights + sample_offset, query_stride,
                         samples, count);
          }
        }
      }
      if (grad_value != nullptr) {
        access.unpack_sums(shape, group, plan, heads, padded, grad_value + value_offset);
      }
    });
  }
}

// Training needs all gradients, of the usual channel and point counts; other cases are not worth as
// much code.
template <typename C>
BlockLoops<C> block_loops(const DeformAttnShape& shape, bool for_value, bool for_samples) {
  constexpr int kLanes = kFullLanes<C>;
  constexpr int kGroup = kLanes >= 8 ? 4 : kLanes / 2;
  if (!for_value) {
    return kBlockLoops<C, 0, false, true>;
  }
  if (!for_samples) {
    return kBlockLoops<C, 0, true, false>;
  }
  bool grouped = true;
  for_each_group<C>(shape, [&](const LevelGroup& group) {
    grouped = grouped && (group.end - group.first) * shape.points % kGroup == 0;
  });
  if (grouped) {
    switch ((shape.channels + kLanes - 1) / kLanes) {
      case 1:
        return kBlockLoops<C, 1, true, true, kGroup>;
      case 2:
        return kBlockLoops<C, 2, true, true, kGroup>;
      case 4:
        return kBlockLoops<C, 4, true, true, kGroup>;
      case 8:
        return kBlockLoops<C, 8, true, true, kGroup>;
    }
  }
  return kBlockLoops<C, 0, true, true>;
}

}  // namespace

template <typename T>
int64_t deform_attn_backward_heads(const DeformAttnShape& shape, int64_t threads) {
  using C = ComputeType<T>;
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t slabs = 2 * largest_slab<C>(shape) * int64_t{sizeof(C)};
  int64_t heads = shape.heads;
  if (heads * slabs > kSlabBytes) {
    heads = kSlabBytes > slabs ? kSlabBytes / slabs : 1;
  }
  while (heads > 1 && shape.batch * divide_up(shape.heads, heads) < 2 * threads) {
    heads = divide_up(heads, 2);
  }
  return divide_up(shape.heads, divide_up(shape.heads, heads));  // units of about the same size
}

template <typename T>
size_t deform_attn_backward_scratch(const DeformAttnShape& shape, int64_t heads_per_unit) {
  Carver carve(nullptr);
  take_backward_plan<ComputeType<T>>(shape, heads_per_unit, carve);
  return carve.used();
}

template <typename T>
void deform_attn_backward(const DeformAttnShape& shape, int64_t heads_per_unit, const T* grad,
                          const T* value, const bool* padding, const ComputeType<T>* locations,
                          const ComputeType<T>* weights, int64_t unit_begin, int64_t unit_end,
                          std::byte* scratch, T* grad_value, ComputeType<T>* grad_locations,
                          ComputeType<T>* grad_weights) {
  using C = ComputeType<T>;
  const BlockLoops<C> loops =
      block_loops<C>(shape, grad_value != nullptr, grad_locations != nullptr);
  backward<C>(shape, kRowAccess<T>, loops, heads_per_unit, reinterpret_cast<const std::byte*>(grad),
              reinterpret_cast<const std::byte*>(value), padding, locations, weights, unit_begin,
              unit_end, scratch, reinterpret_cast<std::byte*>(grad_value), grad_locations,
              grad_weights);
}

#define TAL_FAST_INSTANTIATE(T)                                                                \
  template int64_t deform_attn_backward_heads<T>(const DeformAttnShape&, int64_t);             \
  template size_t deform_attn_backward_scratch<T>(const DeformAttnShape&, int64_t);            \
  template void deform_attn_backward<T>(                                                       \
      const DeformAttnShape&, int64_t, const T*, const T*, const bool*, const ComputeType<T>*, \
      const ComputeType<T>*, int64_t, int64_t, std::byte*, T*, ComputeType<T>*, ComputeType<T>*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
