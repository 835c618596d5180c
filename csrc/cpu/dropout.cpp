// SPDX-License-Identifier: Apache-2.0
#include "cpu/dropout.h"

#include "math/dropout.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Calls body(key, element, index in its block) over a range, block by block.
template <typename Body>
inline void for_each_block(uint64_t seed, int64_t begin, int64_t end, Body&& body) {
  while (begin < end) {
    const int64_t block = begin / kDropoutBlock;
    const int64_t next = (block + 1) * kDropoutBlock;
    const int64_t stop = end < next ? end : next;
    body(dropout_key(seed, block), block * kDropoutBlock, begin, stop);
    begin = stop;
  }
}

template <bool relu, bool add, typename T>
void forward(const T* __restrict__ x, const T* __restrict__ residual, uint64_t seed,
             uint32_t threshold, ComputeType<T> scale, int64_t begin, int64_t end,
             T* __restrict__ out) {
  using C = ComputeType<T>;
  for_each_block(seed, begin, end, [&](DropoutKey key, int64_t base, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const bool keep = dropout_bits(key, static_cast<uint32_t>(i - base)) >= threshold;
      C value = widen(x[i]);
      if constexpr (relu) {
        value = value < C(0) ? C(0) : value;
      }
      value = keep ? value * scale : C(0);
      if constexpr (add) {
        value += widen(residual[i]);
      }
      out[i] = narrow<T>(value);
    }
  });
}

// p = 1 has the threshold 2^32, which no 32 bits reach: everything is dropped.
constexpr uint64_t kAll = uint64_t{1} << 32;

}  // namespace

template <typename T>
void dropout_forward(const T* x, const T* residual, bool relu, uint64_t seed, uint64_t threshold,
                     ComputeType<T> scale, int64_t begin, int64_t end, T* out) {
  if (threshold >= kAll) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = residual != nullptr ? residual[i] : T{};
    }
    return;
  }
  const auto bits = static_cast<uint32_t>(threshold);
  if (residual != nullptr) {
    forward<false, true>(x, residual, seed, bits, scale, begin, end, out);
  } else if (relu) {
    forward<true, false>(x, residual, seed, bits, scale, begin, end, out);
  } else {
    forward<false, false>(x, residual, seed, bits, scale, begin, end, out);
  }
}

template <typename T>
void dropout_backward(const T* __restrict__ grad, const T* __restrict__ out, uint64_t seed,
                      uint64_t threshold, ComputeType<T> scale, int64_t begin, int64_t end,
                      T* __restrict__ grad_x) {
  using C = ComputeType<T>;
  if (threshold >= kAll) {
    for (int64_t i = begin; i < end; ++i) {
      grad_x[i] = T{};
    }
    return;
  }
  if (out != nullptr) {
    // After relu the result itself tells which elements passed both.
    for (int64_t i = begin; i < end; ++i) {
      grad_x[i] = narrow<T>(widen(out[i]) > C(0) ? widen(grad[i]) * scale : C(0));
    }
    return;
  }
  const auto bits = static_cast<uint32_t>(threshold);
  for_each_block(seed, begin, end, [&](DropoutKey key, int64_t base, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const bool keep = dropout_bits(key, static_cast<uint32_t>(i - base)) >= bits;
      grad_x[i] = narrow<T>(keep ? widen(grad[i]) * scale : C(0));
    }
  });
}

#define TAL_FAST_INSTANTIATE(T)                                                                  \
  template void dropout_forward<T>(const T*, const T*, bool, uint64_t, uint64_t, ComputeType<T>, \
                                   int64_t, int64_t, T*);                                        \
  template void dropout_backward<T>(const T*, const T*, uint64_t, uint64_t, ComputeType<T>,      \
                                    int64_t, int64_t, T*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
