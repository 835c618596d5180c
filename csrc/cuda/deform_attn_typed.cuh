// SPDX-License-Identifier: Apache-2.0
// What the kernels of deformable attention share where nothing about the layout is left to ask
// while they run: samples of known dtypes, and rows that are whole aligned packs.
#pragma once

#include "cuda/deform_attn_samples.cuh"

namespace tal_fast {

// Softmax, and what a lane has of it: exp(logit - highest) of its first sample.
struct LaneSoftmax {
  float highest;
  float sum;
  float own;
};

// ---- samples of known dtypes --------------------------------------------------------------------
// A source gives, for the queries of a block and one head, what a lane reads of a sample: the bits
// as they are, which are converted where they are used. A conversion behind each load would wait
// for one load after the other, and a load one query ahead would be waited for at once.

// Locations and reference points are float32: no op takes less, and float64 is for the general
// kernels.

template <typename Weight>
struct TypedGivenSamples {
  static constexpr bool kFused = false;
  static constexpr bool kTyped = true;

  const float* locations;  // [B, Q, H, L, P]
  const Weight* weights;   // [B, Q, H, L, P]

  struct Raw {
    float location{};
    Weight weight{};
  };

  // Where a lane is. Counted in 32 bits: a pointer that moves takes more instructions.
  struct Stream {
    const float* location;
    const Weight* weight;
    int at;
    int to_query;  // from the last sample of the lane in a query to its first one in the next

    template <int kLanes>
    TAL_FAST_DEVICE void step(bool last) {
      at += last ? to_query : kLanes;
    }
    TAL_FAST_DEVICE Raw fetch(int) const { return {read(location + at), read(weight + at)}; }
  };

  // At sample k of query q of batch element b and head h; `queries` lie between two of a lane, and
  // `rounds` are behind it when it goes from one to the next.
  TAL_FAST_DEVICE Stream stream(const DeformAttnSizes& sizes, int64_t b, int64_t q, int64_t h,
                                int k, int queries, int rounds) const {
    const int64_t at = sizes.unit(b, q, h) * sizes.samples + k;
    const int stride = static_cast<int>(sizes.heads) * sizes.samples;
    return {pinned(locations + at), pinned(weights + at), 0, pinned(queries * stride - rounds)};
  }
  template <int kLanes, bool kOnce>
  TAL_FAST_DEVICE LaneSoftmax softmax(const Stream&, const Raw&, int, int) const {
    return {};
  }
  // As GivenSamples has it.
  TAL_FAST_DEVICE QuerySamples query(const DeformAttnSizes& sizes, int64_t b, int64_t q,
                                     int64_t h) const {
    const int64_t first = sizes.unit(b, q, h) * sizes.samples;
    return {first, first, 0};
  }
  TAL_FAST_DEVICE Raw fetch(const QuerySamples& query, int k, int) const {
    return {read(locations + query.offsets + k), read(weights + query.logits + k)};
  }
  TAL_FAST_DEVICE float weight(const Raw& raw, const Softmax<float>&) const {
    return widen(raw.weight);
  }
  TAL_FAST_DEVICE float location(const Raw& raw, float) const { return raw.location; }
  template <bool kOnce>
  TAL_FAST_DEVICE float weight(const Raw& raw, const LaneSoftmax&) const {
    return widen(raw.weight);
  }
};

template <typename Projected>
struct TypedProjectedSamples {
  static constexpr bool kFused = true;

  const Projected* offsets;  // as ProjectedSamples has them
  int64_t offsets_batch_stride, offsets_query_stride;
  const Projected* logits;
  int64_t logits_batch_stride, logits_query_stride;
  const float* reference;
  int64_t reference_batch_stride, reference_query_stride;
  int components;
  float part;

  struct Raw {
    Projected offset{};
    Projected logit{};
    float centre{};
    float width{};
  };

  struct Stream {
    const Projected* offset;
    const Projected* logit;
    const float* reference;  // of the query's first level
    int offset_at, logit_at, reference_at;
    int offset_to_query, logit_to_query, reference_to_query;
    int components;

    template <int kLanes>
    TAL_FAST_DEVICE void step(bool last) {
      offset_at += last ? offset_to_query : kLanes;
      logit_at += last ? logit_to_query : kLanes;
      reference_at += last ? reference_to_query : 0;
    }
    TAL_FAST_DEVICE Raw fetch(int level) const {
      const float* at = reference + (reference_at + level * components);
      return {read(offset + offset_at), read(logit + logit_at), read(at),
              components == 2 ? read(at + 1) : 0.0f};
    }
    // Of the lane's next sample but k.
    TAL_FAST_DEVICE float logit_behind(int k) const { return widen(read(logit + (logit_at + k))); }
  };

