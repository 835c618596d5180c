// SPDX-License-Identifier: Apache-2.0
// What ragged_index checks on every device.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/tensor_checks.h"

namespace tal_fast {

// Returns the number of items, the sum of the counts.
inline int64_t check_ragged_index(const std::vector<int64_t>& counts) {
  int64_t items = 0;
  for (const int64_t count : counts) {
    TAL_FAST_CHECK(count >= 0, "ragged_index: expected counts >= 0, got ", count);
    items += count;
  }
  return items;
}

}  // namespace tal_fast
