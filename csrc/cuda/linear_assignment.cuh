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

// A block per problem of any size, with everything in global memory.
template <typename T>
struct LinearAssignmentBlock {
  static constexpr const char* kName = "linear_assignment, block";
  static constexpr int kThreads = 512;
  static constexpr int kBlocks = 2;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kProblems = 64;  // of a launch

  struct Problem {
    int64_t index, first_cost, first_match;
    int64_t first_double, first_int, first_transposed;  // of its workspaces
    int32_t given_rows, given_columns;
  };

  const T* costs;
  T* transposed_costs;
  double* doubles;
  int32_t* ints;
  AssignmentOutputs out;
  Problem problems[kProblems];

  // Workspace of a problem.
  static int64_t num_doubles(int64_t rows, int64_t columns) { return rows + 3 * columns; }
  static int64_t num_ints(int64_t rows, int64_t columns) { return rows + 3 * columns; }

  // A thread per column as far as a block has them.
  static int threads(int64_t columns) {
    return columns < kThreads ? static_cast<int>((columns + kWarp - 1) / kWarp * kWarp) : kThreads;
  }
  static size_t shared_bytes() {
    return SharedSize().take<double>(2 * kWarps).template take<unsigned>(2 * kWarps).bytes();
  }

  // A column belongs to one thread: what is said of columns is its alone, but for `rows` and
  // `predecessors`, which others read after a barrier.
  struct State {
    const T* matrix;  // [rows, columns]
    int rows_count, columns_count;
    double* row_potentials;    // [rows]
    double* potentials;        // [columns]
    double* distances;         // [columns]
    double* closed_distances;  // [columns]
    int32_t* column_of_row;    // [rows]
    int32_t* predecessors;     // [columns]
    int32_t* rows;             // [columns], matched with them
    int32_t* closed;           // [columns]
  };

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<double> warp_distances = memory.take<double>(2 * kWarps);
    const Shared<unsigned> warp_ranks = memory.take<unsigned>(2 * kWarps);
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    const Problem& problem = problems[blockIdx.x];
    const bool transposed = problem.given_columns < problem.given_rows;
    const int rows = transposed ? problem.given_columns : problem.given_rows;
    const int columns = transposed ? problem.given_rows : problem.given_columns;
    double* d = doubles + problem.first_double;
    int32_t* l = ints + problem.first_int;
    const T* given = costs + problem.first_cost;
    T* turned = transposed_costs + problem.first_transposed;
    const State state{transposed ? turned : given,
                      rows,
                      columns,
                      d,
                      d + rows,
                      d + rows + columns,
                      d + rows + 2 * static_cast<int64_t>(columns),
                      l,
                      l + rows,
                      l + rows + columns,
                      l + rows + 2 * static_cast<int64_t>(columns)};

