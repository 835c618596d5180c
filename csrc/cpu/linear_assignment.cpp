// SPDX-License-Identifier: Apache-2.0
#include "cpu/linear_assignment.h"

#include "cpu/simd.h"

namespace tal_fast {
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

inline double least(Doubles lanes) {
  double result = lanes[0];
  for (int i = 1; i < kLanes; ++i) {
    result = lanes[i] < result ? lanes[i] : result;
  }
  return result;
}

// Shortens the distance of every column to what the way over row i gives, and returns the least
// distance of an open column. A closed column has `closed` and distance infinite. `kFirst`: there
// are no distances yet.
template <bool kFirst>
inline double relax(const double* __restrict__ costs, double offset, int64_t padded, int64_t i,
                    const AssignmentWorkspace& work) {
  Doubles lowest = broadcast<double, kLanes>(kInfinity);
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
    lowest = reached < lowest ? reached : lowest;
  }
  return least(lowest);
}

// Of the columns at distance `minimum`, the first free one, or without any the first one.
inline int64_t nearest(double minimum, int64_t columns, const AssignmentWorkspace& work) {
  int64_t found = kNone;
  for (int64_t j = 0; j < columns; ++j) {
    if (work.distances[j] == minimum) {
      if (work.row_of_column[j] == kNone) {
        return j;
      }
      found = found == kNone ? j : found;
    }
  }
  return found;
}

// Brings row `start` in by a shortest augmenting path. False when there is none.
bool augment(int64_t start, int64_t columns, const AssignmentWorkspace& work) {
  const int64_t padded = assignment_padded(columns);
  int64_t num_closed = 0;
  int64_t i = start;
  int64_t j = kNone;
  double minimum = relax<true>(work.costs + i * padded, -work.row_potentials[i], padded, i, work);
  bool has_predecessors = false;
  for (;;) {
    // NaN cannot come up: infinities meet finite numbers only.
    if (minimum == kInfinity) {
      return false;
    }
    j = nearest(minimum, columns, work);
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
    work.closed_distance[j] = minimum;
    work.closed[j] = kInfinity;
    work.distances[j] = kInfinity;
    i = work.row_of_column[j];
    minimum =
        relax<false>(work.costs + i * padded, minimum - work.row_potentials[i], padded, i, work);
  }
  work.row_potentials[start] += minimum;
  for (int64_t k = 0; k < num_closed; ++k) {
    const int64_t c = work.closed_columns[k];
    const double slack = minimum - work.closed_distance[c];
    work.row_potentials[work.row_of_column[c]] += slack;
    work.potentials[c] -= slack;
    work.closed[c] = 0.0;
  }
  // Along the path, each row takes the column that leads to it.
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
}  // namespace tal_fast
