// SPDX-License-Identifier: Apache-2.0
// segment_roi_align on a GPU. The rois are on the GPU, so a bad one cannot be refused without
// waiting for it: its output is NaN, and it adds nothing to the gradient.
#include "cuda/segment_roi_align.cuh"

#include <algorithm>
#include <limits>

#include "cuda/launch.h"
#include "ops/segment_roi_align.h"

namespace tal_fast {
namespace {

// Bins that pass through shared memory at a time.
constexpr int64_t kBins = 32;
// Shared memory that leaves room for three blocks per multiprocessor.
constexpr int64_t kSharedBudget = 72 * 1024;

// The kernels count rows in 32 bits.
void check_row_numbers(const char* op, int64_t rows) {
  TAL_FAST_CHECK(rows <= std::numeric_limits<int32_t>::max(), op,
                 ": expected at most 2^31 - 1 rows on a GPU, got ", rows);
}

bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// The same features with the channels of a row next to each other in memory.
template <typename T>
Tensor channels_last(const DeviceScope& scope, const Tensor& features_in) {  // [B, C, T]
  using Kernel = RoiAlignTranspose<T>;
  const Tensor features = features_in.stride(2) == 1 ? features_in : as_contiguous(features_in);
  const int64_t batch = features.size(0);
  const int64_t channels = features.size(1);
  const int64_t rows = features.size(2);
  const Tensor copy = allocate(features, {batch, rows, channels});
  const int64_t channel_tiles = ceil_div(channels, Kernel::kSide);
  const int64_t row_tiles = ceil_div(rows, Kernel::kSide);
  launch(scope, dim3(static_cast<unsigned>(batch * channel_tiles * row_tiles)), Kernel::kThreads,
         SharedSize().take<T>(Kernel::kTile).bytes(),
         Kernel{const_data<T>(features), features.stride(0), features.stride(1), channels, rows,
                channel_tiles, row_tiles, mutable_data<T>(copy)});
  return torch::stable::transpose(copy, 1, 2);
}

template <bool kPacked, typename T, typename Roi>
void launch_forward(const DeviceScope& scope, const Tensor& features, const Roi* rois,
                    int64_t count, const RoiAlignShape& shape, T* out) {
  using Kernel = RoiAlignForward<T, Roi, kPacked>;
  const int bins = static_cast<int>(std::min(shape.bins, kBins));
  const int64_t chunks = ceil_div(shape.channels, Kernel::kChannels);
  const bool packs = bins == shape.bins && shape.channels * bins % kPackSize<T> == 0;
  launch(scope, dim3(static_cast<unsigned>(count * chunks)),
         std::min(Kernel::kThreads, bins * kWarp), Kernel::shared_bytes(bins),
         Kernel{const_data<T>(features),
                {features.stride(0), features.stride(1), features.stride(2)},
                rois,
                shape,
                features.size(0),
                chunks,
                bins,
                packs,
                out});
}

Tensor segment_roi_align_cuda(const Tensor& features_in,  // [B, C, T]
                              const Tensor& rois_in,      // [K, 3]
                              int64_t output_size, int64_t sampling_ratio, bool aligned) {
  check_segment_roi_align(features_in, rois_in, output_size, sampling_ratio);
  check_row_numbers("segment_roi_align", features_in.size(2));
  const DeviceScope scope(features_in);
  const Tensor rois = as_contiguous(rois_in);
  const int64_t count = rois.size(0);
  const RoiAlignShape shape{features_in.size(1), features_in.size(2), output_size, sampling_ratio,
                            aligned};
  const Tensor out = allocate(features_in, {count, shape.channels, output_size});
  if (out.numel() == 0) {
    return out;
  }
  dispatch_float(features_in.scalar_type(), "segment_roi_align", "features", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool copies =
        features_in.size(0) > 0 && roi_align_copies(features_in, count, output_size);
    const Tensor features = copies ? channels_last<T>(scope, features_in) : features_in;
    constexpr int64_t kWidth = kPackSize<T>;
    const bool packed = features.stride(1) == 1 && shape.channels % kWidth == 0 &&
                        features.stride(0) % kWidth == 0 && features.stride(2) % kWidth == 0 &&
                        is_aligned(const_data<T>(features));
    with_rois(rois, [&](const auto* data) {
      packed ? launch_forward<true>(scope, features, data, count, shape, mutable_data<T>(out))
             : launch_forward<false>(scope, features, data, count, shape, mutable_data<T>(out));
    });
  });
  return out;
}

// Rows of a block of the backward: what fits, and few enough that there is work for all
// multiprocessors twice over.
template <typename Kernel>
int backward_slice(const DeviceLimits& limits, int64_t rows, int bins, int64_t blocks) {
  constexpr int64_t kLeast = Kernel::kWarps;
  const auto fixed = static_cast<int64_t>(Kernel::shared_size(0, bins).bytes());
  const int64_t per_row = Kernel::kChannels * static_cast<int64_t>(sizeof(typename Kernel::C));
  const int64_t bytes = std::min(static_cast<int64_t>(limits.shared_per_block), kSharedBudget);
  const int64_t fitting = (bytes - fixed) / per_row / kLeast * kLeast;
  const int64_t wanted = ceil_div(rows, ceil_div(2 * limits.multiprocessors, blocks));
  const int64_t slice = std::max<int64_t>(2 * kLeast, ceil_div(wanted, kLeast) * kLeast);
  return static_cast<int>(std::max(kLeast, std::min(slice, fitting)));
}

// Returns [B, C, T] with the memory order of [B, T, C], as on a CPU.
Tensor segment_roi_align_backward_cuda(const Tensor& grad_in,  // [K, C, R]
                                       const Tensor& rois_in,  // [K, 3]
                                       int64_t batch, int64_t rows, int64_t sampling_ratio,
                                       bool aligned) {
  check_segment_roi_align_gradient(grad_in, rois_in, sampling_ratio);
  check_row_numbers("segment_roi_align_backward", rows);
  const DeviceScope scope(grad_in);
  const Tensor rois = as_contiguous(rois_in);
  const Tensor grad = as_contiguous(grad_in);
  const RoiAlignShape shape{grad.size(1), rows, grad.size(2), sampling_ratio, aligned};
  const Tensor out = allocate(grad, {batch, rows, shape.channels});
  if (out.numel() == 0) {
    return torch::stable::transpose(out, 1, 2);
  }
  dispatch_float(grad.scalar_type(), "segment_roi_align_backward", "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    with_rois(rois, [&](const auto* data) {
      using Kernel = RoiAlignBackward<T, std::decay_t<decltype(*data)>>;
      const int bins = static_cast<int>(std::min(shape.bins, kBins));
      const int64_t chunks = ceil_div(shape.channels, Kernel::kChannels);
      const int slice = backward_slice<Kernel>(scope.limits(), rows, bins, batch * chunks);
      const int64_t slices = ceil_div(rows, slice);
      const T* grad_data = const_data<T>(grad);
      const bool grad_packs =
          bins == shape.bins && shape.channels * bins % kPackSize<T> == 0 && is_aligned(grad_data);
      launch(scope, dim3(static_cast<unsigned>(batch * slices * chunks)), Kernel::kThreads,
             Kernel::shared_size(slice, bins).bytes(),
             Kernel{grad_data, data, rois.size(0), shape, batch, slice, slices, chunks, bins,
                    grad_packs, shape.channels % Kernel::kWidth == 0, mutable_data<T>(out)});
    });
  });
  return torch::stable::transpose(out, 1, 2);
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("segment_roi_align", TORCH_BOX(&segment_roi_align_cuda));
  m.impl("segment_roi_align_backward", TORCH_BOX(&segment_roi_align_backward_cuda));
}

}  // namespace tal_fast
