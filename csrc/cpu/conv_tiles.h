// SPDX-License-Identifier: Apache-2.0
// The transforms of a convolution of kernel 3 by minimal filtering, F(4, 3): six products give four
// rows of output, which taken one by one need twelve.
//
// Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, CVPR 2016. With y = A^T ((G w) * (B^T x)), of a tile's 6 inputs x,
// 4 outputs y and 3 weights w, the polynomials are evaluated at 0, +-a, +-b and infinity, where
// a = 2/3 and b = 1/a:
//
//         1  0   -s   0  1  0                 1  1  1  1  1  0
//         0 -b  -b^2  a  1  0                 0  a -a  b -b  0
//   B^T = 0  b  -b^2 -a  1  0         A^T =   0 a^2 a^2 b^2 b^2 0      s = a^2 + b^2
//         0 -a  -a^2  b  1  0                 0 a^3 -a^3 b^3 -b^3 1
//         0  a  -a^2 -b  1  0
//         0  1   0   -s  0  1
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace tal_fast::cpu {

constexpr int64_t kTileRows = 4;    // outputs of a tile
constexpr int64_t kTilePlanes = 6;  // its inputs, and its products

// Consecutive outputs of a convolution, and the rows of their clip: there is nothing beyond.
struct TileSpan {
  int64_t first;
  int64_t end;
  int64_t low;
  int64_t high;
};

// Both work on tiles [begin, end) of a span, counted from its first one. A tile's rows are 4
// outputs or, with `inputs`, the 6 rows around them that these read. Rows that no output of the
// span is or reads count as zero, and are not written.
// clang-format off
TAL_FAST_FOR_EACH_ISA(

// A times outputs, or B^T times inputs.
template <typename T>
void rows_to_tiles(const T* rows,  // [R, C]
                   TileSpan span, bool inputs, int64_t channels, int64_t begin, int64_t end,
                   T* tiles, int64_t plane);  // [6, N, C] from the span's first tile; N * C

// A^T times tiles, or the sum over tiles of B times each: the transposes of the above. Overlapping
// inputs are written by the later of their two tiles, the span's very last ones by its last tile.
template <typename T>
void tiles_to_rows(const T* tiles, int64_t plane,  // [6, N, C] from the span's first tile; N * C
                   TileSpan span, bool inputs, int64_t channels, int64_t begin, int64_t end,
                   T* rows);  // [R, C]
)
// clang-format on

}  // namespace tal_fast::cpu
