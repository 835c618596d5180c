// SPDX-License-Identifier: Apache-2.0
// The random numbers of torch's CPU generator, MT19937 (Matsumoto and Nishimura, TOMACS 1998), a
// vector of the state at a time, and the Bernoulli variables that torch makes of them.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace tal_fast::cpu {

constexpr int64_t kMt19937Words = 624;

// Words [next, 624) of `words` are still to be drawn from; 624: all are used up.
struct Mt19937 {
  uint32_t words[kMt19937Words];
  int64_t next;
};

// clang-format off
TAL_FAST_FOR_EACH_ISA(

// An element is 1 when its 53 random bits, the lower ones of two words of which the first is the
// higher, are below `threshold` = p * 2^53, rounded up; else 0. The state moves on by two words
// per element.
void mt19937_bernoulli(Mt19937& state, uint64_t threshold, int64_t count, float* values);
)
// clang-format on

}  // namespace tal_fast::cpu
