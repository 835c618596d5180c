// SPDX-License-Identifier: Apache-2.0
#include "ops/ragged_index.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

namespace tal_fast {
namespace {

// (group, first)
std::tuple<Tensor, Tensor> ragged_index_cpu(const std::vector<int64_t>& counts,  // [B]
                                            const Tensor& like) {
  const int64_t items = check_ragged_index(counts);
  const auto groups = static_cast<int64_t>(counts.size());
  Tensor group = empty_beside(like, {items}, ScalarType::Long);
  Tensor first = empty_beside(like, {groups}, ScalarType::Long);
  auto* next = mutable_data<int64_t>(group);
  auto* first_data = mutable_data<int64_t>(first);
  int64_t before = 0;
  for (int64_t b = 0; b < groups; ++b) {
    first_data[b] = before;
    next = std::fill_n(next, counts[b], b);
    before += counts[b];
  }
  return {group, first};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def("ragged_index(SymInt[] counts, Tensor like) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("ragged_index", TORCH_BOX(&ragged_index_cpu));
}

}  // namespace tal_fast
