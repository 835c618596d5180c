// SPDX-License-Identifier: Apache-2.0
// Segment voting: kept segments become weighted means of the segments that overlap them. The
// segments are sorted by start once; those that can have a vote on a kept segment are then a range.
#pragma once

#include <cstdint>

#include "cpu/carver.h"
#include "cpu/isa.h"
#include "math/segment_voting.h"

namespace tal_fast::cpu {

// T is float or double. IoU and weights are computed in T, sums in double in an order that does not
// depend on the instruction set: compiled without fused multiply-add.
// clang-format off
TAL_FAST_FOR_EACH_ISA(

template <typename T>
size_t voting_scratch_bytes(int64_t count);

// Sorts the voters into the scratch memory.
template <typename T>
void voting_prepare(const T* segments,    // [N, 2]
                    const T* scores,      // [N]
                    const int32_t* rows,  // [count] the voters; null: all
                    int64_t count, std::byte* scratch);

// Replaces kept segments [begin, end); `count` and `scratch` as given to voting_prepare. May run on
// several threads at once.
template <typename T>
void voting_apply(int64_t count, std::byte* scratch, const VotingOptions& options,
                  const T* kept,          // [K, 2]
                  int64_t begin, int64_t end,
                  T* out);                // [K, 2]
)
// clang-format on

}  // namespace tal_fast::cpu
