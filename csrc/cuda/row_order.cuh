// SPDX-License-Identifier: Apache-2.0
// Sorting of rows by up to two group numbers and a key, equal ones by rising row.
#pragma once

#include "cuda/platform.cuh"

namespace tal_fast {

// Number of places of `order` whose rows are of groups below `group`; `order` is sorted by group.
TAL_FAST_DEVICE int64_t places_below(const int64_t* groups,  // [N] by row
                                     const int64_t* order,   // [N]
                                     int64_t n, int64_t group) {
  int64_t begin = 0;
  for (int64_t count = n; count > 0;) {
    const int64_t half = count / 2;
    const bool right = groups[order[begin + half]] < group;
    begin += right ? half + 1 : 0;
    count = right ? count - half - 1 : half;
  }
  return begin;
}

// All rows in one block: a bitonic sort of row numbers, the keys lying in shared memory.
template <typename Key>
struct SortRows {
  static constexpr const char* kName = "row order, one block";
  static constexpr int kThreads = 1024;
  static constexpr int kBlocks = 1;
  static constexpr int kMostRows = 4096;

  const int64_t* first;   // [N] or null
  const int64_t* second;  // [N] or null
  const Key* key;         // [N]
  int n;
  int padded;      // the power of two from n on
  int64_t* order;  // [N] out

  static size_t shared_bytes(int64_t n, int64_t padded, bool with_first, bool with_second) {
    return SharedSize()
        .take<int32_t>(padded)
        .template take<Key>(n)
        .template take<int64_t>(with_first ? n : 0)
        .template take<int64_t>(with_second ? n : 0)
        .bytes();
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<int32_t> rows = memory.take<int32_t>(padded);
    const Shared<Key> keys = memory.take<Key>(n);
    const Shared<int64_t> firsts = memory.take<int64_t>(first != nullptr ? n : 0);
    const Shared<int64_t> seconds = memory.take<int64_t>(second != nullptr ? n : 0);
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    for (int i = thread; i < padded; i += threads) {
      rows.store(i, i);
    }
    for (int i = thread; i < n; i += threads) {
      keys.store(i, key[i]);
      if (first != nullptr) {
        firsts.store(i, first[i]);
      }
      if (second != nullptr) {
        seconds.store(i, second[i]);
      }
    }
    // Whether row a belongs behind row b. Those from n on fill up and belong behind all others.
    const auto behind = [&](int32_t a, int32_t b) {
      if (a >= n || b >= n) {
        return a > b;
      }
      if (first != nullptr) {
        const int64_t first_a = firsts.load(a);
        const int64_t first_b = firsts.load(b);
        if (first_a != first_b) {
          return first_a > first_b;
        }
      }
      if (second != nullptr) {
        const int64_t second_a = seconds.load(a);
        const int64_t second_b = seconds.load(b);
        if (second_a != second_b) {
          return second_a > second_b;
        }
      }
      const Key key_a = keys.load(a);
      const Key key_b = keys.load(b);
      return key_a != key_b ? key_a > key_b : a > b;
    };
    __syncthreads();
    for (int size = 2; size <= padded; size *= 2) {
      for (int stride = size / 2; stride > 0; stride /= 2) {
        for (int pair = thread; pair < padded / 2; pair += threads) {
          const int low = 2 * stride * (pair / stride) + pair % stride;
          const int32_t a = rows.load(low);
          const int32_t b = rows.load(low + stride);
          const bool rising = (low & size) == 0;
          if (behind(a, b) == rising) {
            rows.store(low, b);
            rows.store(low + stride, a);
          }
        }
        __syncthreads();
      }
    }
    for (int i = thread; i < n; i += threads) {
      order[i] = rows.load(i);
    }
  }
};

struct GatherNumbers {
  static constexpr const char* kName = "row order, gather";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;

  const int64_t* values;  // [N]
  const int64_t* order;   // [N]
  int64_t n;
  int64_t* out;  // [N] values[order]

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
      out[i] = values[order[i]];
    }
  }
};

}  // namespace tal_fast
