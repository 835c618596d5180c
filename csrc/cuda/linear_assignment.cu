// SPDX-License-Identifier: Apache-2.0
#include "cuda/linear_assignment_block.cuh"
#include "cuda/linear_assignment_warp.cuh"

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "cuda/launch.h"
#include "ops/linear_assignment.h"

namespace tal_fast {
namespace {

// The larger side of a problem for a warp.
constexpr int64_t kMostColumnsOfWarp = 128;

// An AssignmentProblem and its place among the problems.
struct Numbered {
  int64_t index;
  AssignmentProblem problem;
  int64_t shorter() const { return std::min(problem.rows, problem.columns); }
  int64_t longer() const { return std::max(problem.rows, problem.columns); }
};

AssignmentOutputs outputs_from(const std::vector<Tensor>& out, int64_t first_match) {
  return {mutable_data<int64_t>(out[0]) + first_match, mutable_data<int64_t>(out[1]) + first_match,
          mutable_data<int64_t>(out[2]) + first_match};
}

template <int kSlots, typename T>
void launch_warps(const DeviceScope& scope, const T* costs, const Numbered* problems, int64_t count,
                  const std::vector<Tensor>& out) {
  using Kernel = LinearAssignmentWarp<kSlots, T>;
  const auto [first_index, first] = problems[0];
  Kernel kernel{costs + first.first_cost, first_index, outputs_from(out, first.first_match), {}};
  size_t shared = 0;
  for (int64_t p = 0; p < count; ++p) {
    const auto& [index, problem] = problems[p];
    kernel.problems[p] = {static_cast<uint32_t>(index - first_index),
                          static_cast<uint32_t>(problem.first_cost - first.first_cost),
                          static_cast<uint32_t>(problem.first_match - first.first_match),
                          static_cast<uint16_t>(problem.rows),
                          static_cast<uint16_t>(problem.columns)};
    shared = std::max(shared, Kernel::shared_bytes(problems[p].shorter(), problems[p].longer()));
  }
  launch(scope, dim3(static_cast<unsigned>(count)), Kernel::kThreads, shared, kernel);
}

template <typename T>
void solve_with_warps(const DeviceScope& scope, const T* costs,
                      const std::vector<Numbered>& problems, const std::vector<Tensor>& out) {
  constexpr auto kPlaces = int64_t{std::numeric_limits<uint32_t>::max()};
  const auto total = static_cast<int64_t>(problems.size());
  for (int64_t first = 0; first < total;) {
    int64_t last = first;
    int64_t columns = 0;
    while (last < total && last - first < LinearAssignmentWarp<2, T>::kProblems &&
           problems[last].index - problems[first].index <= kPlaces &&
           problems[last].problem.first_cost - problems[first].problem.first_cost <= kPlaces) {
      columns = std::max(columns, problems[last].longer());
      ++last;
    }
    const auto run =
        columns <= LinearAssignmentWarp<2, T>::kColumns ? &launch_warps<2, T> : &launch_warps<4, T>;
    run(scope, costs, problems.data() + first, last - first, out);
    first = last;
  }
}

template <typename T>
void solve_with_blocks(const DeviceScope& scope, const Tensor& costs,
                       const std::vector<Numbered>& problems, const std::vector<Tensor>& out) {
  using Kernel = LinearAssignmentBlock<T>;
  const auto total = static_cast<int64_t>(problems.size());
  for (int64_t first = 0; first < total; first += Kernel::kProblems) {
    const int64_t count = std::min<int64_t>(Kernel::kProblems, total - first);
    Kernel kernel{const_data<T>(costs), nullptr, nullptr, nullptr, outputs_from(out, 0), {}};
    int64_t doubles = 0;
    int64_t ints = 0;
    int64_t transposed = 0;
    int64_t columns = 0;
    for (int64_t p = 0; p < count; ++p) {
      const Numbered& numbered = problems[first + p];
      const auto& [index, problem] = numbered;
      kernel.problems[p] = {index,
                            problem.first_cost,
                            problem.first_match,
                            doubles,
                            ints,
                            transposed,
                            static_cast<int32_t>(problem.rows),
                            static_cast<int32_t>(problem.columns)};
      columns = std::max(columns, numbered.longer());
      doubles += Kernel::num_doubles(numbered.shorter(), numbered.longer());
      ints += Kernel::num_ints(numbered.shorter(), numbered.longer());
      transposed += problem.columns < problem.rows ? problem.rows * problem.columns : 0;
    }
    const Tensor doubles_memory = allocate(costs, {doubles}, ScalarType::Double);
    const Tensor ints_memory = allocate(costs, {ints}, ScalarType::Int);
    const Tensor transposed_memory = allocate(costs, {transposed});
    kernel.doubles = mutable_data<double>(doubles_memory);
    kernel.ints = mutable_data<int32_t>(ints_memory);
    kernel.transposed_costs = mutable_data<T>(transposed_memory);
    launch(scope, dim3(static_cast<unsigned>(count)), Kernel::threads(columns),
           Kernel::shared_bytes(), kernel);
  }
}

template <typename T>
void solve_all(const DeviceScope& scope, const Tensor& costs,
               const std::vector<AssignmentProblem>& problems, const std::vector<Tensor>& out) {
  const size_t most_shared = scope.limits().shared_per_block;
  std::vector<Numbered> small;
  std::vector<Numbered> large;
  for (size_t p = 0; p < problems.size(); ++p) {
    const Numbered numbered{static_cast<int64_t>(p), problems[p]};
    if (numbered.shorter() == 0) {
      continue;
    }
    TAL_FAST_CHECK(numbered.longer() <= std::numeric_limits<int32_t>::max(),
                   "linear_assignment: expected at most 2147483647 rows and columns on a GPU, got "
                   "problem ",
                   p, " of [", problems[p].rows, ", ", problems[p].columns, "]");
    const bool fits = numbered.longer() <= kMostColumnsOfWarp &&
                      LinearAssignmentWarp<4, T>::shared_bytes(numbered.shorter(),
                                                               numbered.longer()) <= most_shared;
    (fits ? small : large).push_back(numbered);
  }
  solve_with_warps<T>(scope, const_data<T>(costs), small, out);
  solve_with_blocks<T>(scope, costs, large, out);
}

// (problem, row, column), one entry per match.
std::tuple<Tensor, Tensor, Tensor> linear_assignment_cuda(
    const Tensor& costs_in,                     // [sum of r * c]
    const std::vector<int64_t>& row_counts,     // [P], or [1] for all
    const std::vector<int64_t>& column_counts)  // [P]
{
  const std::vector<AssignmentProblem> problems =
      check_linear_assignment(costs_in, row_counts, column_counts);
  const DeviceScope scope(costs_in);
  const Tensor costs = as_contiguous(costs_in);
  const int64_t matches = num_matches(problems);
  std::vector<Tensor> out;
  for (int i = 0; i < 3; ++i) {
    out.push_back(allocate(costs, {matches}, ScalarType::Long));
  }
  if (matches > 0) {
    dispatch_compute_type(costs.scalar_type(), [&](auto tag) {
      solve_all<typename decltype(tag)::type>(scope, costs, problems, out);
    });
  }
  return {out[0], out[1], out[2]};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("linear_assignment", TORCH_BOX(&linear_assignment_cuda));
}

}  // namespace tal_fast
