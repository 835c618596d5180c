// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as the instruction set that the including file is compiled for, on the vector
// extension that GCC and Clang share: arithmetic operators work, and there is no second copy of a
// kernel in intrinsics. In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "math/half.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tal_fast::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Lanes of a full vector of C (float or double).
template <typename C>
constexpr int kFullLanes = kVectorBytes / static_cast<int>(sizeof(C));

template <typename C, int kLanes>
struct VectorOf {
  typedef C type __attribute__((vector_size(kLanes * sizeof(C))));
};
template <typename C, int kLanes>
using Vector = typename VectorOf<C, kLanes>::type;

template <int kLanes>
using Bits16 = typename VectorOf<uint16_t, kLanes>::type;
template <int kLanes>
using Bits32 = typename VectorOf<uint32_t, kLanes>::type;

template <int kLanes>
inline Vector<float, kLanes> widen_lanes(Bits16<kLanes> bits, BFloat16 /*type*/) {
  return (Vector<float, kLanes>)(__builtin_convertvector(bits, Bits32<kLanes>) << 16);
}

// The vector forms of widen and narrow in half.h.
template <int kLanes>
inline Vector<float, kLanes> widen_lanes(Bits16<kLanes> bits, Half /*type*/) {
  const auto wide = __builtin_convertvector(bits, Bits32<kLanes>);
  const Bits32<kLanes> rest = (wide & 0x7fffu) << 13;
  const auto scaled = (Bits32<kLanes>)((Vector<float, kLanes>)rest * 0x1p112f);
  const Bits32<kLanes> special = rest | 0x7f800000u;
  const Bits32<kLanes> magnitude = (wide & 0x7c00u) == 0x7c00u ? special : scaled;
  return (Vector<float, kLanes>)(magnitude | ((wide & 0x8000u) << 16));
}

template <int kLanes>
inline Bits16<kLanes> narrow_lanes(Vector<float, kLanes> value, BFloat16 /*type*/) {
  const auto bits = (Bits32<kLanes>)value;
  const Bits32<kLanes> rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits32<kLanes> nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded,
                                 Bits16<kLanes>);
}

template <int kLanes>
inline Bits16<kLanes> narrow_lanes(Vector<float, kLanes> value, Half /*type*/) {
  const auto bits = (Bits32<kLanes>)value;
  const Bits32<kLanes> magnitude = bits & 0x7fffffffu;
  const Bits32<kLanes> normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Bits32<kLanes> tiny =
      (Bits32<kLanes>)((Vector<float, kLanes>)magnitude + 0.5f) - 0x3f000000u;
  Bits32<kLanes> result = magnitude < 0x38800000u ? tiny : normal;
  result = magnitude >= 0x477ff000u ? Bits32<kLanes>{} + 0x7c00u : result;
  result = magnitude > 0x7f800000u ? Bits32<kLanes>{} + 0x7e00u : result;
  return __builtin_convertvector(result | ((bits >> 16) & 0x8000u), Bits16<kLanes>);
}

#if defined(__AVX2__)
// GCC 12 builds __builtin_convertvector from several shuffles.
template <>
[[maybe_unused]] inline Vector<float, 8> widen_lanes<8>(Bits16<8> bits, BFloat16 /*type*/) {
  return (Vector<float, 8>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
}
#endif
#if defined(__F16C__)
template <>
[[maybe_unused]] inline Vector<float, 8> widen_lanes<8>(Bits16<8> bits, Half /*type*/) {
  return (Vector<float, 8>)_mm256_cvtph_ps((__m128i)bits);
}
template <>
[[maybe_unused]] inline Bits16<8> narrow_lanes<8>(Vector<float, 8> value, Half /*type*/) {
  return (Bits16<8>)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
}
#endif
#if defined(__AVX512F__)
// The zero-masked forms compile to the plain instructions; GCC 12 warns about the plain ones.
template <>
[[maybe_unused]] inline Vector<float, 16> widen_lanes<16>(Bits16<16> bits, BFloat16 /*type*/) {
  return (Vector<float, 16>)_mm512_maskz_slli_epi32(
      0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)bits), 16);
}
template <>
[[maybe_unused]] inline Vector<float, 16> widen_lanes<16>(Bits16<16> bits, Half /*type*/) {
  return (Vector<float, 16>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)bits);
}
template <>
[[maybe_unused]] inline Bits16<16> narrow_lanes<16>(Vector<float, 16> value, Half /*type*/) {
  return (Bits16<16>)_mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT);
}
#endif

// Loads kLanes values of T from unaligned memory, widened to the compute type.
template <int kLanes, typename T>
inline Vector<ComputeType<T>, kLanes> load(const T* source) {
  if constexpr (sizeof(T) == sizeof(ComputeType<T>)) {
    Vector<ComputeType<T>, kLanes> result;
    std::memcpy(&result, source, sizeof(result));
    return result;
  } else {
    Bits16<kLanes> bits;
    std::memcpy(&bits, source, sizeof(bits));
    return widen_lanes<kLanes>(bits, T{});
  }
}

