// SPDX-License-Identifier: Apache-2.0
// What a maximum over a range of rows is: which rows, and which of two values wins.
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace tal_fast {
namespace {

// Truncated toward zero, then clamped to [0, rows - 1].
template <typename Position>
TAL_FAST_HD int32_t pooled_row(Position position, int64_t rows) {
  // Compared before the conversion: a position need not fit into an integer.
  if (!(position > Position(0))) {
    return 0;
  }
  return static_cast<int32_t>(
      position >= static_cast<Position>(rows - 1) ? rows - 1 : static_cast<int64_t>(position));
}

}  // namespace
}  // namespace tal_fast
