// SPDX-License-Identifier: Apache-2.0
// Average of linearly interpolated features over bins of segments (Align1D of G-TAD and TadTR, and
// torchvision's roi_align in one dimension).
//
// The samples of a bin touch few rows, most of them more than once. So the weights of all samples
// are first summed up per row, and every row is then read once per bin, over a vector of channels.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "math/half.h"
#include "math/segment_roi_align.h"

namespace tal_fast::cpu {

// In elements.
struct RoiAlignStrides {
  int64_t batch;
  int64_t channel;
  int64_t row;
};

// Stored is the type of features, output and their gradients, Roi that of the segments, in which
// positions are computed. The number in rois[k][0] must be a valid batch index. The files are
// compiled without fused multiply-add: all instruction sets give equal bits.
// clang-format off
TAL_FAST_FOR_EACH_ISA(

// Fast if the channels of a row are contiguous, correct for any strides.
template <typename Stored, typename Roi>
void segment_roi_align_forward(const Stored* features,  // [B, C, T], strided
                               RoiAlignStrides strides,
                               const Roi* rois,         // [K, 3]: batch, start, end
                               RoiAlignShape shape,
                               int64_t roi_begin, int64_t roi_end,
                               Stored* out);            // [K, C, R]

// The gradient of one batch item, channels [channel_begin, channel_end). Each element is summed in
// the order of `members`, however the channels are divided.
template <typename Stored, typename Roi>
void segment_roi_align_backward(const Stored* grad,          // [K, C, R]
                                const Roi* rois,             // [K, 3]
                                const int64_t* members,      // [count]: the rois of this item
                                int64_t count,
                                RoiAlignShape shape,
                                int64_t channel_begin, int64_t channel_end,
                                ComputeType<Stored>* sums,   // [T, channel_end - channel_begin]
                                Stored* grad_features);      // [T, C]

// Rows of channels from channels of rows.
template <typename Stored>
void segment_roi_align_transpose(const Stored* features,  // [C, T], channel_stride apart
                                 int64_t channel_stride,
                                 int64_t channels, int64_t rows,
                                 Stored* out);            // [T, C]
)
// clang-format on

}  // namespace tal_fast::cpu
