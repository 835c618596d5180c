// SPDX-License-Identifier: Apache-2.0
// local_attn on a GPU.
#include "cuda/local_attn.cuh"

#include <algorithm>
#include <optional>
#include <tuple>

#include "cuda/launch.h"
#include "ops/local_attn.h"

namespace tal_fast {
namespace {

// Shared memory that leaves room for three blocks per multiprocessor.
constexpr size_t kSharedBudget = 75 * 1024;
// Fewer rows at a time than these cost more barriers than more blocks per multiprocessor gain.
constexpr int64_t kFewestRows = 16;

// Rows that fit into shared memory beside the block's own.
template <typename Kernel>
int64_t fitting_rows(const LocalAttnShape& shape, int64_t warps, size_t bytes) {
  const size_t fixed = Kernel::shared_size(shape.channels, warps, 0).bytes();
  const size_t four = Kernel::shared_size(shape.channels, warps, 4).bytes() - fixed;
  return bytes > fixed ? static_cast<int64_t>((bytes - fixed) / four * 4) : 0;
}

template <typename T, LocalAttnPass kPass>
void launch_pass(const DeviceScope& scope, const char* op, const LocalAttnShape& shape,
                 LocalAttnKernel<T, kPass> kernel) {
  using Kernel = LocalAttnKernel<T, kPass>;
  const size_t most = scope.limits().shared_per_block;
  const auto wanted = [&](int64_t warps) {
    return std::min(warps * Kernel::kRows + 2 * shape.half, shape.rows);
  };
  int64_t warps = Kernel::kMostWarps;
  int64_t chunk = fitting_rows<Kernel>(shape, warps, std::min(kSharedBudget, most));
  if (chunk < std::min(wanted(warps), kFewestRows)) {
    chunk = fitting_rows<Kernel>(shape, warps, most);
  }
  for (; warps > 1 && chunk < std::min(wanted(warps), kFewestRows); warps /= 2) {
    chunk = fitting_rows<Kernel>(shape, warps / 2, most);
  }
  TAL_FAST_CHECK(chunk > 0, op, ": expected channels D that fit into the shared memory of a GPU, ",
                 most, " bytes, got D = ", shape.channels);
  kernel.shape = shape;
  kernel.warps = static_cast<int>(warps);
  kernel.chunk = static_cast<int>(std::min(wanted(warps), chunk));
  const int64_t blocks = shape.batch * shape.heads * ceil_div(shape.rows, warps * Kernel::kRows);
  launch(scope, dim3(static_cast<unsigned>(blocks)), kernel.warps * kWarp,
         Kernel::shared_size(shape.channels, warps, kernel.chunk).bytes(), kernel);
}

// The backward of a GPU computes the weights again: they come back empty, even if asked for.
std::tuple<Tensor, Tensor> local_attn_cuda(const Tensor& query,  // [B, T, H, D]
                                           const Tensor& key,    // [B, T, H, D]
                                           const Tensor& value,  // [B, T, H, D]
                                           int64_t window,
                                           const std::optional<Tensor>& mask,  // [B, T]
                                           bool /*with_weights*/) {
  check_local_attn("local_attn", query, key, value, window, mask);
  const LocalAttnShape shape = local_attn_shape(query, window);
  const DeviceScope scope(query);
  const Tensor out = allocate(query, {shape.batch, shape.rows, shape.heads, shape.channels});
  const Tensor weights = allocate(query, {0}, compute_type(query.scalar_type()));
  if (out.numel() == 0) {
    return {out, weights};
  }
  const LocalAttnPadding padding(mask);
  dispatch_float(query.scalar_type(), "local_attn", "query", [&](auto tag) {
    using T = typename decltype(tag)::type;
    LocalAttnKernel<T, LocalAttnPass::kForward> kernel = {};
    kernel.owned = local_attn_input<T>(query);
    kernel.others = local_attn_input<T>(key);
    kernel.others_second = local_attn_input<T>(value);
    kernel.padding = padding.data();
    kernel.out = mutable_data<T>(out);
    launch_pass(scope, "local_attn", shape, kernel);
  });
  return {out, weights};
}

// What is not asked for comes back empty.
std::tuple<Tensor, Tensor, Tensor> local_attn_backward_cuda(
    const Tensor& grad,   // [B, T, H, D]
    const Tensor& query,  // [B, T, H, D]
    const Tensor& key,    // [B, T, H, D]
    const Tensor& value,  // [B, T, H, D]
    const std::optional<Tensor>& /*weights*/, int64_t window,
    const std::optional<Tensor>& mask,  // [B, T]
    bool needs_query, bool needs_key, bool needs_value) {
  constexpr const char* kOp = "local_attn_backward";
  check_local_attn(kOp, query, key, value, window, mask);
  check_local_attn_gradient(grad, query);
  const LocalAttnShape shape = local_attn_shape(query, window);
  const DeviceScope scope(query);
  const auto output = [&](bool wanted) {
    return wanted ? allocate(query, {shape.batch, shape.rows, shape.heads, shape.channels})
                  : allocate(query, {0});
  };
  const Tensor grad_query = output(needs_query);
  const Tensor grad_key = output(needs_key);
  const Tensor grad_value = output(needs_value);
  if (query.numel() == 0 || !(needs_query || needs_key || needs_value)) {
    return {grad_query, grad_key, grad_value};
  }
  const LocalAttnPadding padding(mask);
  const int64_t rows = shape.batch * shape.heads * shape.rows;
  const Tensor sums = allocate(query, {3, rows}, compute_type(query.scalar_type()));
  dispatch_float(query.scalar_type(), kOp, "query", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = ComputeType<T>;
    const auto target = [](const Tensor& tensor, bool wanted) {
      return wanted ? mutable_data<T>(tensor) : nullptr;
    };
    C* sum_data = mutable_data<C>(sums);
    const LocalAttnRowSums<C> row_sums{sum_data, sum_data + rows, sum_data + 2 * rows};

    LocalAttnKernel<T, LocalAttnPass::kQuery> by_row = {};
    by_row.owned = local_attn_input<T>(query);
    by_row.owned_gradient = local_attn_input<T>(grad);
    by_row.others = local_attn_input<T>(key);
    by_row.others_second = local_attn_input<T>(value);
    by_row.padding = padding.data();
    by_row.row_sums = row_sums;
    by_row.out = target(grad_query, needs_query);
    launch_pass(scope, kOp, shape, by_row);
    if (!needs_key && !needs_value) {
      return;
    }
    LocalAttnKernel<T, LocalAttnPass::kKeys> by_key = {};
    by_key.owned = local_attn_input<T>(key);
    by_key.owned_gradient = local_attn_input<T>(value);
    by_key.others = local_attn_input<T>(query);
    by_key.others_second = local_attn_input<T>(grad);
    by_key.padding = padding.data();
    by_key.row_sums = row_sums;
    by_key.out = target(grad_key, needs_key);
    by_key.out_second = target(grad_value, needs_value);
    launch_pass(scope, kOp, shape, by_key);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("local_attn", TORCH_BOX(&local_attn_cuda));
  m.impl("local_attn_backward", TORCH_BOX(&local_attn_backward_cuda));
}

}  // namespace tal_fast
