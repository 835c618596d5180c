// SPDX-License-Identifier: Apache-2.0
// The launcher of row_order.cuh.
#pragma once

#include <algorithm>
#include <array>

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

// Rows by rising `first`, `second` and `key`, equal ones by rising row. N > 0.
inline Tensor sort_rows(const DeviceScope& scope,
                        const int64_t* first,   // [N] or null
                        const int64_t* second,  // [N] or null
                        const Tensor& key) {    // [N] int32 or int64
  const int64_t n = key.size(0);
  const bool narrow = key.scalar_type() == ScalarType::Int;
  if (n <= SortRows<int64_t>::kMostRows &&
      SortRows<int64_t>::shared_bytes(n, 2 * n, first != nullptr, second != nullptr) <=
          scope.limits().shared_per_block) {
    return narrow ? sort_in_one_block<int32_t>(scope, first, second, key)
                  : sort_in_one_block<int64_t>(scope, first, second, key);
  }
  Tensor order = stable_argsort(key);
  for (const int64_t* numbers : {second, first}) {
    if (numbers != nullptr) {
      const Tensor next = stable_argsort(gather_numbers(scope, numbers, order));
      order = gather_numbers(scope, const_data<int64_t>(order), next);
    }
  }
  return order;
}

}  // namespace tal_fast
