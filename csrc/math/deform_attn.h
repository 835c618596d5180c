// SPDX-License-Identifier: Apache-2.0
// Multi-level 1-D deformable attention: sizes, and the rule that turns a location into a row, for
// the kernels of every device.
//
// B batch, S rows of all levels together, H heads, D channels per head, Q queries, L levels, P
// points. Sample (b, q, h, l, p) lies at x = location * T_l - 0.5 in level l of T_l rows and
// contributes iff -1 < x < T_l: weight * ((1 - f) * value[i] + f * value[i + 1]) with i = floor(x),
// f = x - i, where rows outside the level and padded rows count as zero.
//
// The rule is in an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace tal_fast {

struct DeformAttnShape {
  int64_t batch;
  int64_t rows;
  int64_t heads;
  int64_t channels;
  int64_t queries;
  int64_t levels;
  int64_t points;
  const int64_t* level_lengths;  // [L], each > 0, sum = rows

  int64_t samples_per_query() const { return heads * levels * points; }
};

namespace {

// Where a sample lies: the tap left of it, relative to its level, and the distance from that tap.
template <typename C>
struct Position {
  int32_t tap;  // -2 (contributes nothing), -1 (only the right tap counts), ..., T - 1, T (nothing)
  C fraction;
};

// Branch-free and without a floor instruction, so that loops over samples vectorise everywhere.
template <typename C>
TAL_FAST_HD Position<C> locate(C location, C length) {
  const C x = location * length - C(0.5);
  // A NaN fails the first comparison and becomes -2; so does everything that does not contribute.
  const C low = x > C(-1) ? x : C(-2);
  const C bounded = low < length ? low : length;
  int32_t tap = static_cast<int32_t>(bounded);
  tap -= static_cast<C>(tap) > bounded ? 1 : 0;
  // x - x is zero unless the location is NaN or infinite: then the result must say so.
  return {tap, (bounded - static_cast<C>(tap)) + (x - x)};
}

}  // namespace
}  // namespace tal_fast
