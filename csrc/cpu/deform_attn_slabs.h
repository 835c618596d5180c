// SPDX-License-Identifier: Apache-2.0
// Where the rows of the levels lie in the slabs of the backward of deformable attention, how a row
// gets in and out, and what else of scratch there is. In an anonymous namespace because each
// instruction set compiles its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/deform_attn.h"
#include "cpu/deform_attn_samples.h"
#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace {

// For the slabs of a unit, both kinds together: with what streams past them they should stay in a
// second-level cache of 1 MiB.
constexpr int64_t kSlabBytes = 640 * 1024;

// A sample reads the rows `tap` and `tap + 1` with tap from -2 to T: with two rows of zeros on
// either side of a level both exist, follow each other, and are zeros or the level's own.
constexpr int64_t kZeroRows = 2;

// Levels whose slabs are worked on together, as many as fit: all of them unless they are long.
struct LevelGroup {
  int64_t first;
  int64_t end;
  int64_t start;  // rows before the first level
  int64_t rows;   // of all its levels

  // With kZeroRows before, between and after the levels.
  int64_t slab_rows() const { return rows + kZeroRows * (end - first + 1); }
};

// The group that follows `last`; empty at the end.
LevelGroup next_group(const DeformAttnShape& shape, LevelGroup last, int64_t row_bytes) {
  LevelGroup group{last.end, last.end, last.start + last.rows, 0};
  while (group.end < shape.levels) {
    LevelGroup larger = group;
    larger.rows += shape.level_lengths[larger.end++];
    if (larger.end - larger.first > 1 && 2 * larger.slab_rows() * row_bytes > kSlabBytes) {
      break;
    }
    group = larger;
  }
  return group;
}

template <typename C>
int64_t padded_width(const DeformAttnShape& shape) {
  return round_up(shape.channels, kFullLanes<C>);
}

// Calls body(group) for every group of levels, in order.
template <typename C, typename Body>
inline void for_each_group(const DeformAttnShape& shape, Body&& body) {
  const int64_t row_bytes = padded_width<C>(shape) * int64_t{sizeof(C)};
  for (LevelGroup group = next_group(shape, {0, 0, 0, 0}, row_bytes); group.end > group.first;
       group = next_group(shape, group, row_bytes)) {
    body(group);
  }
}

template <typename C>
int64_t largest_slab(const DeformAttnShape& shape) {
  int64_t rows = 0;
  for_each_group<C>(shape, [&](const LevelGroup& group) {
    rows = group.slab_rows() > rows ? group.slab_rows() : rows;
  });
  return rows * padded_width<C>(shape);
}

// One row of T to one of the compute type, filled up with zeros.
template <typename T, typename C>
inline void pack_row(const T* source, int64_t channels, C* target, int64_t width) {
  widen_row(source, channels, target);
  for (int64_t d = channels; d < width; ++d) {
    target[d] = C(0);
  }
}

// Calls body(slab_row, row) for the group's rows, and zero(slab_row) for the rows of zeros.
template <typename Zero, typename Body>
inline void for_each_row(const DeformAttnShape& shape, const LevelGroup& group, Zero&& zero,
                         Body&& body) {
  int64_t slab_row = 0;
  int64_t row = group.start;
  const auto zeros = [&] {
    for (int64_t i = 0; i < kZeroRows; ++i) {
      zero(slab_row++);
    }
  };
  zeros();
  for (int64_t l = group.first; l < group.end; ++l) {
    for (int64_t i = 0; i < shape.level_lengths[l]; ++i) {
      body(slab_row++, row++);
    }
    zeros();
  }
}

// Samples between two horizontal reductions: enough to amortise them, few enough that their scratch
// stays in the first-level cache.
constexpr int64_t kSamplesPerBlock = 64;
constexpr int64_t queries_per_block(int64_t samples) {
  return samples >= kSamplesPerBlock ? 1 : kSamplesPerBlock / (samples == 0 ? 1 : samples);
}

template <typename C>
struct BackwardPlan {
  int64_t width;  // channels rounded up to whole vectors
  int64_t slab;   // values from one head's slab to the next
  C* all_values;  // [heads_per_unit, slab] slabs of [slab_rows, width]
  C* all_sums;    // [heads_per_unit, slab]
  C* all_grads;   // [kSamplesPerBlock, width] rows of the gradient that cannot be read in place
  C* values;      // the same for the current head
  C* sums;
  const C* grads;  // [queries of a block, width] with ...
  int64_t grad_stride;
  // The samples of a block one query after another. The first two only depend on the level, but
  // repeated per query they turn short loops into one long loop that vectorises.
  C* length;        // [slots]
  int32_t* first;   // [slots] slab row of the level's first row
  C* location;      // [slots], then the gradient
  C* weight;        // [slots]
  C* fraction;      // [slots]
  int32_t* left;    // [slots] slab row of the left tap; the right one follows
  C* left_weight;   // [slots]
  C* right_weight;  // [slots]
  C* partial;       // [slots / kGroup, lanes] products with both taps, partly summed
  C* dots;          // [slots, 2] the same, summed, for the left and the right tap
  C* by_weight;     // [slots]
};

