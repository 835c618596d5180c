// SPDX-License-Identifier: Apache-2.0
// Dropout whose mask is a function of (seed, element), so that it is never stored.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "math/half.h"

namespace tal_fast::cpu {

// An element is dropped when its 32 random bits are below `threshold` = p * 2^32; kept ones are
// multiplied by `scale` = 1 / (1 - p). Each function works on a range of elements; the mask depends
// on neither the range nor the instruction set.
// clang-format off
TAL_FAST_FOR_EACH_ISA(

template <typename T>
void dropout_forward(const T* x,           // [N]
                     const T* residual,    // [N] added to the result, or null
                     bool relu,            // max(x, 0) first
                     uint64_t seed, uint64_t threshold, ComputeType<T> scale,
                     int64_t begin, int64_t end,
                     T* out);              // [N]

template <typename T>
void dropout_backward(const T* grad,    // [N]
                      const T* out,     // [N] the forward's result if it had relu, else null
                      uint64_t seed, uint64_t threshold, ComputeType<T> scale,
                      int64_t begin, int64_t end,
                      T* grad_x);       // [N]
)
// clang-format on

}  // namespace tal_fast::cpu