    bool valid = true;
    const int64_t entries = static_cast<int64_t>(rows) * columns;
    for (int64_t e = thread; e < entries; e += threads) {
      const T cost = given[e];
      valid = valid && cost > -kAssignmentInfinity;
      if (transposed) {
        turned[e % rows * columns + e / rows] = cost;
      }
    }
    for (int i = thread; i < rows; i += threads) {
      state.row_potentials[i] = 0.0;
      state.column_of_row[i] = kAssignmentNone;
    }
    for (int j = thread; j < columns; j += threads) {
      state.potentials[j] = 0.0;
      state.rows[j] = kAssignmentNone;
      state.closed[j] = 0;
    }
    bool solved = __syncthreads_and(valid) != 0;
    int buffer = 0;
    for (int start = 0; solved && start < rows; ++start) {
      solved = augment(start, state, warp_distances, warp_ranks, buffer);
    }
    __syncthreads();
    write(problem, transposed, solved, state, warp_ranks);
  }

 private:
  // The nearest over the block, in all threads. Two buffers: one is read while the next is filled.
  TAL_FAST_DEVICE static void reduce_block(AssignmentNearest& nearest,
                                           const Shared<double>& warp_distances,
                                           const Shared<unsigned>& warp_ranks, int& buffer) {
    const int threads = static_cast<int>(blockDim.x);
    nearest.reduce_warp();
    const int first = buffer * kWarps;
    if (lane_index() == 0) {
      warp_distances.store(first + warp_index(), nearest.distance);
      warp_ranks.store(first + warp_index(), nearest.rank);
    }
    __syncthreads();
    nearest = AssignmentNearest();
    if (lane_index() < threads / kWarp) {
      nearest.offer(warp_distances.load(first + lane_index()),
                    warp_ranks.load(first + lane_index()));
    }
    nearest.reduce_warp();
    buffer ^= 1;
  }

  TAL_FAST_DEVICE static bool augment(int start, const State& state,
                                      const Shared<double>& warp_distances,
                                      const Shared<unsigned>& warp_ranks, int& buffer) {
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    int i = start;
    double offset = -state.row_potentials[start];
    AssignmentNearest nearest;
    for (;;) {
      nearest = AssignmentNearest();
      const T* row = state.matrix + static_cast<int64_t>(i) * state.columns_count;
      for (int j = thread; j < state.columns_count; j += threads) {
        const double reached = (static_cast<double>(row[j]) + offset) - state.potentials[j];
        const bool nearer = i == start || (state.closed[j] == 0 && reached < state.distances[j]);
        if (nearer) {
          state.distances[j] = reached;
          state.predecessors[j] = i;
        }
        const unsigned taken = state.rows[j] == kAssignmentNone ? 0u : AssignmentNearest::kTaken;
        nearest.offer(nearer ? reached : state.distances[j], static_cast<unsigned>(j) | taken);
      }
      reduce_block(nearest, warp_distances, warp_ranks, buffer);
      if (nearest.distance == kAssignmentInfinity) {
        return false;
      }
      const int j = nearest.column();
      if (state.rows[j] == kAssignmentNone) {
        break;
      }
      if (j % threads == thread) {
        state.closed[j] = 1;
        state.closed_distances[j] = nearest.distance;
        state.distances[j] = kAssignmentInfinity;
      }
      i = state.rows[j];
      offset = nearest.distance - state.row_potentials[i];
    }
    if (thread == 0) {
      state.row_potentials[start] += nearest.distance;
    }
    for (int j = thread; j < state.columns_count; j += threads) {
      if (state.closed[j] != 0) {
        const double slack = nearest.distance - state.closed_distances[j];
        state.row_potentials[state.rows[j]] += slack;
        state.potentials[j] -= slack;
        state.closed[j] = 0;
      }
    }
    __syncthreads();
    if (thread == 0) {
      int j = nearest.column();
      for (;;) {
        const int row = state.predecessors[j];
        const int released = state.column_of_row[row];
        state.rows[j] = row;
        state.column_of_row[row] = j;
        if (row == start) {
          break;
        }
        j = released;
      }
    }
    __syncthreads();
    return true;
  }

  TAL_FAST_DEVICE void write(const Problem& problem, bool transposed, bool solved,
                             const State& state, const Shared<unsigned>& counts) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    int64_t* out_row = out.row + problem.first_match;
    int64_t* out_column = out.column + problem.first_match;
    for (int i = thread; i < state.rows_count; i += threads) {
      out.problem[problem.first_match + i] = problem.index;
      if (!solved) {
        out_row[i] = kAssignmentNone;
        out_column[i] = kAssignmentNone;
      } else if (!transposed) {
        out_row[i] = i;
        out_column[i] = state.column_of_row[i];
      }
    }
    if (!solved || !transposed) {
      return;
    }
    int before = 0;
    for (int first = 0; first < state.columns_count; first += threads) {
      const int j = first + thread;
      const bool matched = j < state.columns_count && state.rows[j] != kAssignmentNone;
      const unsigned all = __ballot_sync(kAllLanes, matched);
      if (lane_index() == 0) {
        counts.store(warp_index(), static_cast<unsigned>(__popc(all)));
      }
      __syncthreads();
      int place = before + __popc(all & ((1u << lane_index()) - 1u));
      for (int w = 0; w < threads / kWarp; ++w) {
        const int count = static_cast<int>(counts.load(w));
        place += w < warp_index() ? count : 0;
        before += count;
      }
      if (matched) {
        out_row[place] = j;
        out_column[place] = state.rows[j];
      }
      __syncthreads();
    }
  }
};

}  // namespace tal_fast
