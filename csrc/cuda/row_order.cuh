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

// One list in one block, key and row being one number: a bitonic sort, each thread holding four
// neighbours. Steps within a warp need no shared memory, those between warps one barrier each.
struct SortList {
  static constexpr const char* kName = "row order, one list";
  static constexpr int kThreads = 1024;
  static constexpr int kBlocks = 1;
  static constexpr int kEach = 4;
  static constexpr int kMostRows = kEach * kThreads;
  using Number = uint64_t;

  const int32_t* key;  // [N]
  int n;               // at most four times the threads, which are a power of two
  int64_t* order;      // [N] out

  static size_t shared_bytes(int threads) {
    return SharedSize().take<Number>(2 * kEach * int64_t{threads}).bytes();
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    // Two halves in turn: so what one step reads, the next one does not write.
    const Shared<Number> all = memory.take<Number>(2 * kEach * threads);
    int half = 0;
    Number own[kEach];
    for (int i = 0; i < kEach; ++i) {
      const int row = kEach * thread + i;
      own[i] = row < n ? Number{static_cast<uint32_t>(key[row]) ^ 0x80000000u} << 32 |
                             static_cast<uint32_t>(row)
                       : ~Number{0};
    }
    order_two(own[0], own[1], true);
    order_two(own[2], own[3], false);
    order_four(own, (thread & 1) == 0);
    // In threads instead of places from here on.
    for (int size = 2; size <= threads; size *= 2) {
      const bool rising = (thread & size) == 0;
      int stride = size / 2;
      for (; stride >= kWarp; stride /= 2) {  // hot: between warps
        const Shared<Number> here = all + half * kEach * threads;
        half ^= 1;
        for (int i = 0; i < kEach; i += 2) {
          here.template store_pack<2>(i * threads + 2 * thread, {own[i], own[i + 1]});
        }
        __syncthreads();
        const int other = thread ^ stride;
        const bool least = ((thread & stride) == 0) == rising;
        for (int i = 0; i < kEach; i += 2) {
          const Pack<Number, 2> theirs = here.template load_pack<2>(i * threads + 2 * other);
          own[i] = one_of(own[i], theirs[0], least);
          own[i + 1] = one_of(own[i + 1], theirs[1], least);
        }
      }
      for (; stride > 0; stride /= 2) {  // hot: within a warp
        const bool least = ((thread & stride) == 0) == rising;
        for (int i = 0; i < kEach; ++i) {
          own[i] = one_of(own[i], __shfl_xor_sync(kAllLanes, own[i], stride), least);
        }
      }
      order_four(own, rising);
    }
    for (int i = 0; i < kEach; ++i) {
      const int place = kEach * thread + i;
      if (place < n) {
        order[place] = static_cast<int64_t>(own[i] & 0xffffffffu);
      }
    }
  }

 private:
  TAL_FAST_DEVICE static Number one_of(Number a, Number b, bool least) {
    return (a < b) == least ? a : b;
  }
  TAL_FAST_DEVICE static void order_two(Number& a, Number& b, bool rising) {
    const Number first = one_of(a, b, rising);
    b = one_of(a, b, !rising);
    a = first;
  }
  // The last two steps of a merge.
  TAL_FAST_DEVICE static void order_four(Number* own, bool rising) {
    order_two(own[0], own[2], rising);
    order_two(own[1], own[3], rising);
    order_two(own[0], own[1], rising);
    order_two(own[2], own[3], rising);
  }
};

// Groups and key as one number, for one sort where several were needed: `first`, a number for
// `second`, and the key, from the highest bit on.
template <typename Key>
struct FoldKeys {
  static constexpr const char* kName = "row order, fold";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;

  const int64_t* first;   // [N] or null
  int64_t first_last;     // what is not in [0, first_last] counts as it
  const int64_t* second;  // [N] or null: any numbers
  int second_log2;
  int32_t* table;        // [1 << second_log2], zeros at first, more than N
  const Key* key;        // [N] of 32 bits, or null
  const int64_t* order;  // [N] rows of the results, or null: 0, 1, ...
  int64_t n;
  int64_t* out;  // [N]

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) {
      return;
    }
    const int64_t row = order != nullptr ? order[i] : i;
    uint64_t number = 0;
    if (first != nullptr) {
      const auto group = static_cast<uint64_t>(first[row]);
      const auto last = static_cast<uint64_t>(first_last);
      number = group < last ? group : last;
    }
    if (second != nullptr) {
      number = number << second_log2 | short_number(second[row], static_cast<int32_t>(row));
    }
    if (key != nullptr) {
      number = number << 32 | (static_cast<uint32_t>(key[row]) ^ 0x80000000u);
    }
    out[i] = static_cast<int64_t>(number);
  }

 private:
  // The place of a number in a hash table of the rows that had it first. Which place that is may
  // depend on who comes first; that equal numbers have one, and others another, does not.
  TAL_FAST_DEVICE uint64_t short_number(int64_t wanted, int32_t row) const {
    const uint64_t hash = static_cast<uint64_t>(wanted) * 0x9e3779b97f4a7c15u;
    const uint64_t mask = (uint64_t{1} << second_log2) - 1;
    for (uint64_t place = hash >> (64 - second_log2);; place = (place + 1) & mask) {
      int32_t holder = table[place];
      if (holder == 0) {
        holder = atomicCAS(table + place, 0, row + 1);
      }
      if (holder == 0 || second[holder - 1] == wanted) {
        return place;
      }
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
