// SPDX-License-Identifier: Apache-2.0
// Soft non-maximum suppression as the extension `nms_1d_cpu` of ActionFormer and OpenTAD carries it
// out, in an array whose entries change places. Of equal scores the one that happens to lie first
// is picked, so the result under ties is that of these very moves; nms_soft.cpp has the procedure
// without them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/carver.h"
#include "cpu/isa.h"
#include "math/nms.h"

namespace tal_fast::cpu {

// What is in the array: position i has been picked in round i, those behind it wait.
struct SoftNmsEntries {
  float* start;
  float* end;
  float* length;  // with the epsilon
  float* score;
  float* iou;     // with the latest pick
  int64_t* rows;  // of the input
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

size_t soft_nms_literal_scratch_bytes(int64_t count);

// Returns how many are kept. Uses the exponential of the C library, as the original does.
int64_t soft_nms_literal(const float* segments,  // [N, 2]
                         const float* scores,    // [N]
                         int64_t count, const NmsOptions<float>& options, std::byte* scratch,
                         int64_t* rows,          // [N] out, as they were picked
                         float* kept);           // [N, 3] out: start, end, score when picked
)
// clang-format on

}  // namespace tal_fast::cpu
