// SPDX-License-Identifier: Apache-2.0
// ragged_index: host integers become tensors without a copy, as kernel parameters.
#pragma once

#include "cuda/platform.cuh"

namespace tal_fast {

struct RaggedIndex {
  static constexpr const char* kName = "ragged_index";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 16;
  static constexpr int kGroups = 256;  // of a launch: blockIdx.y

  int64_t first_group;              // of this launch
  int64_t first_item[kGroups + 1];  // of every group, and where the last one ends
  int64_t* group;                   // [M]
  int64_t* first;                   // [B]

  TAL_FAST_DEVICE void operator()() const {
    const int64_t begin = first_item[blockIdx.y];
    const int64_t end = first_item[blockIdx.y + 1];
    const int64_t index = first_group + blockIdx.y;
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread == 0) {
      first[index] = begin;
    }
    for (int64_t i = begin + thread; i < end; i += stride) {
      group[i] = index;
    }
  }
};

}  // namespace tal_fast
