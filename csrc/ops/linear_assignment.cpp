// SPDX-License-Identifier: Apache-2.0
#include "cpu/linear_assignment.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops/linear_assignment.h"

namespace tal_fast {
namespace {

// Matrix entries times rows per task: about 50 us of work.
constexpr int64_t kStepsPerTask = 65536;

// What went wrong, for the message; problems are solved in parallel and none of them may throw.
struct Failure {
  enum class Kind { kNone, kInvalid, kInfeasible } kind = Kind::kNone;
  int64_t index = 0;  // of the invalid entry
};

// The memory of cpu::AssignmentWorkspace for the largest of several problems.
class WorkspaceMemory {
 public:
  void fit(int64_t rows, int64_t columns) {
    rows_ = std::max(rows_, rows);
    padded_ = std::max(padded_, cpu::assignment_padded(columns));
    costs_ = std::max(costs_, rows * cpu::assignment_padded(columns));
  }

  cpu::AssignmentWorkspace allocate() {
    doubles_.resize(static_cast<size_t>(costs_ + rows_ + 5 * padded_));
    longs_.resize(static_cast<size_t>(2 * rows_ + 2 * padded_));
    double* d = doubles_.data();
    int64_t* l = longs_.data();
    cpu::AssignmentWorkspace work;
    work.costs = d;
    work.potentials = d + costs_;
    work.distances = work.potentials + padded_;
    work.closed = work.distances + padded_;
    work.closed_distance = work.closed + padded_;
    work.taken = work.closed_distance + padded_;
    work.row_potentials = work.taken + padded_;
    work.predecessors = l;
    work.row_of_column = l + padded_;
    work.closed_columns = work.row_of_column + padded_;
    work.column_of_row = work.closed_columns + rows_;
    return work;
  }

 private:
  int64_t rows_ = 0;
  int64_t padded_ = 0;
  int64_t costs_ = 0;
  std::vector<double> doubles_;
  std::vector<int64_t> longs_;
};

// Solves one problem and writes its matches, rows ascending.
template <typename T>
Failure solve(int64_t p, const AssignmentProblem& problem, const T* costs,
              const cpu::AssignmentWorkspace& work, int64_t* out_problem, int64_t* out_row,
              int64_t* out_column) {
  const auto [r, c, first_cost, first_match] = problem;
  const int64_t invalid = TAL_FAST_ISA_CALL(assignment_load<T>)(costs + first_cost, r, c, work);
  if (invalid >= 0) {
    return {Failure::Kind::kInvalid, invalid};
  }
  const int64_t rows = std::min(r, c);
  if (!TAL_FAST_ISA_CALL(assignment_solve)(rows, std::max(r, c), work)) {
    return {Failure::Kind::kInfeasible};
  }
  std::fill_n(out_problem + first_match, rows, p);
  int64_t next = first_match;
  for (int64_t i = 0; i < r; ++i) {
    const int64_t j = c < r ? work.row_of_column[i] : work.column_of_row[i];
    if (j >= 0) {
      out_row[next] = i;
      out_column[next] = j;
      ++next;
    }
  }
  return {};
}

template <typename T>
void solve_all(const T* costs, const std::vector<AssignmentProblem>& problems, int64_t* out_problem,
               int64_t* out_row, int64_t* out_column) {
  const auto num_problems = static_cast<int64_t>(problems.size());
  std::vector<Failure> failures(problems.size());
  int64_t steps = 0;
  for (const AssignmentProblem& problem : problems) {
    steps += problem.rows * problem.columns * (1 + std::min(problem.rows, problem.columns) / 8);
  }
  const int64_t grain = std::max<int64_t>(
      1, kStepsPerTask / std::max<int64_t>(1, steps / std::max<int64_t>(1, num_problems)));
  torch::stable::parallel_for(0, num_problems, grain, [&](int64_t begin, int64_t end) {
    WorkspaceMemory memory;
    for (int64_t p = begin; p < end; ++p) {
      memory.fit(std::min(problems[p].rows, problems[p].columns),
                 std::max(problems[p].rows, problems[p].columns));
    }
    const cpu::AssignmentWorkspace work = memory.allocate();
    for (int64_t p = begin; p < end; ++p) {
      failures[p] = solve(p, problems[p], costs, work, out_problem, out_row, out_column);
    }
  });
  for (int64_t p = 0; p < num_problems; ++p) {
    const auto [kind, index] = failures[p];
    if (kind == Failure::Kind::kInvalid) {
      const int64_t columns = problems[p].columns;
      TAL_FAST_CHECK(false, "linear_assignment: expected costs that are not NaN or -inf, got ",
                     costs[problems[p].first_cost + index], " in problem ", p, " at row ",
                     index / columns, ", column ", index % columns);
    }
    TAL_FAST_CHECK(kind == Failure::Kind::kNone, "linear_assignment: problem ", p,
                   " is infeasible: every assignment holds a pair of cost +inf");
  }
}

// (problem, row, column), one entry per match.
std::tuple<Tensor, Tensor, Tensor> linear_assignment_cpu(
    const Tensor& costs_in,                     // [sum of r * c]
    const std::vector<int64_t>& row_counts,     // [P], or [1] for all
    const std::vector<int64_t>& column_counts)  // [P]
{
  const std::vector<AssignmentProblem> problems =
      check_linear_assignment(costs_in, row_counts, column_counts);
  const Tensor costs = as_contiguous(costs_in);
  const int64_t matches = num_matches(problems);
  Tensor out[3];
  for (Tensor& tensor : out) {
    tensor = empty_beside(costs, {matches}, ScalarType::Long);
  }
  dispatch_compute_type(costs.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    solve_all(const_data<T>(costs), problems, mutable_data<int64_t>(out[0]),
              mutable_data<int64_t>(out[1]), mutable_data<int64_t>(out[2]));
  });
  return {out[0], out[1], out[2]};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "linear_assignment(Tensor costs, SymInt[] row_counts, SymInt[] column_counts) -> (Tensor, "
      "Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("linear_assignment", TORCH_BOX(&linear_assignment_cpu));
}

}  // namespace tal_fast
