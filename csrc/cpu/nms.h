// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression of segments: hard, and soft with a linear or Gaussian decay.
//
// A *problem* is a set of segments that may suppress each other: those of one video and class. The
// input is split into problems once (nms_problems.cpp), each problem is solved on its own by any
// thread (nms_hard.cpp, nms_soft.cpp), and the results of a video's problems are merged. Every step
// has one defined order (score falling, then row rising), so the result depends neither on threads
// nor on the sort nor on the instruction set: the kernels are compiled without fused multiply-add.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/carver.h"
#include "cpu/isa.h"
#include "math/nms.h"

namespace tal_fast::cpu {

// Segments that may suppress each other. T is float or double, and all is computed in T.
template <typename T>
struct NmsProblem {
  const T* segments;    // [N, 2]
  const T* scores;      // [N], none of them NaN
  const int32_t* rows;  // [count], rising
  int64_t count;
  T floor;  // what would be kept with a lower score is not wanted
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

template <typename T>
size_t hard_nms_scratch_bytes(int64_t count);

// The three steps of the hard method: `index` and `rank` do not depend on each other, `select`
// needs both. All are given the same arguments.
template <typename T>
void hard_nms_rank(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                   std::byte* scratch);

template <typename T>
void hard_nms_index(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                    std::byte* scratch);

template <typename T>
int64_t hard_nms_select(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                        std::byte* scratch,
                        int32_t* kept,     // [count] out
                        T* kept_scores);   // [count] out

template <typename T>
size_t soft_nms_scratch_bytes(int64_t count);

// Requires scores that are not negative.
template <typename T>
int64_t soft_nms_solve(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                       std::byte* scratch,
                       int32_t* kept,     // [count] out
                       T* kept_scores);   // [count] out
)
// clang-format on

}  // namespace tal_fast::cpu
