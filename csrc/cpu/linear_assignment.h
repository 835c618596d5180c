// SPDX-License-Identifier: Apache-2.0
// The rectangular linear assignment problem by shortest augmenting paths: R. Jonker, A. Volgenant,
// "A shortest augmenting path algorithm for dense and sparse linear assignment problems", Computing
// 38 (1987), in the form of D. F. Crouse, "On implementing 2D rectangular assignment algorithms",
// IEEE Transactions on Aerospace and Electronic Systems 52 (2016).
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace tal_fast::cpu {

// Columns are padded to whole groups, so that loops over them need no tail.
constexpr int64_t kAssignmentPadding = 8;

inline int64_t assignment_padded(int64_t columns) {
  return (columns + kAssignmentPadding - 1) / kAssignmentPadding * kAssignmentPadding;
}

// Memory of one problem of `rows` <= `columns`, owned by the caller; P =
// assignment_padded(columns).
struct AssignmentWorkspace {
  double* costs;            // [rows, P]
  double* row_potentials;   // [rows]
  double* potentials;       // [P], of the columns
  double* distances;        // [P]
  double* closed;           // [P]
  double* closed_distance;  // [P]
  double* taken;            // [P]
  int64_t* predecessors;    // [P]
  int64_t* closed_columns;  // [rows]
  int64_t* row_of_column;   // [P]
  int64_t* column_of_row;   // [rows]
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Fills `work.costs` with the smaller side as rows. Returns the index in `costs` of the first entry
// that is NaN or minus infinity, or -1.
template <typename T>
int64_t assignment_load(const T* costs,    // [r, c]
                        int64_t r, int64_t c,
                        const AssignmentWorkspace& work);

// Leaves the answer in `row_of_column` (-1: none) and `column_of_row`. False when every assignment
// holds a forbidden pair, a cost of plus infinity.
bool assignment_solve(int64_t rows, int64_t columns,    // rows <= columns
                      const AssignmentWorkspace& work);
)
// clang-format on

}  // namespace tal_fast::cpu