template <typename C>
BackwardPlan<C> take_backward_plan(const DeformAttnShape& shape, int64_t heads, Carver& carve) {
  constexpr int64_t kLanes = kFullLanes<C>;
  const int64_t samples = shape.levels * shape.points;
  const int64_t slots = round_up(samples > kSamplesPerBlock ? samples : kSamplesPerBlock, kLanes);
  BackwardPlan<C> plan{};
  plan.width = padded_width<C>(shape);
  // An odd number of cache lines between slabs: heads then do not share cache sets.
  plan.slab = largest_slab<C>(shape) + kLanes;
  plan.all_values = carve.take<C>(heads * plan.slab);
  plan.all_sums = carve.take<C>(heads * plan.slab);
  plan.all_grads = carve.take<C>(kSamplesPerBlock * plan.width);
  plan.length = carve.take<C>(slots);
  plan.first = carve.take<int32_t>(slots);
  plan.location = carve.take<C>(slots);
  plan.weight = carve.take<C>(slots);
  plan.fraction = carve.take<C>(slots);
  plan.left = carve.take<int32_t>(slots);
  plan.left_weight = carve.take<C>(slots);
  plan.right_weight = carve.take<C>(slots);
  plan.partial = carve.take<C>(slots * kLanes);
  plan.dots = carve.take<C>(2 * slots);
  plan.by_weight = carve.take<C>(slots);
  if (plan.length != nullptr) {
    for (int64_t i = 0; i < slots * kLanes; ++i) {  // slots past the last sample are summed, too
      plan.partial[i] = C(0);
    }
  }
  return plan;
}

// What depends on the type of the tensors: rows in and out, and where one is. All else is compiled
// for the compute type alone. One call is many rows.
template <typename C>
struct RowAccess {
  // value and padding are those of the batch element, value of the unit's first head.
  void (*pack_values)(const DeformAttnShape& shape, const LevelGroup& group, const void* value,
                      const bool* padding, int64_t heads, const BackwardPlan<C>& plan);
  void (*unpack_sums)(const DeformAttnShape& shape, const LevelGroup& group,
                      const BackwardPlan<C>& plan, int64_t heads, const bool* padding,
                      void* grad_value);
  // `count` rows of the gradient to plan.all_grads, `stride` values apart.
  void (*pack_grads)(const void* grad, int64_t stride, int64_t count, int64_t channels,
                     const BackwardPlan<C>& plan);
  int64_t item_size;
};

template <typename T, typename C>
void pack_values(const DeformAttnShape& shape, const LevelGroup& group, const void* value,
                 const bool* padding, int64_t heads, const BackwardPlan<C>& plan) {
  const auto zero = [&](int64_t slab_row) {
    for (int64_t h = 0; h < heads; ++h) {
      std::memset(plan.all_values + h * plan.slab + slab_row * plan.width, 0,
                  static_cast<size_t>(plan.width) * sizeof(C));
    }
  };
  for_each_row(shape, group, zero, [&](int64_t slab_row, int64_t row) {
    if (padding != nullptr && padding[row]) {
      zero(slab_row);
      return;
    }
    const T* source = static_cast<const T*>(value) + row * shape.heads * shape.channels;
    C* target = plan.all_values + slab_row * plan.width;
    for (int64_t h = 0; h < heads; ++h, source += shape.channels, target += plan.slab) {
      pack_row(source, shape.channels, target, plan.width);
    }
  });
}

template <typename T, typename C>
void unpack_sums(const DeformAttnShape& shape, const LevelGroup& group, const BackwardPlan<C>& plan,
                 int64_t heads, const bool* padding, void* grad_value) {
  const auto nothing = [](int64_t) {};
  for_each_row(shape, group, nothing, [&](int64_t slab_row, int64_t row) {
    T* target = static_cast<T*>(grad_value) + row * shape.heads * shape.channels;
    if (padding != nullptr && padding[row]) {
      std::memset(target, 0, static_cast<size_t>(heads * shape.channels) * sizeof(T));
      return;
    }
    const C* source = plan.all_sums + slab_row * plan.width;
    for (int64_t h = 0; h < heads; ++h, source += plan.slab, target += shape.channels) {
      narrow_row(source, shape.channels, target);
    }
  });
}

template <typename T, typename C>
void pack_grads(const void* grad, int64_t stride, int64_t count, int64_t channels,
                const BackwardPlan<C>& plan) {
  for (int64_t i = 0; i < count; ++i) {
    pack_row(static_cast<const T*>(grad) + i * stride, channels, plan.all_grads + i * plan.width,
             plan.width);
  }
}

template <typename T, typename C = ComputeType<T>>
constexpr RowAccess<C> kRowAccess{&pack_values<T, C>, &unpack_sums<T, C>, &pack_grads<T, C>,
                                  sizeof(T)};

}  // namespace
}  // namespace tal_fast::cpu
