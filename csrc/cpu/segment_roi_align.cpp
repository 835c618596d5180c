// SPDX-License-Identifier: Apache-2.0
// Features and segments may be of different types: the loops over channels are compiled for the
// former alone, and call what is compiled for the latter once for each segment.
#include "cpu/segment_roi_align.h"

#include "cpu/buffer.h"
#include "cpu/simd.h"
#include "cpu/transpose.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// A weight for one row of the features.
template <typename T>
struct Tap {
  int64_t row;
  T weight;
};

// The rows that each bin of a segment reads, rising within a bin, with their weights.
template <typename T>
class RoiTaps {
 public:
  explicit RoiTaps(const RoiAlignShape& shape)
      : shape_(shape), starts_(shape.bins + 1), taps_(shape.rows + 4 * shape.bins) {}

  const Tap<T>* begin(int64_t bin) { return taps_.data() + starts_.data()[bin]; }
  const Tap<T>* end(int64_t bin) { return taps_.data() + starts_.data()[bin + 1]; }

  template <typename Roi>
  void compute(const Roi* roi) {
    const RoiSampling<Roi> sampling(roi, shape_);
    const int64_t samples = sampling.samples;
    // A sample's offset within its bin is the same in all bins.
    Roi offsets[kTabled];
    for (int64_t i = 0; samples <= kTabled && i < samples; ++i) {
      offsets[i] = sampling.offset(i);
    }
    // No sample at all: the bins stay empty and their averages zero.
    const T share = samples > 0 ? T(1) / static_cast<T>(samples) : T(0);
    // Positions rise within a bin, so no row can occur twice in it.
    const int64_t most = samples < shape_.rows ? 2 * samples : shape_.rows;
    count_ = 0;
    for (int64_t bin = 0; bin < shape_.bins; ++bin) {
      if (count_ + most > taps_.size()) {
        taps_.grow(2 * taps_.size() + most, count_);
      }
      first_ = count_;
      starts_.data()[bin] = first_;
      const Roi base = sampling.base(bin);
      if (samples <= kTabled) {
        for (int64_t i = 0; i < samples; ++i) {
          place(base + offsets[i], share);
        }
      } else {
        const auto [from, to] = sampling.visible(base, shape_.rows);
        for (int64_t i = from; i < to; ++i) {
          place(base + sampling.offset(i), share);
        }
      }
    }
    starts_.data()[shape_.bins] = count_;
  }

 private:
  static constexpr int64_t kTabled = 64;

  template <typename Roi>
  void place(Roi position, T share) {
    place_sample(position, shape_.rows, share, [this](int64_t row, T weight) { add(row, weight); });
  }

  void add(int64_t row, T weight) {
    Tap<T>* next = taps_.data() + count_;
    if (count_ > first_ && next[-1].row == row) {
      next[-1].weight += weight;
    } else if (count_ > first_ + 1 && next[-2].row == row) {
      next[-2].weight += weight;
    } else {
      *next = {row, weight};
      ++count_;
    }
  }

  const RoiAlignShape shape_;
  Buffer<int64_t> starts_;  // [R + 1]
  Buffer<Tap<T>> taps_;
  int64_t count_ = 0;
  int64_t first_ = 0;  // of the bin that is being filled
};

