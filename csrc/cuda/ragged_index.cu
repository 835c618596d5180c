// SPDX-License-Identifier: Apache-2.0
#include "cuda/ragged_index.cuh"

#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/launch.h"
#include "ops/ragged_index.h"

namespace tal_fast {
namespace {

// A group of more items is gone through in turns.
constexpr int64_t kMostBlocksOfGroup = 256;

// (group, first)
std::tuple<Tensor, Tensor> ragged_index_cuda(const std::vector<int64_t>& counts,  // [B]
                                             const Tensor& like) {
  const int64_t items = check_ragged_index(counts);
  const auto groups = static_cast<int64_t>(counts.size());
  const DeviceScope scope(like);
  const Tensor group = allocate(like, {items}, ScalarType::Long);
  const Tensor first = allocate(like, {groups}, ScalarType::Long);
  RaggedIndex kernel{0, {}, mutable_data<int64_t>(group), mutable_data<int64_t>(first)};
  int64_t next = 0;
  for (int64_t begin = 0; begin < groups; begin += RaggedIndex::kGroups) {
    const int64_t count = std::min<int64_t>(RaggedIndex::kGroups, groups - begin);
    kernel.first_group = begin;
    kernel.first_item[0] = next;
    int64_t most = 1;
    for (int64_t g = 0; g < count; ++g) {
      next += counts[begin + g];
      kernel.first_item[g + 1] = next;
      most = std::max(most, counts[begin + g]);
    }
    const int64_t blocks = std::min(ceil_div(most, RaggedIndex::kThreads), kMostBlocksOfGroup);
    launch(scope, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(count)),
           RaggedIndex::kThreads, 0, kernel);
  }
  return {group, first};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("ragged_index", TORCH_BOX(&ragged_index_cuda));
}

}  // namespace tal_fast
