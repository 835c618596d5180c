// SPDX-License-Identifier: Apache-2.0
// Maxima over ranges of rows around the two boundaries of segments (AFSD).
//
// A range is the same for half of all channels, so the rows of a group of channels are first
// brought next to each other, channel by channel in the lanes of vectors: a maximum then takes one
// comparison per row and vector, with neither a partial vector nor a horizontal step, and the rule
// that the first maximum wins is the order of the loop.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "math/half.h"

namespace tal_fast::cpu {

// In elements.
struct BoundaryPoolStrides {
  int64_t channel;
  int64_t row;
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Channels per group: tasks that are whole groups waste no lane.
template <typename Stored>
int64_t boundary_max_pool_group();

// The maxima of `count` channels of one item that share their ranges.
template <typename Stored>
void boundary_max_pool_forward(const Stored* features,  // [count, T], strided
                               BoundaryPoolStrides strides,
                               int64_t count,
                               const int32_t* ranges,   // [K, 4]: first and last row at 0 and 1
                               int64_t segments,        // K
                               Stored* out,             // [count, K]
                               int32_t* argmax);        // [count, K], or null

// Adds the gradient of every maximum to its row; the sums of a channel are made in the order of the
// segments. Returns false if a row is not in [0, T).
template <typename Stored>
bool boundary_max_pool_backward(const Stored* grad,     // [channels, K]
                                const int32_t* argmax,  // [channels, K]
                                int64_t channels, int64_t segments, int64_t rows,
                                Stored* grad_features); // [channels, T]
)
// clang-format on

}  // namespace tal_fast::cpu
