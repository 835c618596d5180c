// SPDX-License-Identifier: Apache-2.0
// Where the rows of the levels lie in the slabs of the backward of deformable attention, and how a
// row gets in and out. In an anonymous namespace because each instruction set compiles its own.
#pragma once

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
template <typename T, int kVectors, typename C>
inline void pack_row(const T* source, int64_t channels, C* target, int64_t width) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t d = 0;
  if (kVectors > 0 && channels == kVectors * kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      store<kLanes>(target + v * kLanes, load<kLanes>(source + v * kLanes));
    }
    return;
  }
  for (; d + kLanes <= channels; d += kLanes) {
    store<kLanes>(target + d, load<kLanes>(source + d));
  }
  for (; d < channels; ++d) {
    target[d] = widen(source[d]);
  }
  for (; d < width; ++d) {
    target[d] = C(0);
  }
}

template <typename T, int kVectors, typename C>
inline void unpack_row(const C* source, int64_t channels, T* target) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t d = 0;
  if (kVectors > 0 && channels == kVectors * kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      store<kLanes>(target + v * kLanes, load<kLanes>(source + v * kLanes));
    }
    return;
  }
  for (; d + kLanes <= channels; d += kLanes) {
    store<kLanes>(target + d, load<kLanes>(source + d));
  }
  for (; d < channels; ++d) {
    target[d] = narrow<T>(source[d]);
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

}  // namespace
}  // namespace tal_fast::cpu