  TAL_FAST_DEVICE Stream stream(const DeformAttnSizes& sizes, int64_t b, int64_t q, int64_t h,
                                int k, int queries, int rounds) const {
    const int64_t sample = h * sizes.samples + k;
    return {pinned(offsets + (b * offsets_batch_stride + q * offsets_query_stride + sample)),
            pinned(logits + (b * logits_batch_stride + q * logits_query_stride + sample)),
            pinned(reference + (b * reference_batch_stride + q * reference_query_stride)),
            0,
            0,
            0,
            queries * static_cast<int>(offsets_query_stride) - rounds,
            queries * static_cast<int>(logits_query_stride) - rounds,
            queries * static_cast<int>(reference_query_stride),
            components};
  }
  // The steps of ProjectedSamples::softmax, whose bits they have. `samples` is 0 without a query.
  template <int kLanes, bool kOnce>
  TAL_FAST_DEVICE LaneSoftmax softmax(const Stream& stream, const Raw& own, int lane,
                                      int samples) const {
    // The exponential of -INFINITY is 0, and where there is nothing else the sum is NaN anyway.
    const float logit = lane < samples ? widen(own.logit) : -INFINITY;
    float highest = logit;
    if constexpr (!kOnce) {
      for (int k = kLanes; lane + k < samples; k += kLanes) {
        highest = fmaxf(highest, stream.logit_behind(k));
      }
    }
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, offset));
    }
    const float exponential = softmax_exp(logit - highest);
    float sum = exponential;
    if constexpr (!kOnce) {
      for (int k = kLanes; lane + k < samples; k += kLanes) {
        sum += softmax_exp(stream.logit_behind(k) - highest);
      }
    }
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    return {highest, sum, exponential};
  }
  TAL_FAST_DEVICE float location(const Raw& raw, float length) const {
    const float offset = widen(raw.offset);
    if (components == 1) {  // hot: centre alone
      return raw.centre + ratio(offset, length);
    }
    return raw.centre + offset * (raw.width * part);
  }
  template <bool kOnce>
  TAL_FAST_DEVICE float weight(const Raw& raw, const LaneSoftmax& softmax) const {
    return ratio(kOnce ? softmax.own : softmax_exp(widen(raw.logit) - softmax.highest),
                 softmax.sum);
  }
};

// ---- levels and rows ----------------------------------------------------------------------------

// A sample's place among those of its query.
struct TypedSample {
  int k;           // those from sizes.samples on do not exist
  int level;       // its level, ...
  int start;       // whose first row this is
  int length;      // and whose rows these are
  float as_float;  // the same
};

// `per_point` is 65536 / points, rounded up: k / points is k * per_point >> 16.
TAL_FAST_DEVICE TypedSample typed_sample(const DeformAttnSizes& sizes, const Levels& levels,
                                         int per_point, int k) {
  const int level = k < sizes.samples ? k * per_point >> 16 : 0;
  const Level& of = levels.inside[level];
  return {k, level, static_cast<int>(of.start), of.length, static_cast<float>(of.length)};
}

// Brings the rows of a slice of 1 << kLog2 packs into shared memory, behind a row of zeros, which
// stands for all that there is not. `column` and `rows` are the lane's; `stride` is between rows.
template <int kLog2, typename T>
TAL_FAST_DEVICE void stage_packs(Shared<T> column, const T* rows, int count, int stride,
                                 const bool* padded) {
  constexpr int N = kPackSize<T>;
  constexpr int kWidth = N << kLog2;
  constexpr int kAtOnce = 4;
  int row = static_cast<int>(threadIdx.x) >> kLog2;
  const int step = static_cast<int>(blockDim.x) >> kLog2;
  const int jump = pinned(step * stride);
  const T* from = rows + int64_t{row} * stride;
  if (row == 0) {
    column.template store_pack<N>(0, Pack<T, N>{});
  }
  if (padded == nullptr) {
    const int to_next = pinned(step * kWidth);
    int place = (row + 1) * kWidth;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
    for (; row + (kAtOnce - 1) * step < count; row += kAtOnce * step) {  // hot: stage
      for (int i = 0; i < kAtOnce; ++i, place += to_next, from += jump) {
        column.copy_async(place, from);
      }
    }
  }
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (; row < count; row += step, from += jump) {  // hot: stage a row
    if (padded != nullptr && read(padded + row)) {
      column.template store_pack<N>((row + 1) * kWidth, Pack<T, N>{});
    } else {
      column.copy_async((row + 1) * kWidth, from);
    }
  }
}

// The pack at a place, zeros below 0. Chosen by words: by halves nvcc takes them apart.
template <typename T>
TAL_FAST_DEVICE Pack<T, kPackSize<T>> read_or_zeros(const T* from, int place) {
#if defined(__CUDACC__)
  uint4 words = {0, 0, 0, 0};
  if (place >= 0) {
    words = __ldg(reinterpret_cast<const uint4*>(from + place));
  }
  return bits_to_pack<T, kPackSize<T>>(words);
#else
  return place < 0 ? Pack<T, kPackSize<T>>{} : read_pack<kPackSize<T>>(from + place);
#endif
}

// Calls use(place_of, none, load) for a slice of one head's rows: `place_of` a row that exists, the
// place `none` of zeros, and what `load` finds at a place. Staged rows are on their way then: they
// are there after wait_for_copies() and a barrier. `rows` points to the lane's channels of row 0.
template <int kLog2, bool kStaged, typename T, typename Use>
TAL_FAST_DEVICE void with_packs(const DeformAttnSizes& sizes, const T* rows, const bool* padded,
                                Use use) {
  constexpr int N = kPackSize<T>;
  const int stride = pinned(static_cast<int>(sizes.heads * sizes.channels));
  if constexpr (kStaged) {
    constexpr int kWidth = N << kLog2;
    constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(T));
    const int lane = static_cast<int>(threadIdx.x) & ((1 << kLog2) - 1);
    SharedMemory shared;
    const Shared<T> column = shared.take<T>((static_cast<int>(sizes.rows) + 1) * kWidth) + lane * N;
    stage_packs<kLog2>(column, rows, static_cast<int>(sizes.rows), stride, padded);
    const PinnedShared<T> packs(column);
    use([](int row) { return (1 + row) * kRowBytes; }, 0,
        [&](int place) { return packs.load(place); });
  } else {
    const T* from = pinned(rows);
    use([&](int row) { return padded != nullptr && read(padded + row) ? -1 : row * stride; }, -1,
        [&](int place) { return read_or_zeros(from, place); });
  }
}

}  // namespace tal_fast
