// SPDX-License-Identifier: Apache-2.0
// linear_assignment of small problems: a warp each, nothing in global memory but costs and matches.
#pragma once

#include "cuda/linear_assignment.cuh"

namespace tal_fast {

// A warp per problem of at most kSlots * 32 columns: a lane has every 32nd column in registers, the
// costs are in shared memory.
template <int kSlots, typename T>
struct LinearAssignmentWarp {
  static constexpr const char* kName = "linear_assignment, warp";
  static constexpr int kThreads = kWarp;
  static constexpr int kBlocks = 16;
  static constexpr int kColumns = kSlots * kWarp;
  static constexpr int kProblems = 240;  // of a launch

  // Places count from those of the launch.
  struct Problem {
    uint32_t index, first_cost, first_match;
    uint16_t given_rows, given_columns;
  };

  const T* costs;
  int64_t first_problem;
  AssignmentOutputs out;
  Problem problems[kProblems];

  static size_t shared_bytes(int64_t rows, int64_t columns) {
    return SharedSize()
        .take<T>(rows * (columns | 1))
        .template take<double>(rows)
        .template take<int>(rows)
        .bytes();
  }

  // What a lane knows of its columns.
  struct Columns {
    double potentials[kSlots];
    double distances[kSlots];
    double closed_distances[kSlots];
    int predecessors[kSlots];
    int rows[kSlots];  // matched with them
    bool closed[kSlots];
  };

  TAL_FAST_DEVICE void operator()() const {
    const Problem problem = problems[blockIdx.x];
    const bool transposed = problem.given_columns < problem.given_rows;
    const int rows = transposed ? problem.given_columns : problem.given_rows;
    const int columns = transposed ? problem.given_rows : problem.given_columns;
    // Odd: both ways through the matrix are free of bank conflicts.
    const int stride = columns | 1;
    SharedMemory memory;
    const Shared<T> matrix = memory.take<T>(rows * stride);
    const Shared<double> row_potentials = memory.take<double>(rows);
    const Shared<int> column_of_row = memory.take<int>(rows);

    const T* given = costs + problem.first_cost;
    bool valid = true;
    for (int e = lane_index(); e < rows * columns; e += kWarp) {
      const T cost = given[e];
      valid = valid && cost > -kAssignmentInfinity;  // false for NaN too
      const int i = e / problem.given_columns;
      const int j = e % problem.given_columns;
      matrix.store(transposed ? j * stride + i : i * stride + j, cost);
    }
    for (int i = lane_index(); i < rows; i += kWarp) {
      row_potentials.store(i, 0.0);
      column_of_row.store(i, kAssignmentNone);
    }
    Columns own;
    for (int s = 0; s < kSlots; ++s) {
      own.potentials[s] = 0.0;
      own.rows[s] = kAssignmentNone;
      own.closed[s] = false;
    }
    bool solved = __all_sync(kAllLanes, valid);
    __syncwarp();
    for (int start = 0; solved && start < rows; ++start) {
      solved = augment(start, columns, matrix, stride, row_potentials, column_of_row, own);
    }
    write(problem, transposed, rows, columns, solved, column_of_row, own);
  }

 private:
  // Slot j / 32 of lane j % 32, in all lanes; j is the same in all of them.
  TAL_FAST_DEVICE static int pick(const int (&values)[kSlots], int j) {
    int value = values[0];
    for (int s = 1; s < kSlots; ++s) {
      value = j / kWarp == s ? values[s] : value;
    }
    return __shfl_sync(kAllLanes, value, j % kWarp);
  }

  // Shortens the distance of every column to what the way over row i gives.
  template <bool kFirst>
  TAL_FAST_DEVICE static AssignmentNearest relax(const Shared<T>& row, double offset, int i,
                                                 int columns, Columns& own) {
    AssignmentNearest nearest;
    for (int s = 0; s < kSlots; ++s) {
      const int j = s * kWarp + lane_index();
      if (j >= columns) {
        continue;
      }
      const double reached = (static_cast<double>(row.load(j)) + offset) - own.potentials[s];
      if (kFirst || (!own.closed[s] && reached < own.distances[s])) {
        own.distances[s] = reached;
        own.predecessors[s] = i;
      }
      const unsigned taken = own.rows[s] == kAssignmentNone ? 0u : AssignmentNearest::kTaken;
      nearest.offer(own.distances[s], static_cast<unsigned>(j) | taken);
    }
    nearest.reduce_warp();
    return nearest;
  }

  // Brings row `start` in by a shortest augmenting path. False when there is none.
  TAL_FAST_DEVICE static bool augment(int start, int columns, const Shared<T>& matrix, int stride,
                                      const Shared<double>& row_potentials,
                                      const Shared<int>& column_of_row, Columns& own) {
    AssignmentNearest nearest =
        relax<true>(matrix + start * stride, -row_potentials.load(start), start, columns, own);
    for (;;) {
      if (nearest.distance == kAssignmentInfinity) {
        return false;
      }
      const int j = nearest.column();
      const int row = pick(own.rows, j);
      if (row == kAssignmentNone) {
        break;
      }
      for (int s = 0; s < kSlots; ++s) {
        if (j == s * kWarp + lane_index()) {
          own.closed[s] = true;
          own.closed_distances[s] = nearest.distance;
          own.distances[s] = kAssignmentInfinity;
        }
      }
      nearest = relax<false>(matrix + row * stride, nearest.distance - row_potentials.load(row),
                             row, columns, own);
    }
    const double minimum = nearest.distance;
    __syncwarp();
    if (lane_index() == 0) {
      row_potentials.add(start, minimum);
    }
    for (int s = 0; s < kSlots; ++s) {
      if (own.closed[s]) {
        const double slack = minimum - own.closed_distances[s];
        row_potentials.add(own.rows[s], slack);  // every row belongs to one column at most
        own.potentials[s] -= slack;
        own.closed[s] = false;
      }
    }
    // Along the path, each row takes the column that it led to.
    int j = nearest.column();
    for (;;) {
      const int row = pick(own.predecessors, j);
      const int released = column_of_row.load(row);
      __syncwarp();
      if (lane_index() == 0) {
        column_of_row.store(row, j);
      }
      for (int s = 0; s < kSlots; ++s) {
        own.rows[s] = j == s * kWarp + lane_index() ? row : own.rows[s];
      }
      if (row == start) {
        break;
      }
      j = released;
    }
    __syncwarp();
    return true;
  }

  TAL_FAST_DEVICE void write(const Problem& problem, bool transposed, int rows, int columns,
                             bool solved, const Shared<int>& column_of_row,
                             const Columns& own) const {
    int64_t* out_row = out.row + problem.first_match;
    int64_t* out_column = out.column + problem.first_match;
    for (int i = lane_index(); i < rows; i += kWarp) {
      out.problem[problem.first_match + i] = first_problem + problem.index;
      if (!solved) {
        out_row[i] = kAssignmentNone;
        out_column[i] = kAssignmentNone;
      } else if (!transposed) {
        out_row[i] = i;
        out_column[i] = column_of_row.load(i);
      }
    }
    if (!solved || !transposed) {
      return;
    }
    int before = 0;
    for (int s = 0; s < kSlots; ++s) {
      const int j = s * kWarp + lane_index();
      const bool matched = j < columns && own.rows[s] != kAssignmentNone;
      const unsigned all = __ballot_sync(kAllLanes, matched);
      if (matched) {
        const int place = before + __popc(all & ((1u << lane_index()) - 1u));
        out_row[place] = j;
        out_column[place] = own.rows[s];
      }
      before += __popc(all);
    }
  }
};

}  // namespace tal_fast
