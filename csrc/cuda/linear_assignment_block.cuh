// SPDX-License-Identifier: Apache-2.0
// linear_assignment of problems of any size: a block each.
#pragma once

#include "cuda/linear_assignment.cuh"

namespace tal_fast {

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
