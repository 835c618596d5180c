// SPDX-License-Identifier: Apache-2.0
// segment_roi_align: schema and the CPU implementation.
#include "ops/segment_roi_align.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/segment_roi_align.h"

namespace tal_fast {
namespace {

// Output elements per task: some 20 us of work, well above the cost of handing a range to a thread.
constexpr int64_t kElementsPerTask = 32768;

template <typename Roi>
void check_values(const char* op, const Roi* rois, int64_t count, int64_t batch, bool aligned) {
  for (int64_t k = 0; k < count; ++k) {
    const Roi index = rois[3 * k];
    TAL_FAST_CHECK(index >= Roi(0) && index < static_cast<Roi>(batch) && index == std::floor(index),
                   op, ": expected rois[:, 0] to be batch indices in [0, ", batch, "), got ", index,
                   " in row ", k);
    const Roi start = rois[3 * k + 1];
    const Roi end = rois[3 * k + 2];
    TAL_FAST_CHECK(std::abs(start) <= kMaxRoiPosition && std::abs(end) <= kMaxRoiPosition, op,
                   ": expected rois with finite start and end of at most 2^31, got [", start, ", ",
                   end, "] in row ", k);
    TAL_FAST_CHECK(!aligned || end >= start, op,
                   ": expected rois with end >= start with aligned=True, got [", start, ", ", end,
                   "] in row ", k);
  }
}

// Checks the values of the rois and returns them contiguous.
Tensor checked_rois(const char* op, const Tensor& rois, int64_t batch, bool aligned) {
  Tensor contiguous = as_contiguous(rois);
  with_rois(contiguous,
            [&](const auto* data) { check_values(op, data, rois.size(0), batch, aligned); });
  return contiguous;
}

// The same features with the channels of a row next to each other in memory.
Tensor channels_last(const Tensor& features_in) {  // [B, C, T] -> [B, C, T]
  const Tensor features = features_in.stride(2) == 1 ? features_in : as_contiguous(features_in);
  const int64_t batch = features.size(0);
  const int64_t channels = features.size(1);
  const int64_t rows = features.size(2);
  Tensor copy = empty_beside(features, {batch, rows, channels});
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (rows * channels));
  dispatch_float(features.scalar_type(), "segment_roi_align", "features", [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    const Stored* source = const_data<Stored>(features);
    Stored* target = mutable_data<Stored>(copy);
    torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        TAL_FAST_ISA_CALL(segment_roi_align_transpose<Stored>)(source + b * features.stride(0),
                                                               features.stride(1), channels, rows,
                                                               target + b * rows * channels);
      }
    });
  });
  return torch::stable::transpose(copy, 1, 2);
}

Tensor segment_roi_align_cpu(const Tensor& features_in,  // [B, C, T]
                             const Tensor& rois_in,      // [K, 3]
                             int64_t output_size, int64_t sampling_ratio, bool aligned) {
  constexpr const char* kOp = "segment_roi_align";
  check_segment_roi_align(features_in, rois_in, output_size, sampling_ratio);
  const ScalarType type = features_in.scalar_type();
  const int64_t batch = features_in.size(0);
  const int64_t rows = features_in.size(2);
  const Tensor rois = checked_rois(kOp, rois_in, batch, aligned);
  const int64_t count = rois.size(0);
  const RoiAlignShape shape{features_in.size(1), rows, output_size, sampling_ratio, aligned};
  Tensor out = empty_beside(features_in, {count, shape.channels, output_size});
  if (out.numel() == 0) {
    return out;
  }
  const bool copies = roi_align_copies(features_in, count, output_size);
  const Tensor features = copies ? channels_last(features_in) : features_in;
  const cpu::RoiAlignStrides strides{features.stride(0), features.stride(1), features.stride(2)};
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (shape.channels * output_size));
  dispatch_float(type, kOp, "features", [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    const Stored* data = const_data<Stored>(features);
    Stored* target = mutable_data<Stored>(out);
    with_rois(rois, [&](const auto* roi_data) {
      using Roi = std::decay_t<decltype(*roi_data)>;
      torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
        TAL_FAST_ISA_CALL(segment_roi_align_forward<Stored, Roi>)(data, strides, roi_data, shape,
                                                                  begin, end, target);
      });
    });
  });
  return out;
}

// The rois of every batch item, in rising order.
struct RoisByItem {
  std::vector<int64_t> members;  // [K]
  std::vector<int64_t> starts;   // [B + 1]
};

