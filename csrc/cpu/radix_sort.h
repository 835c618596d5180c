// SPDX-License-Identifier: Apache-2.0
// Sorting of slots (small numbers) by a floating-point key. Key and slot are one integer or pair of
// integers, so that a comparison is one instruction and a radix sort needs no indirection. In an
// anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "math/ordered_bits.h"

namespace tal_fast::cpu {
namespace {

// What is sorted: rising by key, equal keys by slot.
template <typename T>
struct SortItem;

template <>
struct SortItem<float> {
  static constexpr int kDigits = 4;
  uint64_t packed;  // key and slot

  static SortItem rising(float value, uint32_t slot) {
    return {uint64_t{ordered_bits(value)} << 32 | slot};
  }
  static SortItem falling(float value, uint32_t slot) {
    return {uint64_t{~ordered_bits(value)} << 32 | slot};
  }
  uint32_t slot() const { return static_cast<uint32_t>(packed); }
  uint32_t digit(int d) const { return (packed >> (32 + 8 * d)) & 255u; }
  uint32_t key() const { return static_cast<uint32_t>(packed >> 32); }
  bool operator<(const SortItem& other) const { return packed < other.packed; }
};

template <>
struct SortItem<double> {
  static constexpr int kDigits = 8;
  uint64_t bits;
  uint64_t place;

  static SortItem rising(double value, uint32_t slot) { return {ordered_bits(value), slot}; }
  static SortItem falling(double value, uint32_t slot) { return {~ordered_bits(value), slot}; }
  uint32_t slot() const { return static_cast<uint32_t>(place); }
  uint32_t digit(int d) const { return (bits >> (8 * d)) & 255u; }
  uint64_t key() const { return bits; }
  bool operator<(const SortItem& other) const {
    return bits != other.bits ? bits < other.bits : place < other.place;
  }
};

// Below this the histograms of the radix sort cost more than what follows.
constexpr int64_t kRadixSortFrom = 128;

// Insertion sort.
template <typename Item>
inline void insert_all(Item* items, int64_t n) {
  for (int64_t i = 1; i < n; ++i) {
    const Item item = items[i];
    int64_t at = i;
    for (; at > 0 && item < items[at - 1]; --at) {
      items[at] = items[at - 1];
    }
    items[at] = item;
  }
}

// Puts 2 to kRadixSortFrom items into as many buckets of rising key, and then every one of them
// where it belongs, which is near: few comparisons, and so few mispredicted branches.
template <typename Item>
inline void sort_few(Item* sorted,       // [n] out
                     const Item* items,  // [n]
                     int64_t n) {
  auto low = items[0].key();
  auto high = low;
  for (int64_t i = 1; i < n; ++i) {
    const auto key = items[i].key();
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  int shift = 0;
  while (((high - low) >> shift) >= kRadixSortFrom) {
    ++shift;
  }
  uint8_t next[kRadixSortFrom + 1] = {};
  for (int64_t i = 0; i < n; ++i) {
    ++next[((items[i].key() - low) >> shift) + 1];
  }
  for (int64_t b = 1; b < kRadixSortFrom; ++b) {
    next[b] = static_cast<uint8_t>(next[b] + next[b - 1]);
  }
  for (int64_t i = 0; i < n; ++i) {
    sorted[next[(items[i].key() - low) >> shift]++] = items[i];
  }
  insert_all(sorted, n);
}

// Sorts items whose slots rise already (the sort by key is stable). Returns where the result is: in
// `items` or in `spare`.
template <typename Item>
[[gnu::noinline]] Item* sort_items(Item* items,  // [n]
                                   Item* spare,  // [n]
                                   int64_t n) {
  if (n <= 16) {
    insert_all(items, n);
    return items;
  }
  if (n < kRadixSortFrom) {
    sort_few(spare, items, n);
    return spare;
  }
  uint32_t counts[Item::kDigits][256] = {};
  for (int64_t i = 0; i < n; ++i) {
    for (int d = 0; d < Item::kDigits; ++d) {
      ++counts[d][items[i].digit(d)];
    }
  }
  for (int d = 0; d < Item::kDigits; ++d) {
    uint32_t* next = counts[d];
    if (next[items[0].digit(d)] == n) {  // one digit for all
      continue;
    }
    uint32_t sum = 0;
    for (int value = 0; value < 256; ++value) {
      const uint32_t count = next[value];
      next[value] = sum;
      sum += count;
    }
    for (int64_t i = 0; i < n; ++i) {
      spare[next[items[i].digit(d)]++] = items[i];
    }
    std::swap(items, spare);
  }
  return items;
}

}  // namespace
}  // namespace tal_fast::cpu