// Loads the first `count` < kLanes values; the other lanes are zero.
template <int kLanes, typename T>
inline Vector<ComputeType<T>, kLanes> load_partial(const T* source, int64_t count) {
  Vector<ComputeType<T>, kLanes> result{};
  for (int64_t i = 0; i < count; ++i) {
    result[i] = widen(source[i]);
  }
  return result;
}

// Stores kLanes values, rounded to T.
template <int kLanes, typename T>
inline void store(T* target, Vector<ComputeType<T>, kLanes> value) {
  if constexpr (sizeof(T) == sizeof(ComputeType<T>)) {
    std::memcpy(target, &value, sizeof(value));
  } else {
    const Bits16<kLanes> bits = narrow_lanes<kLanes>(value, T{});
    std::memcpy(target, &bits, sizeof(bits));
  }
}

template <int kLanes, typename T>
inline void store_partial(T* target, Vector<ComputeType<T>, kLanes> value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    target[i] = narrow<T>(value[i]);
  }
}

// A row of T to one of the compute type, and back.
template <typename T, typename C = ComputeType<T>>
inline void widen_row(const T* source, int64_t count, C* target) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store<kLanes, C>(target + i, load<kLanes>(source + i));
  }
  for (; i < count; ++i) {
    target[i] = widen(source[i]);
  }
}

template <typename T, typename C = ComputeType<T>>
inline void narrow_row(const C* source, int64_t count, T* target) {
  constexpr int kLanes = kFullLanes<C>;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store<kLanes>(target + i, load<kLanes>(source + i));
  }
  for (; i < count; ++i) {
    target[i] = narrow<T>(source[i]);
  }
}

template <typename C, int kLanes>
inline Vector<C, kLanes> broadcast(C value) {
  return value - Vector<C, kLanes>{};
}

template <int kStep, typename V, std::size_t... kLane>
inline V swap_lanes(V v, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(v, v, (static_cast<int>(kLane) ^ kStep)...);
}

// In every lane the combination of the lanes of its group (kGroup neighbours, a power of two).
template <typename C, int kLanes, int kGroup, int kStep = 1, typename Combine>
inline Vector<C, kLanes> over_group(Vector<C, kLanes> v, Combine&& combine) {
  if constexpr (kStep < kGroup) {
    v = combine(v, swap_lanes<kStep>(v, std::make_index_sequence<kLanes>{}));
    return over_group<C, kLanes, kGroup, 2 * kStep>(v, combine);
  } else {
    return v;
  }
}

template <typename C, int kLanes, int kGroup>
inline Vector<C, kLanes> group_sum(Vector<C, kLanes> v) {
  return over_group<C, kLanes, kGroup>(v, [](auto a, auto b) { return a + b; });
}

// Lane that a fold reads: x and y hold segments of kSegment lanes, one segment per sum still to be
// finished. The fold adds each segment's upper half to its lower half, x's results first.
template <int kLanes, int kSegment>
constexpr int fold_lane(int lane, bool upper) {
  const int half = kSegment / 2;
  const int within = lane % (kLanes / 2);
  const int source = lane < kLanes / 2 ? 0 : kLanes;
  return source + (within / half) * kSegment + within % half + (upper ? half : 0);
}

template <typename C, int kLanes, int kSegment, std::size_t... kLane>
inline Vector<C, kLanes> fold(Vector<C, kLanes> x, Vector<C, kLanes> y,
                              std::index_sequence<kLane...>) {
  return __builtin_shufflevector(x, y, fold_lane<kLanes, kSegment>(kLane, false)...) +
         __builtin_shufflevector(x, y, fold_lane<kLanes, kSegment>(kLane, true)...);
}

// One fold of two vectors that hold kSums unfinished sums each.
template <int kSums, typename C, int kLanes>
inline Vector<C, kLanes> fold(Vector<C, kLanes> x, Vector<C, kLanes> y) {
  return fold<C, kLanes, kLanes / kSums>(x, y, std::make_index_sequence<kLanes>{});
}

// Finishes the sums of kLanes / kSums vectors that hold kSums unfinished sums each, in their order.
// kSums = 1 sums the lanes of kLanes vectors: three instructions per sum, where one horizontal sum
// at a time takes eight. The order of additions is fixed.
template <typename C, int kLanes, int kSums, int kCount = kLanes / kSums>
inline Vector<C, kLanes> finish_sums(const C* vectors) {  // [kCount, kLanes]
  if constexpr (kCount == 1) {
    return load<kLanes>(vectors);
  } else {
    constexpr int kHalf = kCount / 2;
    return fold<kHalf * kSums, C, kLanes>(
        finish_sums<C, kLanes, kSums, kHalf>(vectors),
        finish_sums<C, kLanes, kSums, kHalf>(vectors + kHalf * kLanes));
  }
}

}  // namespace
}  // namespace tal_fast::cpu
