// SPDX-License-Identifier: Apache-2.0
// Slots by falling score, sorted as far as they are asked for: they are divided into many buckets
// of falling score at once, and a bucket is sorted when its turn comes. What a suppression has
// removed by then, or what lies behind the last segment wanted, is never sorted. In an anonymous
// namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>

#include "cpu/carver.h"
#include "cpu/radix_sort.h"

namespace tal_fast::cpu {
namespace {

template <typename T>
class RankFeed {
 public:
  // Lays itself out; a feed laid out again over the same memory is the same feed.
  RankFeed(int64_t n, Carver& carve)
      : n_(n),
        items_(carve.take<SortItem<T>>(n)),
        spare_(carve.take<SortItem<T>>(n)),
        starts_(carve.take<int32_t>(kMostBuckets + 2)),
        buckets_(bucket_count(n)) {}

  // The score of slot 0 <= slot < n is scores[rows[slot]].
  [[gnu::noinline]] void fill(const T* scores, const int32_t* rows) {
    const auto score_of = [=](int64_t slot) { return scores[rows[slot]]; };
    if (buckets_ == 1) {
      for (int64_t slot = 0; slot < n_; ++slot) {
        items_[slot] = SortItem<T>::falling(score_of(slot), static_cast<uint32_t>(slot));
      }
      starts_[0] = 0;
      starts_[1] = static_cast<int32_t>(n_);
      return;
    }
    auto low = ~decltype(spare_->key()){0};
    decltype(low) high = 0;
    for (int64_t slot = 0; slot < n_; ++slot) {
      spare_[slot] = SortItem<T>::falling(score_of(slot), static_cast<uint32_t>(slot));
      const auto key = spare_[slot].key();
      low = key < low ? key : low;
      high = key > high ? key : high;
    }
    int shift = 0;
    while (((high - low) >> shift) >= static_cast<decltype(low)>(buckets_)) {
      ++shift;
    }
    for (int64_t b = 0; b <= buckets_ + 1; ++b) {
      starts_[b] = 0;
    }
    for (int64_t i = 0; i < n_; ++i) {
      ++starts_[((spare_[i].key() - low) >> shift) + 2];
    }
    for (int64_t b = 2; b <= buckets_ + 1; ++b) {
      starts_[b] += starts_[b - 1];
    }
    // starts_[b + 1] runs from the first slot of bucket b to the first of bucket b + 1.
    for (int64_t i = 0; i < n_; ++i) {
      items_[starts_[((spare_[i].key() - low) >> shift) + 1]++] = spare_[i];
    }
  }

  int64_t buckets() const { return buckets_; }

  // The items of bucket b by falling score, those alone of which wanted(slot) holds.
  struct Range {
    const SortItem<T>* begin;
    const SortItem<T>* end;
  };
  template <typename Wanted>
  Range sorted(int64_t b, const Wanted& wanted) {
    SortItem<T>* items = items_ + starts_[b];
    const int64_t size = starts_[b + 1] - starts_[b];
    int64_t count = 0;
    for (int64_t i = 0; i < size; ++i) {
      const SortItem<T> item = items[i];
      items[count] = item;
      count += wanted(item.slot()) ? 1 : 0;
    }
    const SortItem<T>* found = count < 2 ? items : sort_items(items, spare_, count);
    return {found, found + count};
  }

 private:
  static constexpr int64_t kMostBuckets = 8192;

  static int64_t bucket_count(int64_t n) {
    int64_t count = 1;
    while (n >= kRadixSortFrom && count < n && count < kMostBuckets) {
      count *= 2;
    }
    return count;
  }

  int64_t n_;
  SortItem<T>* items_;  // [n]
  SortItem<T>* spare_;  // [n]
  int32_t* starts_;     // [kMostBuckets + 2]
  int64_t buckets_;
};

}  // namespace
}  // namespace tal_fast::cpu
