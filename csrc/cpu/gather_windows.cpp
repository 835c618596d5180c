// SPDX-License-Identifier: Apache-2.0
#include "cpu/gather_windows.h"

#include <cstring>
#include <type_traits>

#include "cpu/simd.h"
#include "cpu/transpose.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {

template <typename In, typename Out>
void gather_rows(const In* __restrict__ source, int64_t count, Out* __restrict__ target) {
  if constexpr (std::is_same_v<In, Out>) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(In));
    return;
  }
  int64_t i = 0;
  if constexpr (std::is_same_v<Out, ComputeType<In>>) {
    constexpr int kLanes = kFullLanes<Out>;
    for (; i + kLanes <= count; i += kLanes) {
      store<kLanes>(target + i, load<kLanes>(source + i));
    }
  }
  for (; i < count; ++i) {
    target[i] = converted<Out>(widen(source[i]));
  }
}

template <typename In, typename Out>
void gather_channels(const In* source, int64_t rows, int64_t channels, Out* target,
                     int64_t target_stride) {
  // Both sides of a block stay in the second-level cache while their lines fill.
  constexpr int64_t kRows = 64;
  constexpr int64_t kChannels = 128;
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t some_rows = kRows < rows - row ? kRows : rows - row;
    for (int64_t c = 0; c < channels; c += kChannels) {
      const int64_t some = kChannels < channels - c ? kChannels : channels - c;
      const In* from = source + row * channels + c;
      Out* to = target + c * target_stride + row;
      if constexpr (std::is_same_v<In, Out> || std::is_same_v<Out, ComputeType<In>>) {
        transpose(from, channels, some_rows, some, to, target_stride);
      } else {
        for (int64_t k = 0; k < some; ++k) {
          for (int64_t i = 0; i < some_rows; ++i) {
            to[k * target_stride + i] = converted<Out>(widen(from[i * channels + k]));
          }
        }
      }
    }
  }
}

#define TAL_FAST_INSTANTIATE(In, Out)                           \
  template void gather_rows<In, Out>(const In*, int64_t, Out*); \
  template void gather_channels<In, Out>(const In*, int64_t, int64_t, Out*, int64_t);
TAL_FAST_FOR_EACH_WIDENING(TAL_FAST_INSTANTIATE)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
