// SPDX-License-Identifier: Apache-2.0
// Where the bins of a segment are sampled, and what a sample reads: positions in the type of the
// rois and in the order of operations of the original Align1D, which torchvision shares. Compile
// with -ffp-contract=off (nvcc: -fmad=false).
#pragma once

#include <cstdint>

#include "math/elementary.h"
#include "math/host_device.h"

namespace tal_fast {

struct RoiAlignShape {
  int64_t channels;        // C
  int64_t rows;            // T
  int64_t bins;            // R
  int64_t sampling_ratio;  // samples per bin; 0: ceil(length / bins)
  bool aligned;            // positions shifted by half a row, no least length
};

// No segment can sensibly reach further, and sample counts computed from it fit into an int64.
constexpr double kMaxRoiPosition = 2147483648.0;

// In an anonymous namespace because each instruction set compiles its own.
namespace {

[[maybe_unused]] TAL_FAST_HD float round_up(float x) {
  return TAL_FAST_C_FUNCTION(ceilf)(x);
}
[[maybe_unused]] TAL_FAST_HD double round_up(double x) {
  return TAL_FAST_C_FUNCTION(ceil)(x);
}

struct SampleRange {
  int64_t from;
  int64_t to;
};

template <typename Roi>
struct RoiSampling {
  Roi start;
  Roi bin_length;
  int64_t samples;  // per bin

  TAL_FAST_HD RoiSampling(const Roi* roi, const RoiAlignShape& shape) {
    const Roi shift = shape.aligned ? Roi(0.5) : Roi(0);
    start = roi[1] - shift;
    const Roi extent = (roi[2] - shift) - start;
    const Roi length = shape.aligned || extent > Roi(1) ? extent : Roi(1);
    bin_length = length / static_cast<Roi>(shape.bins);
    samples = shape.sampling_ratio > 0 ? shape.sampling_ratio
                                       : static_cast<int64_t>(round_up(bin_length));
  }

  TAL_FAST_HD Roi base(int64_t bin) const { return start + static_cast<Roi>(bin) * bin_length; }
  TAL_FAST_HD Roi offset(int64_t i) const {
    return (static_cast<Roi>(i) + Roi(0.5)) * bin_length / static_cast<Roi>(samples);
  }

  // Only samples within [-1, rows] count. A long segment may reach far beyond them, so skip to
  // where they can be, with a margin for rounding; each sample is still tested.
  TAL_FAST_HD SampleRange visible(Roi base, int64_t num_rows) const {
    const double all = static_cast<double>(samples);
    const double step = static_cast<double>(bin_length) / all;
    const double rows = static_cast<double>(num_rows);
    if (!(step > 0.0)) {  // a point: all samples lie on it
      return {0, base >= Roi(-1) && base <= static_cast<Roi>(num_rows) ? samples : 0};
    }
    const double place = static_cast<double>(base);
    const double margin = 2.0 + 1e-6 * ((place < 0.0 ? -place : place) + rows) / step;
    const double first = TAL_FAST_C_FUNCTION(floor)((-1.0 - place) / step - margin);
    const double last = TAL_FAST_C_FUNCTION(ceil)((rows - place) / step + margin);
    // Compared before the conversion: a double need not fit into an int64.
    const auto clamp = [&](double index) {
      return index >= all ? samples : (index > 0.0 ? static_cast<int64_t>(index) : 0);
    };
    return {clamp(first), clamp(last)};
  }
};

// Calls add(row, weight) for the one or two rows that a sample reads, the lower one first.
template <typename T, typename Roi, typename Add>
TAL_FAST_HD void place_sample(Roi position, int64_t rows, T share, Add&& add) {
  if (!(position >= Roi(-1) && position <= static_cast<Roi>(rows))) {
    return;
  }
  const Roi inside = position > Roi(0) ? position : Roi(0);
  const int64_t row = static_cast<int64_t>(inside);
  if (row >= rows - 1) {
    add(rows - 1, share);
  } else {
    const T upper = static_cast<T>(inside - static_cast<Roi>(row));
    add(row, (T(1) - upper) * share);
    add(row + 1, upper * share);
  }
}

}  // namespace
}  // namespace tal_fast
