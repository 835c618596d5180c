// SPDX-License-Identifier: Apache-2.0
// Kernels of dropout: one pass at the speed of copying. A thread has a few independent packs in
// flight, and a block lies within one block of random numbers, so that its threads share a key.
#pragma once

#include "cuda/platform.cuh"
#include "math/dropout.h"

namespace tal_fast {

// Where a block's elements are, and its random bits.
template <int kWidth>
struct DropoutElements {
  static constexpr int kThreads = 256;
  static constexpr int kTurns = kWidth > 4 ? 2 : 4;  // packs in flight, as registers allow
  static constexpr int64_t kPerBlock = int64_t{kThreads} * kWidth * kTurns;
  static_assert(kDropoutBlock % kPerBlock == 0);

  uint64_t seed;
  const int64_t* device_seed;  // [1], or null
  int64_t n;

  TAL_FAST_DEVICE DropoutKey key() const {
    const uint64_t more = device_seed != nullptr ? static_cast<uint64_t>(*device_seed) : 0;
    return dropout_key(seed + more, first_of_block() / kDropoutBlock);
  }
  TAL_FAST_DEVICE int64_t first_of_block() const {
    return static_cast<int64_t>(blockIdx.x) * kPerBlock;
  }
  TAL_FAST_DEVICE int64_t first(int turn) const {
    return first_of_block() + (int64_t{turn} * kThreads + threadIdx.x) * kWidth;
  }
  template <typename T>
  TAL_FAST_DEVICE Pack<T, kWidth> load(const T* source, int64_t i) const {
    if (i + kWidth <= n) {
      return load_pack<kWidth>(source + i);
    }
    Pack<T, kWidth> pack{};
    for (int j = 0; j < kWidth; ++j) {
      if (i + j < n) {
        pack[j] = source[i + j];
      }
    }
    return pack;
  }
  template <typename T>
  TAL_FAST_DEVICE void store(T* target, int64_t i, const Pack<T, kWidth>& pack) const {
    if (i + kWidth <= n) {
      store_pack<kWidth>(target + i, pack);
      return;
    }
    for (int j = 0; j < kWidth; ++j) {
      if (i + j < n) {
        target[i + j] = pack[j];
      }
    }
  }
};

// kWidth elements per access: kPackSize<T> where all tensors are aligned to 16 bytes, else 1.
template <typename T, int kWidth>
struct DropoutForward {
  static constexpr const char* kName = kWidth > 1 ? "dropout forward" : "dropout forward, general";
  using Elements = DropoutElements<kWidth>;
  static constexpr int kTurns = Elements::kTurns;
  using C = ComputeType<T>;
  static constexpr int kThreads = Elements::kThreads;
  static constexpr int kBlocks = 4;

  const T* x;         // [N]
  const T* residual;  // [N] added to the result, or null
  bool relu;          // max(x, 0) first
  uint64_t threshold;
  C scale;
  Elements elements;
  T* out;  // [N]

  TAL_FAST_DEVICE void operator()() const {
    const DropoutKey key = elements.key();
    Pack<T, kWidth> values[kTurns];
    Pack<T, kWidth> added[kTurns];
    for (int turn = 0; turn < kTurns; ++turn) {
      values[turn] = elements.load(x, elements.first(turn));
      if (residual != nullptr) {
        added[turn] = elements.load(residual, elements.first(turn));
      }
    }
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t i = elements.first(turn);
      const auto index = static_cast<uint32_t>(i % kDropoutBlock);
      Pack<T, kWidth> result;
      for (int j = 0; j < kWidth; ++j) {
        C value = widen(values[turn][j]);
        value = relu && value < C(0) ? C(0) : value;
        value =
            dropout_bits(key, index + static_cast<uint32_t>(j)) >= threshold ? value * scale : C(0);
        if (residual != nullptr) {
          value += widen(added[turn][j]);
        }
        result[j] = narrow<T>(value);
      }
      elements.store(out, i, result);
    }
  }
};

template <typename T, int kWidth>
struct DropoutBackward {
  static constexpr const char* kName =
      kWidth > 1 ? "dropout backward" : "dropout backward, general";
  using Elements = DropoutElements<kWidth>;
  static constexpr int kTurns = Elements::kTurns;
  using C = ComputeType<T>;
  static constexpr int kThreads = Elements::kThreads;
  static constexpr int kBlocks = 4;

  const T* grad;  // [N]
  const T* out;   // [N] the forward's result if it had relu, else null
  uint64_t threshold;
  C scale;
  Elements elements;
  T* grad_x;  // [N]

  TAL_FAST_DEVICE void operator()() const {
    const DropoutKey key = elements.key();
    Pack<T, kWidth> grads[kTurns];
    Pack<T, kWidth> outs[kTurns];
    for (int turn = 0; turn < kTurns; ++turn) {
      grads[turn] = elements.load(grad, elements.first(turn));
      if (out != nullptr) {
        outs[turn] = elements.load(out, elements.first(turn));
      }
    }
    for (int turn = 0; turn < kTurns; ++turn) {
      const int64_t i = elements.first(turn);
      const auto index = static_cast<uint32_t>(i % kDropoutBlock);
      Pack<T, kWidth> result;
      for (int j = 0; j < kWidth; ++j) {
        // After relu the result itself tells which elements passed both.
        const bool keep = out != nullptr
                              ? widen(outs[turn][j]) > C(0)
                              : dropout_bits(key, index + static_cast<uint32_t>(j)) >= threshold;
        result[j] = narrow<T>(keep ? widen(grads[turn][j]) * scale : C(0));
      }
      elements.store(grad_x, i, result);
    }
  }
};

}  // namespace tal_fast