// kVectors vectors of channels at once, so that their sums stay in registers over all rows.
template <int kVectors, typename Stored, typename T>
inline void weighted_sum(const Stored* __restrict__ features, int64_t row_stride, const Tap<T>* tap,
                         const Tap<T>* last, T* __restrict__ out) {
  constexpr int kLanes = kFullLanes<T>;
  Vector<T, kLanes> sums[kVectors] = {};
  for (; tap != last; ++tap) {
    const Stored* source = features + tap->row * row_stride;
    for (int v = 0; v < kVectors; ++v) {
      sums[v] += tap->weight * load<kLanes>(source + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store<kLanes, T>(out + v * kLanes, sums[v]);
  }
}

template <typename Stored, typename T>
inline void sum_channels(const Stored* features, RoiAlignStrides strides, int64_t channels,
                         const Tap<T>* first, const Tap<T>* last, T* out) {  // [C]
  constexpr int64_t kLanes = kFullLanes<T>;
  int64_t c = 0;
  if (strides.channel == 1) {
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
      weighted_sum<4>(features + c, strides.row, first, last, out + c);
    }
    for (; c + kLanes <= channels; c += kLanes) {
      weighted_sum<1>(features + c, strides.row, first, last, out + c);
    }
  }
  for (; c < channels; ++c) {
    const Stored* source = features + c * strides.channel;
    T sum = 0;
    for (const Tap<T>* tap = first; tap != last; ++tap) {
      sum += tap->weight * widen(source[tap->row * strides.row]);
    }
    out[c] = sum;
  }
}

// The transpose of weighted_sum: adds to every row what the bin got, times the row's weight.
template <int kVectors, typename T>
inline void spread(const T* __restrict__ grad, const Tap<T>* tap, const Tap<T>* last,
                   int64_t row_stride, T* __restrict__ sums) {
  constexpr int kLanes = kFullLanes<T>;
  Vector<T, kLanes> part[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    part[v] = load<kLanes>(grad + v * kLanes);
  }
  for (; tap != last; ++tap) {
    T* target = sums + tap->row * row_stride;
    for (int v = 0; v < kVectors; ++v) {
      store<kLanes, T>(target + v * kLanes,
                       load<kLanes>(target + v * kLanes) + tap->weight * part[v]);
    }
  }
}

template <typename T>
inline void spread_channels(const T* grad, int64_t channels, const Tap<T>* first,
                            const Tap<T>* last, T* sums) {
  constexpr int64_t kLanes = kFullLanes<T>;
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
    spread<4>(grad + c, first, last, channels, sums + c);
  }
  for (; c + kLanes <= channels; c += kLanes) {
    spread<1>(grad + c, first, last, channels, sums + c);
  }
  for (; c < channels; ++c) {
    for (const Tap<T>* tap = first; tap != last; ++tap) {
      sums[tap->row * channels + c] += tap->weight * grad[c];
    }
  }
}

// Sums lie channel by channel within a bin, output and gradient bin by bin within a channel: tiles
// of all bins of some channels pass from the one to the other within the first-level cache.
int64_t tile_channels(const RoiAlignShape& shape, int64_t channels) {
  const int64_t fitting = 4096 / shape.bins / 64 * 64;
  const int64_t block = fitting > 64 ? fitting : 64;
  return channels < block ? channels : block;
}

// One cache line more than the channels: with a power of two all bins of a channel would lie in the
// same set of the cache.
template <typename T>
constexpr int64_t tile_stride(int64_t channels) {
  return channels + 64 / static_cast<int64_t>(sizeof(T));
}

// Fetches part `index` of `parts` of an array that is needed soon. Gradients and outputs of many
// rois come from far, in strides that the processor does not foresee: two thirds of the time of a
// transposition is waiting for them.
template <bool kWrite, typename T>
inline void prefetch(const T* data, int64_t size, int64_t index, int64_t parts) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t part = (size + parts - 1) / parts;
  const int64_t end = (index + 1) * part < size ? (index + 1) * part : size;
  for (int64_t i = index * part; i < end; i += kLine) {
    __builtin_prefetch(data + i, kWrite ? 1 : 0, 2);
  }
}

// Computes the taps of segment k of an array of any type; returns its batch index.
template <typename T>
using ComputeTaps = int64_t (*)(RoiTaps<T>& taps, const void* rois, int64_t k);

template <typename T, typename Roi>
int64_t compute_taps(RoiTaps<T>& taps, const void* rois, int64_t k) {
  const Roi* roi = static_cast<const Roi*>(rois) + 3 * k;
  taps.compute(roi);
  return static_cast<int64_t>(roi[0]);
}

template <typename Stored, typename T>
void forward(const Stored* features, RoiAlignStrides strides, const void* rois,
             ComputeTaps<T> compute, RoiAlignShape shape, int64_t roi_begin, int64_t roi_end,
             Stored* out) {
  const int64_t bins = shape.bins;
  const int64_t block = tile_channels(shape, shape.channels);
  const int64_t stride = tile_stride<T>(block);
  RoiTaps<T> taps(shape);
  Buffer<T> tile(bins * stride);
  for (int64_t k = roi_begin; k < roi_end; ++k) {
    const Stored* item = features + compute(taps, rois, k) * strides.batch;
    for (int64_t c = 0; c < shape.channels; c += block) {
      const int64_t channels = block < shape.channels - c ? block : shape.channels - c;
      Stored* target = out + (k * shape.channels + c) * bins;
      for (int64_t bin = 0; bin < bins; ++bin) {
        prefetch<true>(target, channels * bins, bin, bins);
        sum_channels(item + c * strides.channel, strides, channels, taps.begin(bin), taps.end(bin),
                     tile.data() + bin * stride);
      }
      transpose(tile.data(), stride, bins, channels, target, bins);
    }
  }
}

