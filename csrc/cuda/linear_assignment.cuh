// SPDX-License-Identifier: Apache-2.0
// linear_assignment: shortest augmenting paths as in csrc/cpu/linear_assignment.cpp, in the same
// order of operations and with the same rule for ties. Below, rows are the smaller side of a
// problem. What a problem gives does not depend on the kernel that solves it.
//
// A kernel cannot raise: the matches of a problem without an answer (a cost that is NaN or minus
// infinity, or no assignment of finite cost) are -1.
#pragma once

#include "cuda/platform.cuh"

namespace tal_fast {

constexpr double kAssignmentInfinity = __builtin_inf();
constexpr int kAssignmentNone = -1;

// A column and how far it is. Free columns come first among those as near, then lower ones.
struct AssignmentNearest {
  static constexpr unsigned kTaken = 0x80000000u;

  double distance = kAssignmentInfinity;
  unsigned rank = 0xffffffffu;

  TAL_FAST_DEVICE int column() const { return static_cast<int>(rank & ~kTaken); }
  TAL_FAST_DEVICE void offer(double other_distance, unsigned other_rank) {
    if (other_distance < distance || (other_distance == distance && other_rank < rank)) {
      distance = other_distance;
      rank = other_rank;
    }
  }
  // The nearest over all lanes, in all of them.
  TAL_FAST_DEVICE void reduce_warp() {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const double other_distance = __shfl_xor_sync(kAllLanes, distance, offset);
      const unsigned other_rank = __shfl_xor_sync(kAllLanes, rank, offset);
      offer(other_distance, other_rank);
    }
  }
};

struct AssignmentOutputs {
  int64_t* problem;  // [K]
  int64_t* row;      // [K], of the problem as it was given
  int64_t* column;   // [K]
};

}  // namespace tal_fast