template <typename Roi>
RoisByItem group_by_item(const Roi* rois, int64_t count, int64_t batch) {
  RoisByItem grouped{std::vector<int64_t>(static_cast<size_t>(count)),
                     std::vector<int64_t>(static_cast<size_t>(batch) + 1, 0)};
  for (int64_t k = 0; k < count; ++k) {
    ++grouped.starts[static_cast<int64_t>(rois[3 * k]) + 1];
  }
  for (int64_t b = 0; b < batch; ++b) {
    grouped.starts[b + 1] += grouped.starts[b];
  }
  std::vector<int64_t> next(grouped.starts.begin(), grouped.starts.end() - 1);
  for (int64_t k = 0; k < count; ++k) {
    grouped.members[next[static_cast<int64_t>(rois[3 * k])]++] = k;
  }
  return grouped;
}

// Channels of one task of the backward. All channels at once compute the taps once, but sums that
// outgrow the second-level cache cost more, and every thread wants a task.
int64_t backward_block(const RoiAlignShape& shape, int64_t batch) {
  constexpr int64_t kSums = 65536;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = std::max<int64_t>(1, (2 * threads + batch - 1) / batch);
  const int64_t per_thread = (shape.channels / wanted + 15) / 16 * 16;
  const int64_t fitting = kSums / std::max(shape.rows, shape.bins) / 16 * 16;
  return std::min(shape.channels, std::max<int64_t>(64, std::min(per_thread, fitting)));
}

// Returns [B, C, T] with the memory order of [B, T, C]: the sums run over channels.
Tensor segment_roi_align_backward_cpu(const Tensor& grad_in,  // [K, C, R]
                                      const Tensor& rois_in,  // [K, 3]
                                      int64_t batch, int64_t rows, int64_t sampling_ratio,
                                      bool aligned) {
  constexpr const char* kOp = "segment_roi_align_backward";
  check_segment_roi_align_gradient(grad_in, rois_in, sampling_ratio);
  const ScalarType type = grad_in.scalar_type();
  const Tensor rois = checked_rois(kOp, rois_in, batch, aligned);
  const int64_t count = rois.size(0);
  const RoiAlignShape shape{grad_in.size(1), rows, grad_in.size(2), sampling_ratio, aligned};
  if (grad_in.numel() == 0 || rows == 0) {
    const Tensor zeros = torch::stable::new_zeros(grad_in, {batch, rows, shape.channels});
    return torch::stable::transpose(zeros, 1, 2);
  }
  Tensor out = empty_beside(grad_in, {batch, rows, shape.channels});
  const Tensor grad = as_contiguous(grad_in);
  // Each task owns (batch item, channels): no two write the same element, and the order of its sum
  // does not depend on how many blocks there are.
  const int64_t block = backward_block(shape, batch);
  const int64_t blocks = (shape.channels + block - 1) / block;
  dispatch_float(type, kOp, "grad", [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    const Stored* grad_data = const_data<Stored>(grad);
    Stored* target = mutable_data<Stored>(out);
    with_rois(rois, [&](const auto* roi_data) {
      using Roi = std::decay_t<decltype(*roi_data)>;
      const RoisByItem grouped = group_by_item(roi_data, count, batch);
      torch::stable::parallel_for(0, batch * blocks, 1, [&](int64_t begin, int64_t end) {
        // One scratch for all tasks of a thread; the kernel zeroes it.
        const std::unique_ptr<ComputeType<Stored>[]> sums(
            new ComputeType<Stored>[static_cast<size_t>(rows * block)]);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t item = task / blocks;
          const int64_t first = (task % blocks) * block;
          const int64_t start = grouped.starts[item];
          TAL_FAST_ISA_CALL(segment_roi_align_backward<Stored, Roi>)(
              grad_data, roi_data, grouped.members.data() + start, grouped.starts[item + 1] - start,
              shape, first, std::min(first + block, shape.channels), sums.get(),
              target + item * rows * shape.channels);
        }
      });
    });
  });
  return torch::stable::transpose(out, 1, 2);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "segment_roi_align(Tensor features, Tensor rois, SymInt output_size, int sampling_ratio=0, "
      "bool aligned=False) -> Tensor");
  m.def(
      "segment_roi_align_backward(Tensor grad, Tensor rois, SymInt batch, SymInt rows, "
      "int sampling_ratio, bool aligned=False) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("segment_roi_align", TORCH_BOX(&segment_roi_align_cpu));
  m.impl("segment_roi_align_backward", TORCH_BOX(&segment_roi_align_backward_cpu));
}

}  // namespace tal_fast
