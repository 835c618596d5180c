// SPDX-License-Identifier: Apache-2.0
// Copies of rows into batches, widened on the way.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "math/half.h"

namespace tal_fast::cpu {

// clang-format off
TAL_FAST_FOR_EACH_ISA(

template <typename In, typename Out>
void gather_rows(const In* source,   // [count]
                 int64_t count,
                 Out* target);       // [count]

// Channels of rows from rows of channels.
template <typename In, typename Out>
void gather_channels(const In* source,       // [rows, channels]
                     int64_t rows, int64_t channels,
                     Out* target,            // [channels, rows], target_stride apart
                     int64_t target_stride);
)
// clang-format on

// What can be gathered: copies, and types that hold every value of the other.
#define TAL_FAST_FOR_EACH_WIDENING(apply)                                                     \
  apply(double, double) apply(float, float) apply(float, double) apply(Half, Half)            \
      apply(Half, float) apply(Half, double) apply(BFloat16, BFloat16) apply(BFloat16, float) \
          apply(BFloat16, double)

}  // namespace tal_fast::cpu
