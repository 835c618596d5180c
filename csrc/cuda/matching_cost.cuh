// SPDX-License-Identifier: Apache-2.0
// matching_cost: a thread per pair of a query and an instance of its own video. A class that
// several instances share is computed for each of them: that costs less than to find out.
#pragma once

#include "cuda/platform.cuh"
#include "math/matching_cost.h"

namespace tal_fast {

template <Exponent exponent, typename T>
struct MatchingCost {
  static constexpr const char* kName = "matching_cost";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;
  static constexpr int kQueries = 8;   // of a block
  static constexpr int kVideos = 256;  // of a launch

  const T* logits;        // [K, B, Q, C]
  const T* segments;      // [K, B, Q, 2] (centre, width)
  const int64_t* labels;  // [M]
  const T* targets;       // [M, 2] (centre, width)
  int64_t layers, videos, queries, classes, instances;
  MatchingWeights<T> weights;
  T* out;               // [K * Q * M]: per layer and video a block [Q, count]
  int64_t first_video;  // of this launch; blockIdx.y counts from there
  int64_t first_instance[kVideos + 1];

  TAL_FAST_DEVICE void operator()() const {
    const int64_t first = first_instance[blockIdx.y];
    const int64_t count = first_instance[blockIdx.y + 1] - first;
    const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kQueries;
    const int num_queries = static_cast<int>(
        queries - first_query < kQueries ? queries - first_query : int64_t{kQueries});
    if (count == 0) {
      return;
    }
    for (int64_t layer = blockIdx.z; layer < layers; layer += gridDim.z) {
      const int64_t problem_query =
          (layer * videos + first_video + blockIdx.y) * queries + first_query;
      // The block's pairs are a stretch of `out`, which its threads write side by side.
      T* block_out = out + queries * (layer * instances + first) + first_query * count;
      int query = 0;
      int64_t instance = threadIdx.x;
      for (;;) {
        while (query < num_queries && instance >= count) {
          instance -= count;
          ++query;
        }
        if (query == num_queries) {
          break;
        }
        block_out[query * count + instance] = cost(problem_query + query, first + instance);
        instance += blockDim.x;
      }
    }
  }

 private:
  TAL_FAST_DEVICE T cost(int64_t query, int64_t instance) const {
    const int64_t label = labels[instance];
    // A kernel cannot raise; it must not read what is not there either.
    const bool known = label >= 0 && label < classes;
    const T logit =
        known ? logits[query * classes + label] : static_cast<T>(bits_to_float(0x7fc00000u));
    const T class_cost = focal_cost<exponent>(logit, weights.alpha, weights.gamma);
    return weights.classification * class_cost +
           matching_distance(matching_segment(segments[2 * query], segments[2 * query + 1]),
                             matching_segment(targets[2 * instance], targets[2 * instance + 1]),
                             weights);
  }
};

}  // namespace tal_fast