template <typename Stored, typename T>
void backward(const Stored* grad, const void* rois, ComputeTaps<T> compute, const int64_t* members,
              int64_t count, RoiAlignShape shape, int64_t channel_begin, int64_t channel_end,
              T* sums, Stored* grad_features) {
  const int64_t all = channel_end - channel_begin;
  const int64_t bins = shape.bins;
  const int64_t stride = tile_stride<T>(all);
  for (int64_t i = 0; i < shape.rows * all; ++i) {
    sums[i] = T(0);
  }
  RoiTaps<T> taps(shape);
  Buffer<T> tile(bins * stride);
  for (int64_t m = 0; m < count; ++m) {
    const auto grad_of = [&](int64_t i) {
      return grad + (members[i] * shape.channels + channel_begin) * bins;
    };
    transpose(grad_of(m), bins, all, bins, tile.data(), stride);
    compute(taps, rois, members[m]);
    const Stored* next = grad_of(m + 1 < count ? m + 1 : m);
    for (int64_t bin = 0; bin < bins; ++bin) {
      prefetch<false>(next, all * bins, bin, bins);
      spread_channels(tile.data() + bin * stride, all, taps.begin(bin), taps.end(bin), sums);
    }
  }
  for (int64_t t = 0; t < shape.rows; ++t) {
    Stored* __restrict__ target = grad_features + t * shape.channels + channel_begin;
    const T* __restrict__ source = sums + t * all;
    for (int64_t c = 0; c < all; ++c) {
      target[c] = narrow<Stored>(source[c]);
    }
  }
}

}  // namespace

template <typename Stored, typename Roi>
void segment_roi_align_forward(const Stored* features, RoiAlignStrides strides, const Roi* rois,
                               RoiAlignShape shape, int64_t roi_begin, int64_t roi_end,
                               Stored* out) {
  using T = ComputeType<Stored>;
  forward<Stored, T>(features, strides, rois, &compute_taps<T, Roi>, shape, roi_begin, roi_end,
                     out);
}

template <typename Stored, typename Roi>
void segment_roi_align_backward(const Stored* grad, const Roi* rois, const int64_t* members,
                                int64_t count, RoiAlignShape shape, int64_t channel_begin,
                                int64_t channel_end, ComputeType<Stored>* sums,
                                Stored* grad_features) {
  using T = ComputeType<Stored>;
  backward<Stored, T>(grad, rois, &compute_taps<T, Roi>, members, count, shape, channel_begin,
                      channel_end, sums, grad_features);
}

template <typename Stored>
void segment_roi_align_transpose(const Stored* features, int64_t channel_stride, int64_t channels,
                                 int64_t rows, Stored* out) {
  transpose(features, channel_stride, channels, rows, out, channels);
}

#define TAL_FAST_INSTANTIATE(Stored, Roi)                                                          \
  template void segment_roi_align_forward<Stored, Roi>(const Stored*, RoiAlignStrides, const Roi*, \
                                                       RoiAlignShape, int64_t, int64_t, Stored*);  \
  template void segment_roi_align_backward<Stored, Roi>(const Stored*, const Roi*, const int64_t*, \
                                                        int64_t, RoiAlignShape, int64_t, int64_t,  \
                                                        ComputeType<Stored>*, Stored*);
#define TAL_FAST_INSTANTIATE_ALL(Stored)                                                      \
  TAL_FAST_INSTANTIATE(Stored, double)                                                        \
  TAL_FAST_INSTANTIATE(Stored, float)                                                         \
  template void segment_roi_align_transpose<Stored>(const Stored*, int64_t, int64_t, int64_t, \
                                                    Stored*);
TAL_FAST_INSTANTIATE_ALL(double)
TAL_FAST_INSTANTIATE_ALL(float)
TAL_FAST_INSTANTIATE_ALL(Half)
TAL_FAST_INSTANTIATE_ALL(BFloat16)
#undef TAL_FAST_INSTANTIATE_ALL
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
