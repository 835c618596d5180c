// SPDX-License-Identifier: Apache-2.0
#include "cpu/linear_assignment.h"

#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

constexpr double kInfinity = __builtin_inf();
constexpr int64_t kNone = -1;
constexpr int kLanes = kFullLanes<double>;
using Doubles = Vector<double, kLanes>;
using Longs = VectorOf<int64_t, kLanes>::type;
static_assert(kAssignmentPadding % kLanes == 0);

inline Doubles load_doubles(const double* source) {
  return load<kLanes>(source);
}

// Added to the index of a column that has a row already, so that free columns come first.
constexpr double kTaken = 0x1p52;

struct Nearest {
  double distance;
  int64_t column;
};

// Shortens the distance of every column to what the way over row i gives, and finds the nearest
// open column: of several as near the first free one, or without any the first one. A closed column
// has `closed` and distance infinite. `kFirst`: there are no distances yet.
template <bool kFirst>
inline Nearest relax(const double* __restrict__ costs, double offset, int64_t padded, int64_t i,
                     const AssignmentWorkspace& work) {
  Doubles lowest = broadcast<double, kLanes>(kInfinity);
  Doubles lowest_rank = lowest;
  Doubles index;
  for (int l = 0; l < kLanes; ++l) {
    index[l] = l;
  }
  for (int64_t j = 0; j < padded; j += kLanes) {
    Doubles reached = (load_doubles(costs + j) + offset) - load_doubles(work.potentials + j);
    if constexpr (!kFirst) {
      reached += load_doubles(work.closed + j);
      const Doubles before = load_doubles(work.distances + j);
      const Longs nearer = reached < before;
      reached = nearer ? reached : before;
      Longs from;
      std::memcpy(&from, work.predecessors + j, sizeof(from));
      from = nearer ? Longs{} + i : from;
      std::memcpy(work.predecessors + j, &from, sizeof(from));
    }
    store<kLanes>(work.distances + j, reached);
    const Doubles rank = index + load_doubles(work.taken + j);
    const Longs better = (reached < lowest) | ((reached == lowest) & (rank < lowest_rank));
    lowest = better ? reached : lowest;
    lowest_rank = better ? rank : lowest_rank;
    index += static_cast<double>(kLanes);
  }
  double distance = lowest[0];
  double rank = lowest_rank[0];
  for (int l = 1; l < kLanes; ++l) {
    if (lowest[l] < distance || (lowest[l] == distance && lowest_rank[l] < rank)) {
      distance = lowest[l];
      rank = lowest_rank[l];
    }
  }
  return {distance, static_cast<int64_t>(rank < kTaken ? rank : rank - kTaken)};
}

// Brings row `start` in by a shortest augmenting path. False when there is none.
bool augment(int64_t start, int64_t columns, const AssignmentWorkspace& work) {
  const int64_t padded = assignment_padded(columns);
  int64_t num_closed = 0;
  int64_t i = start;
  Nearest nearest = relax<true>(work.costs + i * padded, -work.row_potentials[i], padded, i, work);
  bool has_predecessors = false;
  for (;;) {
    // NaN cannot come up: infinities meet finite numbers only.
    if (nearest.distance == kInfinity) {
      return false;
    }
    const int64_t j = nearest.column;
    if (work.row_of_column[j] == kNone) {
      break;
    }
    if (!has_predecessors) {
      for (int64_t c = 0; c < padded; ++c) {
        work.predecessors[c] = start;
      }
      has_predecessors = true;
    }
    work.closed_columns[num_closed++] = j;
    work.closed_distance[j] = nearest.distance;
    work.closed[j] = kInfinity;
    work.distances[j] = kInfinity;
    i = work.row_of_column[j];
    nearest = relax<false>(work.costs + i * padded, nearest.distance - work.row_potentials[i],
                           padded, i, work);
  }
  const double minimum = nearest.distance;
  work.row_potentials[start] += minimum;
  for (int64_t k = 0; k < num_closed; ++k) {
    const int64_t c = work.closed_columns[k];
    const double slack = minimum - work.closed_distance[c];
    work.row_potentials[work.row_of_column[c]] += slack;
    work.potentials[c] -= slack;
    work.closed[c] = 0.0;
  }
  // Along the path, each row takes the column that it led to.
  int64_t j = nearest.column;
  work.taken[j] = kTaken;
  for (;;) {
    const int64_t row = has_predecessors ? work.predecessors[j] : start;
    const int64_t released = work.column_of_row[row];
    work.row_of_column[j] = row;
    work.column_of_row[row] = j;
    if (row == start) {
      return true;
    }
    j = released;
  }
}

}  // namespace

template <typename T>
int64_t assignment_load(const T* costs, int64_t r, int64_t c, const AssignmentWorkspace& work) {
  const bool transpose = c < r;
  const int64_t rows = transpose ? c : r;
  const int64_t columns = transpose ? r : c;
  const int64_t padded = assignment_padded(columns);
  bool valid = true;
  for (int64_t i = 0; i < rows; ++i) {
    double* __restrict__ row = work.costs + i * padded;
    const T* __restrict__ source = costs + (transpose ? i : i * c);
    const int64_t stride = transpose ? c : 1;
    bool row_valid = true;
    for (int64_t j = 0; j < columns; ++j) {
      const auto cost = static_cast<double>(source[j * stride]);
      row_valid &= cost > -kInfinity;  // false for NaN too
      row[j] = cost;
    }
    for (int64_t j = columns; j < padded; ++j) {
      row[j] = kInfinity;
    }
    valid &= row_valid;
  }
  if (valid) {
    return -1;
  }
  int64_t index = 0;
  while (static_cast<double>(costs[index]) > -kInfinity) {
    ++index;
  }
  return index;
}

bool assignment_solve(int64_t rows, int64_t columns, const AssignmentWorkspace& work) {
  const int64_t padded = assignment_padded(columns);
  for (int64_t j = 0; j < padded; ++j) {
    work.potentials[j] = 0.0;
    work.closed[j] = 0.0;
    work.taken[j] = 0.0;
    work.row_of_column[j] = kNone;
  }
  for (int64_t i = 0; i < rows; ++i) {
    work.row_potentials[i] = 0.0;
    work.column_of_row[i] = kNone;
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (!augment(i, columns, work)) {
      return false;
    }
  }
  return true;
}

template int64_t assignment_load<float>(const float*, int64_t, int64_t, const AssignmentWorkspace&);
template int64_t assignment_load<double>(const double*, int64_t, int64_t,
                                         const AssignmentWorkspace&);

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
