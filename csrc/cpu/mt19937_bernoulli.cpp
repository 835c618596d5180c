// SPDX-License-Identifier: Apache-2.0
#include "cpu/mt19937_bernoulli.h"

#include <cstring>

#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

constexpr int kLanes = kVectorBytes / 4;
using V = Bits32<kLanes>;
constexpr int64_t kWords = kMt19937Words;
constexpr int64_t kMiddle = 397;

inline V load_words(const uint32_t* at) {
  V words;
  std::memcpy(&words, at, sizeof words);
  return words;
}

template <typename W>
inline W twist(W high, W low, W middle) {
  const W mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
  return middle ^ (mixed >> 1) ^ ((W{} - (low & 1u)) & 0x9908b0dfu);
}

// Sets words [begin, end), each from the next one and from the one at `offset`. A vector at a time
// gives what one word at a time gives: that offset is further than a vector is long, and of the
// word behind, the old value is meant.
template <int64_t begin, int64_t end, int64_t offset>
inline void twist_words(uint32_t* words) {
  constexpr int64_t kVectors = (end - begin) / kLanes;
  for (int64_t v = 0; v < kVectors; ++v) {
    uint32_t* at = words + begin + v * kLanes;
    const V fresh = twist<V>(load_words(at), load_words(at + 1), load_words(at + offset));
    std::memcpy(at, &fresh, sizeof fresh);
  }
  for (int64_t i = begin + kVectors * kLanes; i < end; ++i) {
    words[i] = twist<uint32_t>(words[i], words[i + 1], words[i + offset]);
  }
}

inline void next_words(uint32_t* words) {
  twist_words<0, kWords - kMiddle, kMiddle>(words);
  twist_words<kWords - kMiddle, kWords - 1, kMiddle - kWords>(words);
  words[kWords - 1] = twist<uint32_t>(words[kWords - 1], words[0], words[kMiddle - 1]);
}

inline void temper(const uint32_t* words, uint32_t* drawn) {
  for (int64_t i = 0; i < kWords; ++i) {
    uint32_t y = words[i];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    drawn[i] = y ^ (y >> 18);
  }
}

// One element of the words first and second.
inline float variable(uint64_t first, uint64_t second, uint64_t threshold) {
  return ((first & 0x1fffffu) << 32 | second) < threshold ? 1.0F : 0.0F;
}

// `count` elements of 2 * count words.
inline void variables(const uint32_t* drawn, int64_t count, uint64_t threshold, float* values) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = variable(drawn[2 * i], drawn[2 * i + 1], threshold);
  }
}

}  // namespace

void mt19937_bernoulli(Mt19937& state, uint64_t threshold, int64_t count, float* values) {
  uint32_t drawn[kWords];
  temper(state.words, drawn);
  while (count > 0) {
    const int64_t whole = (kWords - state.next) / 2;
    const int64_t now = whole < count ? whole : count;
    variables(drawn + state.next, now, threshold, values);
    state.next += 2 * now;
    values += now;
    count -= now;
    if (count == 0) {
      return;
    }
    // After an odd number of draws an element takes the last word and the first of the next ones.
    const bool odd = state.next < kWords;
    const uint32_t last = drawn[kWords - 1];
    next_words(state.words);
    temper(state.words, drawn);
    state.next = 0;
    if (odd) {
      *values++ = variable(last, drawn[0], threshold);
      state.next = 1;
      --count;
    }
  }
}

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
