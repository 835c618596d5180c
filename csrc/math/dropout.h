// SPDX-License-Identifier: Apache-2.0
// The random numbers of dropout: a function of (seed, element), the same on every device.
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>

#include "math/half.h"

namespace tal_fast {
namespace {

// Elements that share a key: the index within a block stays a 32-bit lane.
constexpr int64_t kDropoutBlock = int64_t{1} << 20;

struct DropoutKey {
  uint32_t first;
  uint32_t second;
};

// splitmix64 (Steele, Lea, Flood 2014): turns (seed, block) into 64 well-mixed bits.
[[maybe_unused]] TAL_FAST_HD DropoutKey dropout_key(uint64_t seed, int64_t block) {
  uint64_t z = seed + (static_cast<uint64_t>(block) + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return {static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32)};
}

// Two keyed rounds of the 32-bit MurmurHash3 finaliser (Appleby): integer arithmetic only, so it
// vectorises and gives the same bits everywhere.
[[maybe_unused]] TAL_FAST_HD uint32_t dropout_mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x85ebca6bu;
  h ^= h >> 13;
  h *= 0xc2b2ae35u;
  return h ^ (h >> 16);
}

// The bits of the element at `index` in its block; it is dropped if they are below p * 2^32.
[[maybe_unused]] TAL_FAST_HD uint32_t dropout_bits(DropoutKey key, uint32_t index) {
  return dropout_mix(dropout_mix(index ^ key.first) + key.second);
}

}  // namespace
}  // namespace tal_fast
