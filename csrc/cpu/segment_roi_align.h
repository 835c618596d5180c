// SPDX-License-Identifier: Apache-2.0
// Average of linearly interpolated features over bins of segments (Align1D of G-TAD and TadTR).
//
// The samples of a bin touch few rows, most of them more than once. So the weights of all samples
// are first summed up per row, and every row is then read once per bin, over a vector of channels.
#pragma once

#include <cstdint>

#include "cpu/half.h"
#include "cpu/isa.h"

namespace tal_fast {

struct RoiAlignShape {
  int64_t channels;        // C
  int64_t rows;            // T
  int64_t bins;            // R
  int64_t sampling_ratio;  // samples per bin; 0: ceil(length / bins)
};

// In elements.
struct RoiAlignStrides {
  int64_t batch;
  int64_t channel;
  int64_t row;
};

// T is the type computed in (float or double), Stored the type of output and its gradient, Roi that
// of the segments, in which positions are computed. The number in rois[k][0] must be a valid batch
// index. The files are compiled without fused multiply-add: all instruction sets give equal bits.
// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Fast if the channels of a row are contiguous, correct for any strides.
template <typename T, typename Stored, typename Roi>
void segment_roi_align_forward(const T* features,      // [B, C, T], strided
                               RoiAlignStrides strides,
                               const Roi* rois,        // [K, 3]: batch, start, end
                               RoiAlignShape shape,
                               int64_t roi_begin, int64_t roi_end,
                               Stored* out);           // [K, C, R]

// Adds to the gradient of one batch item, channels [channel_begin, channel_end). Each element is
// summed in the order of `members`, however the channels are divided.
template <typename T, typename Stored, typename Roi>
void segment_roi_align_backward(const Stored* grad,         // [K, C, R]
                                const Roi* rois,            // [K, 3]
                                const int64_t* members,     // [count]: the rois of this item
                                int64_t count,
                                RoiAlignShape shape,
                                int64_t channel_begin, int64_t channel_end,
                                T* grad_features);          // [T, C], contiguous
)
// clang-format on

}  // namespace tal_fast
