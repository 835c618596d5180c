// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_roi_align.h"

#include <cmath>

#include "cpu/simd.h"

namespace tal_fast {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Scratch that frees itself. Not std::vector: isa.h says why.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(new T[static_cast<size_t>(size)]) {}
  ~Buffer() { delete[] data_; }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }

 private:
  T* data_;
};

// The rows that a bin reads, rising, with their weights.
template <typename T>
class BinTaps {
 public:
  // Positions rise within a bin, so no row can occur twice: `rows` entries suffice.
  explicit BinTaps(int64_t rows) : rows_(rows), weights_(rows) {}

  int64_t count() const { return count_; }
  const int64_t* rows() { return rows_.data(); }
  const T* weights() { return weights_.data(); }

  // Positions in the type of the rois and in the order of operations of the original Align1D.
  template <typename Roi>
  void compute(const Roi* roi, int64_t bin, const RoiAlignShape& shape) {
    count_ = 0;
    const Roi start = roi[1];
    const Roi extent = roi[2] - roi[1];
    const Roi length = extent > Roi(1) ? extent : Roi(1);
    const Roi bin_length = length / static_cast<Roi>(shape.bins);
    const int64_t samples =
        shape.sampling_ratio > 0
            ? shape.sampling_ratio
            : static_cast<int64_t>(std::ceil(length / static_cast<Roi>(shape.bins)));
    const Roi base = start + static_cast<Roi>(bin) * bin_length;
    const T share = T(1) / static_cast<T>(samples);

    // Only samples within [-1, rows] count. A segment may reach far beyond them, so skip to where
    // they can be, with a margin for rounding; each sample is still tested.
    const double step = static_cast<double>(bin_length) / static_cast<double>(samples);
    const double margin =
        2.0 + 1e-6 * (std::abs(static_cast<double>(base)) + static_cast<double>(shape.rows)) / step;
    const double first = std::floor((-1.0 - base) / step - margin);
    const double last = std::ceil((static_cast<double>(shape.rows) - base) / step + margin);
    // Compared before the conversion: a double need not fit into an int64.
    const double all = static_cast<double>(samples);
    const int64_t begin = first >= all ? samples : (first > 0.0 ? static_cast<int64_t>(first) : 0);
    const int64_t end = last >= all ? samples : (last > 0.0 ? static_cast<int64_t>(last) : 0);

    const Roi limit = static_cast<Roi>(shape.rows);
    for (int64_t i = begin; i < end; ++i) {
      const Roi offset = (static_cast<Roi>(i) + Roi(0.5)) * bin_length / static_cast<Roi>(samples);
      const Roi position = base + offset;
      if (!(position >= Roi(-1) && position <= limit)) {
        continue;
      }
      const Roi inside = position > Roi(0) ? position : Roi(0);
      const int64_t row = static_cast<int64_t>(inside);
      if (row >= shape.rows - 1) {
        add(shape.rows - 1, share);
      } else {
        const Roi upper = inside - static_cast<Roi>(row);
        add(row, static_cast<T>(Roi(1) - upper) * share);
        add(row + 1, static_cast<T>(upper) * share);
      }
    }
  }

 private:
  void add(int64_t row, T weight) {
    int64_t* rows = rows_.data();
    T* weights = weights_.data();
    if (count_ > 0 && rows[count_ - 1] == row) {
      weights[count_ - 1] += weight;
    } else if (count_ > 1 && rows[count_ - 2] == row) {
      weights[count_ - 2] += weight;
    } else {
      rows[count_] = row;
      weights[count_] = weight;
      ++count_;
    }
  }

  Buffer<int64_t> rows_;
  Buffer<T> weights_;
  int64_t count_ = 0;
};

// kVectors vectors of channels at once, so that their sums stay in registers over all rows.
template <int kVectors, typename T>
inline void weighted_sum(const T* __restrict__ features, int64_t row_stride, const int64_t* rows,
                         const T* weights, int64_t count, T* __restrict__ out) {
  constexpr int kLanes = kFullLanes<T>;
  Vector<T, kLanes> sums[kVectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    const T* source = features + rows[i] * row_stride;
    for (int v = 0; v < kVectors; ++v) {
      sums[v] += weights[i] * load<kLanes>(source + v * kLanes);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store<kLanes, T>(out + v * kLanes, sums[v]);
  }
}

template <typename T>
inline void sum_channels(const T* features, RoiAlignStrides strides, int64_t channels,
                         BinTaps<T>& taps, T* out) {  // [C]
  constexpr int64_t kLanes = kFullLanes<T>;
  const int64_t* rows = taps.rows();
  const T* weights = taps.weights();
  const int64_t count = taps.count();
  int64_t c = 0;
  if (strides.channel == 1) {
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
      weighted_sum<4>(features + c, strides.row, rows, weights, count, out + c);
    }
    for (; c + kLanes <= channels; c += kLanes) {
      weighted_sum<1>(features + c, strides.row, rows, weights, count, out + c);
    }
  }
  for (; c < channels; ++c) {
    const T* source = features + c * strides.channel;
    T sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      sum += weights[i] * source[rows[i] * strides.row];
    }
    out[c] = sum;
  }
}

