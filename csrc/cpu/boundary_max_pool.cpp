// SPDX-License-Identifier: Apache-2.0
#include "cpu/boundary_max_pool.h"

#include "cpu/buffer.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Vectors per group: enough independent comparisons to hide how long each takes.
constexpr int kVectors = 4;
// Segments whose results are collected before they are transposed into the output.
constexpr int64_t kSegments = 64;

// Lane-wise integers of the size of T: what comparisons of vectors of T give.
template <typename T>
struct IndexOf {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};

// The rows [first, last] of the group, its channels contiguous; lanes without a channel stay as
// they are.
template <typename Stored, typename T = ComputeType<Stored>>
void collect(const void* features, BoundaryPoolStrides strides, int64_t count, int64_t first,
             int64_t last, int64_t lanes, T* rows) {  // [last - first + 1, lanes]
  const Stored* stored = static_cast<const Stored*>(features);
  if (strides.row == 1) {
    transpose(stored + first, strides.channel, count, last - first + 1, rows, lanes);
    return;
  }
  for (int64_t t = first; t <= last; ++t) {
    const Stored* source = stored + t * strides.row;
    T* __restrict__ target = rows + (t - first) * lanes;
    if (strides.channel == 1) {
      for (int64_t c = 0; c < count; ++c) {
        target[c] = widen(source[c]);
      }
    } else {
      for (int64_t c = 0; c < count; ++c) {
        target[c] = widen(source[c * strides.channel]);
      }
    }
  }
}

// A NaN beats every number and, like every other maximum, is beaten by none that comes later.
template <int kCount, bool kWithArgmax, typename T>
inline void range_max(const T* rows, int64_t first, int64_t last, T* maxima,
                      int32_t* argmax) {  // [kCount * kFullLanes]
  constexpr int kLanes = kFullLanes<T>;
  constexpr int64_t kStride = kCount * kLanes;
  using Index = Vector<typename IndexOf<T>::type, kLanes>;
  Vector<T, kLanes> best[kCount];
  Index where[kCount];
  for (int v = 0; v < kCount; ++v) {
    best[v] = load<kLanes>(rows + first * kStride + v * kLanes);
    where[v] = Index{} + static_cast<typename IndexOf<T>::type>(first);
  }
  for (int64_t t = first + 1; t <= last; ++t) {
    const Index here = Index{} + static_cast<typename IndexOf<T>::type>(t);
    for (int v = 0; v < kCount; ++v) {
      const auto value = load<kLanes>(rows + t * kStride + v * kLanes);
      // !(value <= best) is true for a NaN on either side; best == best rules out a NaN in best.
      const Index wins = ~(value <= best[v]) & (best[v] == best[v]);
      best[v] = wins ? value : best[v];
      if constexpr (kWithArgmax) {
        where[v] = wins ? here : where[v];
      }
    }
  }
  for (int v = 0; v < kCount; ++v) {
    store<kLanes, T>(maxima + v * kLanes, best[v]);
    if constexpr (kWithArgmax) {
      const auto narrowed = __builtin_convertvector(where[v], Vector<int32_t, kLanes>);
      std::memcpy(argmax + v * kLanes, &narrowed, sizeof(narrowed));
    }
  }
}

// What depends on the stored type: rows in, maxima out. All else is compiled for the compute type.
template <typename T>
struct StoredAccess {
  void (*collect)(const void* features, BoundaryPoolStrides strides, int64_t count, int64_t first,
                  int64_t last, int64_t lanes, T* rows);
  void (*put)(const T* maxima, int64_t lanes, int64_t segments, int64_t count, void* out,
              int64_t offset, int64_t out_stride);
};

// maxima [segments, lanes] to `offset` of out and behind.
template <typename Stored, typename T = ComputeType<Stored>>
void put_maxima(const T* maxima, int64_t lanes, int64_t segments, int64_t count, void* out,
                int64_t offset, int64_t out_stride) {
  transpose(maxima, lanes, segments, count, static_cast<Stored*>(out) + offset, out_stride);
}

template <typename Stored, typename T = ComputeType<Stored>>
constexpr StoredAccess<T> kStoredAccess{&collect<Stored, T>, &put_maxima<Stored, T>};

