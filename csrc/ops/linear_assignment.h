// SPDX-License-Identifier: Apache-2.0
// What linear_assignment checks on every device, and where each problem has its costs and matches.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/tensor_checks.h"

namespace tal_fast {

struct AssignmentProblem {
  int64_t rows, columns;
  int64_t first_cost;   // where its costs begin
  int64_t first_match;  // where its matches begin
};

inline std::vector<AssignmentProblem> check_linear_assignment(
    const Tensor& costs, const std::vector<int64_t>& row_counts,
    const std::vector<int64_t>& column_counts) {
  TAL_FAST_CHECK(costs.dim() == 1,
                 "linear_assignment: expected costs of shape [sum of rows * columns], got ",
                 shape_string(costs));
  const ScalarType type = costs.scalar_type();
  TAL_FAST_CHECK(type == ScalarType::Double || type == ScalarType::Float,
                 "linear_assignment: expected costs of dtype float64 or float32, got ",
                 dtype_string(type));
  TAL_FAST_CHECK(row_counts.size() == 1 || row_counts.size() == column_counts.size(),
                 "linear_assignment: expected one row count for all problems or as many as "
                 "column_counts, got ",
                 row_counts.size(), " and ", column_counts.size());
  std::vector<AssignmentProblem> problems;
  problems.reserve(column_counts.size());
  int64_t num_costs = 0;
  int64_t first_match = 0;
  for (size_t p = 0; p < column_counts.size(); ++p) {
    const int64_t rows = row_counts[row_counts.size() == 1 ? 0 : p];
    const int64_t columns = column_counts[p];
    TAL_FAST_CHECK(rows >= 0 && columns >= 0,
                   "linear_assignment: expected counts >= 0, got problem ", p, " of [", rows, ", ",
                   columns, "]");
    problems.push_back({rows, columns, num_costs, first_match});
    num_costs += rows * columns;
    first_match += std::min(rows, columns);
  }
  TAL_FAST_CHECK(costs.size(0) == num_costs, "linear_assignment: expected ", num_costs,
                 " costs, the sum of rows * columns, got ", costs.size(0));
  return problems;
}

inline int64_t num_matches(const std::vector<AssignmentProblem>& problems) {
  if (problems.empty()) {
    return 0;
  }
  const AssignmentProblem& last = problems.back();
  return last.first_match + std::min(last.rows, last.columns);
}

}  // namespace tal_fast
