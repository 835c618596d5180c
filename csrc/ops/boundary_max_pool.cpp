// SPDX-License-Identifier: Apache-2.0
// boundary_max_pool: schema and the CPU implementation. The forward also says where each
// maximum lies, so that the backward reads neither features nor segments again.
#include "ops/boundary_max_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "cpu/boundary_max_pool.h"
#include "math/boundary_max_pool.h"

namespace tal_fast {
namespace {

// Comparisons, or gradients and rows, per task: some 20 us of work.
constexpr int64_t kElementsPerTask = 32768;

template <typename Position>
void find_ranges(const Position* segments, int64_t batch, int64_t count, int64_t rows,
                 int32_t* ranges) {
  for (int64_t i = 0; i < batch * count; ++i) {
    for (int64_t j = 4 * i; j < 4 * i + 4; j += 2) {
      TAL_FAST_CHECK(segments[j] == segments[j] && segments[j + 1] == segments[j + 1],
                     "boundary_max_pool: expected segments without NaN, got [", segments[j], ", ",
                     segments[j + 1], "] in segment ", i % count, " of item ", i / count);
      ranges[j] = pooled_row(segments[j], rows);
      // A range that ends before it starts is its start alone.
      ranges[j + 1] = std::max(ranges[j], pooled_row(segments[j + 1], rows));
    }
  }
}

// The rows that every segment reads, [B, K, 4]: first and last of either range.
std::vector<int32_t> ranges_of(const Tensor& segments_in, int64_t rows) {
  const Tensor segments = as_contiguous(segments_in);
  const int64_t batch = segments.size(0);
  const int64_t count = segments.size(1);
  std::vector<int32_t> ranges(static_cast<size_t>(4 * batch * count));
  switch (segments.scalar_type()) {
    case ScalarType::Double:
      find_ranges(const_data<double>(segments), batch, count, rows, ranges.data());
      break;
    case ScalarType::Float:
      find_ranges(const_data<float>(segments), batch, count, rows, ranges.data());
      break;
    case ScalarType::Long:
      find_ranges(const_data<int64_t>(segments), batch, count, rows, ranges.data());
      break;
    case ScalarType::Int:
      find_ranges(const_data<int32_t>(segments), batch, count, rows, ranges.data());
      break;
    default:
      break;  // refused before
  }
  return ranges;
}

// Maxima over features [B, C, T] of any strides; `argmax` may be null.
template <typename Stored>
void pool(const Stored* features, int64_t batch_stride, cpu::BoundaryPoolStrides strides,
          int64_t batch, int64_t channels, int64_t count, const std::vector<int32_t>& ranges,
          Stored* out, int32_t* argmax) {
  // One task is the channels of one group: all of the first or all of the second half.
  const int64_t half = channels / 2;
  const int64_t group = TAL_FAST_ISA_CALL(boundary_max_pool_group<Stored>)();
  const int64_t groups = (half + group - 1) / group;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (8 * group * count));
  torch::stable::parallel_for(0, batch * 2 * groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (2 * groups);
      const int64_t second = task / groups % 2;
      const int64_t within = task % groups * group;
      const int64_t channel = second * half + within;
      const int64_t target = (b * channels + channel) * count;
      TAL_FAST_ISA_CALL(boundary_max_pool_forward<Stored>)(
          features + b * batch_stride + channel * strides.channel, strides,
          std::min(group, half - within), ranges.data() + 4 * b * count + 2 * second, count,
          out + target, argmax == nullptr ? nullptr : argmax + target);
    }
  });
}

std::tuple<Tensor, Tensor> boundary_max_pool_cpu(const Tensor& features,  // [B, C, T]
                                                 const Tensor& segments,  // [B, K, 4]
                                                 bool with_argmax, bool afsd) {
  check_boundary_max_pool(features, segments, afsd);
  const int64_t batch = features.size(0);
  const int64_t channels = features.size(1);
  const int64_t rows = features.size(2);
  const int64_t count = segments.size(1);
  const std::vector<int32_t> ranges = ranges_of(segments, rows);
  Tensor out = empty_beside(features, {batch, channels, count});
  Tensor argmax = with_argmax ? empty_beside(features, {batch, channels, count}, ScalarType::Int)
                              : empty_beside(features, {0}, ScalarType::Int);
  dispatch_float(features.scalar_type(), "boundary_max_pool", "features", [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    if (out.numel() == 0) {
      return;
    }
    int32_t* where = with_argmax ? mutable_data<int32_t>(argmax) : nullptr;
    pool(const_data<Stored>(features), features.stride(0), {features.stride(1), features.stride(2)},
         batch, channels, count, ranges, mutable_data<Stored>(out), afsd ? nullptr : where);
    if (afsd && with_argmax) {
      // The historic backward takes K for T: it looks for the maxima in the first B * C * K values
      // of the contiguous features, read as [B, C, K].
      const Tensor flat = as_contiguous(features);
      const Tensor ignored = empty_beside(out, {batch, channels, count});
      pool(const_data<Stored>(flat), channels * count, {count, 1}, batch, channels, count,
           ranges_of(segments, count), mutable_data<Stored>(ignored), where);
    }
  });
  return {out, argmax};
}

Tensor boundary_max_pool_backward_cpu(const Tensor& grad_in,    // [B, C, K]
                                      const Tensor& argmax_in,  // [B, C, K]
                                      int64_t rows, bool afsd) {
  constexpr const char* kOp = "boundary_max_pool_backward";
  const int64_t stride = check_boundary_max_pool_gradient(grad_in, argmax_in, rows, afsd);
  const int64_t batch = grad_in.size(0);
  const int64_t channels = grad_in.size(1);
  const int64_t count = grad_in.size(2);
  const Tensor grad = as_contiguous(grad_in);
  const Tensor argmax = as_contiguous(argmax_in);
  const int32_t* where = const_data<int32_t>(argmax);
  Tensor out = stride == rows ? empty_beside(grad, {batch, channels, rows})
                              : torch::stable::new_zeros(grad, {batch, channels, rows});
  std::atomic<bool> inside{true};
  dispatch_float(grad.scalar_type(), kOp, "grad", [&](auto tag) {
    using Stored = typename decltype(tag)::type;
    if (out.numel() == 0) {
      return;
    }
    const Stored* grad_data = const_data<Stored>(grad);
    Stored* target = mutable_data<Stored>(out);
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (count + rows));
    torch::stable::parallel_for(0, batch * channels, grain, [&](int64_t begin, int64_t end) {
      if (!TAL_FAST_ISA_CALL(boundary_max_pool_backward<Stored>)(
              grad_data + begin * count, where + begin * count, end - begin, count, stride,
              target + begin * stride)) {
        inside = false;
      }
    });
  });
  TAL_FAST_CHECK(inside, kOp, ": expected argmax in [0, ", stride, ")");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "boundary_max_pool(Tensor features, Tensor segments, bool with_argmax=False, "
      "bool afsd=False) -> (Tensor, Tensor)");
  m.def(
      "boundary_max_pool_backward(Tensor grad, Tensor argmax, SymInt rows, bool afsd=False) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("boundary_max_pool", TORCH_BOX(&boundary_max_pool_cpu));
  m.impl("boundary_max_pool_backward", TORCH_BOX(&boundary_max_pool_backward_cpu));
}

}  // namespace tal_fast
