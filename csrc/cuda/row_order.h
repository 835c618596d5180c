// SPDX-License-Identifier: Apache-2.0
// The launcher of row_order.cuh.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <optional>

#include "cuda/launch.h"
#include "cuda/row_order.cuh"

namespace tal_fast {

// Places of the values in rising order, equal ones as they were: torch's sort, which is stable,
// deterministic and waits for nothing.
inline Tensor stable_argsort(const Tensor& values) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(values), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const auto sorted = torch::stable::detail::to<Tensor>(stack[0]);
  return torch::stable::detail::to<Tensor>(stack[1]);
}

inline Tensor gather_numbers(const DeviceScope& scope, const int64_t* values, const Tensor& order) {
  const int64_t n = order.size(0);
  const Tensor out = allocate(order, {n}, ScalarType::Long);
  launch(scope, dim3(static_cast<unsigned>(ceil_div(n, GatherNumbers::kThreads))),
         GatherNumbers::kThreads, 0,
         GatherNumbers{values, const_data<int64_t>(order), n, mutable_data<int64_t>(out)});
  return out;
}

template <typename Key>
Tensor sort_in_one_block(const DeviceScope& scope, const int64_t* first, const int64_t* second,
                         const Tensor& key) {
  using Kernel = SortRows<Key>;
  const int64_t n = key.size(0);
  int64_t padded = 2;
  while (padded < n) {
    padded *= 2;
  }
  const Tensor order = allocate(key, {n}, ScalarType::Long);
  const auto threads =
      static_cast<int>(std::clamp<int64_t>(padded / 2, kWarp, int64_t{Kernel::kThreads}));
  launch(scope, dim3(1), threads,
         Kernel::shared_bytes(n, padded, first != nullptr, second != nullptr),
         Kernel{first, second, const_data<Key>(key), static_cast<int>(n), static_cast<int>(padded),
                mutable_data<int64_t>(order)});
  return order;
}

// What rows are grouped by before they are sorted.
struct RowGroups {
  const int64_t* first = nullptr;   // [N] or null: in rising order
  int64_t first_below = 0;          // those not in [0, first_below) count as its last; 0: any
  const int64_t* second = nullptr;  // [N] or null: equal ones together, in whatever order

  bool one_list() const { return first == nullptr && second == nullptr; }
};

// The steps of sort_rows for more rows than a block has room for: torch's sort takes one pass per
// byte of its numbers, whatever they are, so as much as fits into 63 bits is sorted at once.
template <typename Key>
class LargeSort {
 public:
  LargeSort(const DeviceScope& scope, const RowGroups& groups, const Tensor& key)
      : scope_(scope), groups_(groups), key_(key), n_(key.size(0)) {
    // At most half of the table is taken.
    second_log2_ = groups.second != nullptr ? bits_below(2 * n_) : 0;
  }

  Tensor order() {
    constexpr int kKeyBits = 8 * static_cast<int>(sizeof(Key));
    const bool bounded = groups_.first == nullptr || groups_.first_below > 0;
    const int first_bits = groups_.first != nullptr ? bits_below(groups_.first_below) : 0;
    bool first = groups_.first != nullptr;  // what is still to be sorted by
    bool second = groups_.second != nullptr;
    const int room = kBits - kKeyBits - second_log2_;
    if (((first && bounded) || second) && room >= (bounded ? first_bits : 0)) {
      sort_by(first && bounded, second, true);
      first = first && !bounded;
      second = false;
    } else if (second && room >= 0) {
      sort_by(false, true, true);
      second = false;
    } else {
      order_ = stable_argsort(key_);
    }
    if (second) {
      const bool both = first && bounded && first_bits + second_log2_ <= kBits;
      sort_by(both, true, false);
      first = first && !both;
    }
    if (first && bounded) {
      sort_by(true, false, false);
    } else if (first) {
      then_by(gather_numbers(scope_, groups_.first, *order_));
    }
    return *order_;
  }

 private:
  static constexpr int kBits = 63;  // torch sorts signed numbers

  static int bits_below(int64_t number) {
    return std::bit_width(static_cast<uint64_t>(std::max<int64_t>(number, 1) - 1));
  }

  void then_by(const Tensor& numbers) {
    const Tensor next = stable_argsort(numbers);
    order_ = order_.has_value() ? gather_numbers(scope_, const_data<int64_t>(*order_), next) : next;
  }

  void sort_by(bool first, bool second, bool key) {
    using Kernel = FoldKeys<Key>;
    const Tensor out = allocate(key_, {n_}, ScalarType::Long);
    const Tensor table =
        torch::stable::new_zeros(key_, {second ? int64_t{1} << second_log2_ : 0}, ScalarType::Int);
    launch(scope_, dim3(static_cast<unsigned>(ceil_div(n_, Kernel::kThreads))), Kernel::kThreads, 0,
           Kernel{first ? groups_.first : nullptr, groups_.first_below - 1,
                  second ? groups_.second : nullptr, second_log2_, mutable_data<int32_t>(table),
                  key ? const_data<Key>(key_) : nullptr,
                  order_.has_value() ? const_data<int64_t>(*order_) : nullptr, n_,
                  mutable_data<int64_t>(out)});
    then_by(out);
  }

  const DeviceScope& scope_;
  const RowGroups& groups_;
  const Tensor& key_;
  int64_t n_;
  int second_log2_;
  std::optional<Tensor> order_;  // so far
};

inline Tensor sort_list(const DeviceScope& scope, const Tensor& key, int threads) {
  const int64_t n = key.size(0);
  const Tensor order = allocate(key, {n}, ScalarType::Long);
  launch(scope, dim3(1), threads, SortList::shared_bytes(threads),
         SortList{const_data<int32_t>(key), static_cast<int>(n), mutable_data<int64_t>(order)});
  return order;
}

// Rows by `groups` and rising `key`, equal ones by rising row. N > 0.
inline Tensor sort_rows(const DeviceScope& scope, const RowGroups& groups,
                        const Tensor& key) {  // [N] int32 or int64
  const int64_t n = key.size(0);
  const bool narrow = key.scalar_type() == ScalarType::Int;
  const size_t room = scope.limits().shared_per_block;
  if (groups.one_list() && narrow && n <= SortList::kMostRows) {
    const auto threads = static_cast<int>(std::max<int64_t>(
        kWarp, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(n))) / SortList::kEach));
    if (SortList::shared_bytes(threads) <= room) {
      return sort_list(scope, key, threads);
    }
  }
  if (n <= SortRows<int64_t>::kMostRows &&
      SortRows<int64_t>::shared_bytes(n, 2 * n, groups.first != nullptr,
                                      groups.second != nullptr) <= room) {
    return narrow ? sort_in_one_block<int32_t>(scope, groups.first, groups.second, key)
                  : sort_in_one_block<int64_t>(scope, groups.first, groups.second, key);
  }
  return narrow ? LargeSort<int32_t>(scope, groups, key).order()
                : LargeSort<int64_t>(scope, groups, key).order();
}

}  // namespace tal_fast