template <int kCount, typename T>
void pool(const StoredAccess<T>& access, const void* features, BoundaryPoolStrides strides,
          int64_t count, const int32_t* ranges, int64_t segments, void* out, int32_t* argmax) {
  constexpr int64_t kStride = kCount * kFullLanes<T>;
  int64_t first = ranges[0];
  int64_t last = ranges[1];
  for (int64_t k = 1; k < segments; ++k) {
    first = ranges[4 * k] < first ? ranges[4 * k] : first;
    last = ranges[4 * k + 1] > last ? ranges[4 * k + 1] : last;
  }
  const int64_t size = (last - first + 1) * kStride;
  Buffer<T> rows(size);
  for (int64_t i = 0; count < kStride && i < size; ++i) {
    rows.data()[i] = T(0);
  }
  access.collect(features, strides, count, first, last, kStride, rows.data());

  T maxima[kSegments * kStride];
  int32_t where[kSegments * kStride];
  for (int64_t begin = 0; begin < segments; begin += kSegments) {
    const int64_t some = kSegments < segments - begin ? kSegments : segments - begin;
    for (int64_t k = 0; k < some; ++k) {
      const int32_t* range = ranges + 4 * (begin + k);
      if (argmax == nullptr) {
        range_max<kCount, false>(rows.data(), range[0] - first, range[1] - first,
                                 maxima + k * kStride, where);
      } else {
        range_max<kCount, true>(rows.data(), range[0] - first, range[1] - first,
                                maxima + k * kStride, where + k * kStride);
      }
    }
    access.put(maxima, kStride, some, count, out, begin, segments);
    if (argmax != nullptr) {
      const auto shift = static_cast<int32_t>(first);
      for (int64_t i = 0; i < some * kStride; ++i) {
        where[i] += shift;
      }
      transpose(where, kStride, some, count, argmax + begin, segments);
    }
  }
}

}  // namespace

template <typename Stored>
int64_t boundary_max_pool_group() {
  return kVectors * kFullLanes<ComputeType<Stored>>;
}

template <typename Stored>
void boundary_max_pool_forward(const Stored* features, BoundaryPoolStrides strides, int64_t count,
                               const int32_t* ranges, int64_t segments, Stored* out,
                               int32_t* argmax) {
  using T = ComputeType<Stored>;
  constexpr int64_t kLanes = kFullLanes<T>;
  for (int64_t c = 0; c < count;) {
    const int64_t left = count - c;
    const int64_t width = left > kLanes ? kVectors * kLanes : kLanes;
    const int64_t some = left < width ? left : width;
    const auto call = left > kLanes ? &pool<kVectors, T> : &pool<1, T>;
    call(kStoredAccess<Stored>, features + c * strides.channel, strides, some, ranges, segments,
         out + c * segments, argmax == nullptr ? nullptr : argmax + c * segments);
    c += some;
  }
}

template <typename Stored>
bool boundary_max_pool_backward(const Stored* grad, const int32_t* argmax, int64_t channels,
                                int64_t segments, int64_t rows, Stored* grad_features) {
  using T = ComputeType<Stored>;
  Buffer<T> buffer(rows);
  T* __restrict__ sums = buffer.data();
  bool inside = true;
  for (int64_t c = 0; c < channels; ++c) {
    const Stored* __restrict__ part = grad + c * segments;
    const int32_t* __restrict__ where = argmax + c * segments;
    Stored* __restrict__ target = grad_features + c * rows;
    for (int64_t t = 0; t < rows; ++t) {
      sums[t] = T(0);
    }
    for (int64_t k = 0; k < segments; ++k) {
      if (where[k] < 0 || where[k] >= rows) {
        inside = false;
        break;
      }
      sums[where[k]] += widen(part[k]);
    }
    for (int64_t t = 0; t < rows; ++t) {
      target[t] = narrow<Stored>(sums[t]);
    }
  }
  return inside;
}

#define TAL_FAST_INSTANTIATE(Stored)                                                           \
  template int64_t boundary_max_pool_group<Stored>();                                          \
  template void boundary_max_pool_forward<Stored>(const Stored*, BoundaryPoolStrides, int64_t, \
                                                  const int32_t*, int64_t, Stored*, int32_t*); \
  template bool boundary_max_pool_backward<Stored>(const Stored*, const int32_t*, int64_t,     \
                                                   int64_t, int64_t, Stored*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
