// SPDX-License-Identifier: Apache-2.0
// local_attn: schema and CPU implementation; fake and autograd are in tal_fast/ops/local_attn.py.
#include "ops/local_attn.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "cpu/local_attn.h"
#include "cpu/scratch.h"

namespace tal_fast {
namespace {

// Multiply-adds per task, about 50 us of one core: a thread is not worth waking for less.
constexpr int64_t kWorkPerTask = 2000000;
// Rows of a unit. More share the rows around them, fewer leave work for more threads. It depends on
// the sizes alone: results must not change with the number of threads.
constexpr int64_t kMostRows = 288;
constexpr int64_t kFewestRows = 36;
constexpr int64_t kEnoughUnits = 32;

struct Units {
  int64_t block;
  int64_t count;
  int64_t grain;
};

// `products`: with the band, each of T * window * D multiply-adds.
Units units_of(const LocalAttnShape& shape, int64_t products) {
  const auto count = [&](int64_t block) {
    return shape.batch * shape.heads * ((shape.rows + block - 1) / block);
  };
  int64_t block = kMostRows;
  while (block > kFewestRows && count(block) < kEnoughUnits) {
    block /= 2;
  }
  const int64_t work = products * block * shape.window() * shape.channels;
  return {block, count(block), std::max<int64_t>(1, kWorkPerTask / std::max<int64_t>(1, work))};
}

// The weights are empty if they are not asked for.
std::tuple<Tensor, Tensor> local_attn_cpu(const Tensor& query,  // [B, T, H, D]
                                          const Tensor& key,    // [B, T, H, D]
                                          const Tensor& value,  // [B, T, H, D]
                                          int64_t window,
                                          const std::optional<Tensor>& mask,  // [B, T]
                                          bool with_weights) {
  check_local_attn("local_attn", query, key, value, window, mask);
  const LocalAttnShape shape = local_attn_shape(query, window);
  const Tensor out = empty_beside(query, {shape.batch, shape.rows, shape.heads, shape.channels});
  std::vector<int64_t> kept{0};
  if (with_weights) {
    kept = {shape.batch, shape.rows, shape.heads, shape.window()};
  }
  const Tensor weights = empty_beside(query, kept, compute_type(query.scalar_type()));
  if (out.numel() == 0) {
    return {out, weights};
  }
  const LocalAttnPadding padding(mask);
  const Units units = units_of(shape, 2);
  dispatch_float(query.scalar_type(), "local_attn", "query", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const size_t bytes = TAL_FAST_ISA_CALL(local_attn_scratch<T>)(shape, units.block, false);
    const cpu::LocalAttnForward<T> call = {
        shape,
        units.block,
        local_attn_input<T>(query),
        local_attn_input<T>(key),
        local_attn_input<T>(value),
        padding.data(),
        mutable_data<T>(out),
        with_weights ? mutable_data<ComputeType<T>>(weights) : nullptr};
    torch::stable::parallel_for(0, units.count, units.grain, [&](int64_t begin, int64_t end) {
      const cpu::Scratch scratch(bytes);
      TAL_FAST_ISA_CALL(local_attn_forward<T>)(call, begin, end, scratch.get());
    });
  });
  return {out, weights};
}

// What is not asked for comes back empty.
std::tuple<Tensor, Tensor, Tensor> local_attn_backward_cpu(
    const Tensor& grad,                    // [B, T, H, D]
    const Tensor& query,                   // [B, T, H, D]
    const Tensor& key,                     // [B, T, H, D]
    const Tensor& value,                   // [B, T, H, D]
    const std::optional<Tensor>& weights,  // [B, T, H, W]
    int64_t window,
    const std::optional<Tensor>& mask,  // [B, T]
    bool needs_query, bool needs_key, bool needs_value) {
  check_local_attn("local_attn_backward", query, key, value, window, mask);
  check_local_attn_gradient(grad, query);
  const LocalAttnShape shape = local_attn_shape(query, window);
  if (weights) {
    check_local_attn_weights(*weights, query, shape);
  }
  const auto output = [&](bool wanted) {
    std::vector<int64_t> sizes{0};
    if (wanted) {
      sizes = {shape.batch, shape.rows, shape.heads, shape.channels};
    }
    return empty_beside(query, sizes);
  };
  const Tensor grad_query = output(needs_query);
  const Tensor grad_key = output(needs_key);
  const Tensor grad_value = output(needs_value);
  if (query.numel() == 0 || !(needs_query || needs_key || needs_value)) {
    return {grad_query, grad_key, grad_value};
  }
  const LocalAttnPadding padding(mask);
  const Units units = units_of(shape, 5);
  std::optional<Tensor> kept;
  if (weights) {
    kept = as_contiguous(*weights);
  }
  dispatch_float(query.scalar_type(), "local_attn_backward", "query", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const size_t bytes = TAL_FAST_ISA_CALL(local_attn_scratch<T>)(shape, units.block, true);
    const auto target = [](const Tensor& tensor, bool wanted) {
      return wanted ? mutable_data<T>(tensor) : nullptr;
    };
    const cpu::LocalAttnBackward<T> call = {shape,
                                            units.block,
                                            local_attn_input<T>(grad),
                                            local_attn_input<T>(query),
                                            local_attn_input<T>(key),
                                            local_attn_input<T>(value),
                                            padding.data(),
                                            kept ? const_data<ComputeType<T>>(*kept) : nullptr,
                                            target(grad_query, needs_query),
                                            target(grad_key, needs_key),
                                            target(grad_value, needs_value)};
    torch::stable::parallel_for(0, units.count, units.grain, [&](int64_t begin, int64_t end) {
      const cpu::Scratch scratch(bytes);
      TAL_FAST_ISA_CALL(local_attn_backward<T>)(call, begin, end, scratch.get());
    });
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "local_attn(Tensor query, Tensor key, Tensor value, SymInt window, Tensor? mask, "
      "bool with_weights) -> (Tensor, Tensor)");
  m.def(
      "local_attn_backward(Tensor grad, Tensor query, Tensor key, Tensor value, "
      "Tensor? weights, SymInt window, Tensor? mask, bool needs_query, bool needs_key, "
      "bool needs_value) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("local_attn", TORCH_BOX(&local_attn_cpu));
  m.impl("local_attn_backward", TORCH_BOX(&local_attn_backward_cpu));
}

}  // namespace tal_fast