// One cache line more than the channels: with a power of two all bins of a channel would lie in the
// same set of the cache.
template <typename T>
constexpr int64_t tile_stride(int64_t channels) {
  return channels + 64 / static_cast<int64_t>(sizeof(T));
}

}  // namespace

template <typename T, typename Stored, typename Roi>
void segment_roi_align_forward(const T* features, RoiAlignStrides strides, const Roi* rois,
                               RoiAlignShape shape, int64_t roi_begin, int64_t roi_end,
                               Stored* out) {
  const int64_t channels = shape.channels;
  const int64_t bins = shape.bins;
  const int64_t stride = tile_stride<T>(channels);
  BinTaps<T> taps(shape.rows);
  // Sums lie channel by channel within a bin, the output bin by bin within a channel.
  Buffer<T> tile(bins * stride);
  for (int64_t k = roi_begin; k < roi_end; ++k) {
    const Roi* roi = rois + 3 * k;
    const T* item = features + static_cast<int64_t>(roi[0]) * strides.batch;
    for (int64_t bin = 0; bin < bins; ++bin) {
      taps.compute(roi, bin, shape);
      sum_channels(item, strides, channels, taps, tile.data() + bin * stride);
    }
    const T* sums = tile.data();
    Stored* target = out + k * channels * bins;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t bin = 0; bin < bins; ++bin) {
        target[c * bins + bin] = narrow<Stored>(sums[bin * stride + c]);
      }
    }
  }
}

template <typename T, typename Stored, typename Roi>
void segment_roi_align_backward(const Stored* grad, const Roi* rois, const int64_t* members,
                                int64_t count, RoiAlignShape shape, int64_t channel_begin,
                                int64_t channel_end, T* grad_features) {
  const int64_t channels = channel_end - channel_begin;
  const int64_t bins = shape.bins;
  const int64_t stride = tile_stride<T>(channels);
  BinTaps<T> taps(shape.rows);
  Buffer<T> tile(bins * stride);
  for (int64_t m = 0; m < count; ++m) {
    const int64_t k = members[m];
    const Stored* source = grad + (k * shape.channels + channel_begin) * bins;
    T* sums = tile.data();
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t bin = 0; bin < bins; ++bin) {
        sums[bin * stride + c] = widen(source[c * bins + bin]);
      }
    }
    for (int64_t bin = 0; bin < bins; ++bin) {
      taps.compute(rois + 3 * k, bin, shape);
      const T* __restrict__ part = sums + bin * stride;
      for (int64_t i = 0; i < taps.count(); ++i) {
        T* __restrict__ target = grad_features + taps.rows()[i] * shape.channels + channel_begin;
        const T weight = taps.weights()[i];
        for (int64_t c = 0; c < channels; ++c) {
          target[c] += weight * part[c];
        }
      }
    }
  }
}

#define TAL_FAST_INSTANTIATE(T, Stored, Roi)                                            \
  template void segment_roi_align_forward<T, Stored, Roi>(                              \
      const T*, RoiAlignStrides, const Roi*, RoiAlignShape, int64_t, int64_t, Stored*); \
  template void segment_roi_align_backward<T, Stored, Roi>(                             \
      const Stored*, const Roi*, const int64_t*, int64_t, RoiAlignShape, int64_t, int64_t, T*);
TAL_FAST_INSTANTIATE(double, double, double)
TAL_FAST_INSTANTIATE(double, double, float)
TAL_FAST_INSTANTIATE(float, float, double)
TAL_FAST_INSTANTIATE(float, float, float)
TAL_FAST_INSTANTIATE(float, Half, double)
TAL_FAST_INSTANTIATE(float, Half, float)
TAL_FAST_INSTANTIATE(float, BFloat16, double)
TAL_FAST_INSTANTIATE(float, BFloat16, float)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast
