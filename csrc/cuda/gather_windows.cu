// SPDX-License-Identifier: Apache-2.0
#include "cuda/gather_windows.cuh"

#include <algorithm>
#include <tuple>

#include "cuda/launch.h"
#include "ops/gather_windows.h"

namespace tal_fast {
namespace {

template <typename In, typename Out>
struct Arguments {
  const In* store;
  const int64_t* first_row;
  const int64_t* rows;
  int64_t count;
  WindowShape shape;
  Out* out;
  bool* mask;
};

template <int kWidth, typename In, typename Out>
void launch_rows(const DeviceScope& scope, const Arguments<In, Out>& a) {
  using Kernel = GatherWindows<In, Out, kWidth>;
  // At least one, so that the mask is written without channels, too.
  const int64_t blocks =
      std::max<int64_t>(1, ceil_div(a.shape.length * a.shape.channels, Kernel::kPerBlock));
  launch(scope, dim3(static_cast<unsigned>(a.count * blocks)), Kernel::kThreads, 0,
         Kernel{a.store, a.first_row, a.rows, a.shape, blocks, a.out, a.mask});
}

template <bool kPacked, typename In, typename Out>
void launch_channels(const DeviceScope& scope, const Arguments<In, Out>& a) {
  using Kernel = GatherWindowsTransposed<In, Out, kPacked>;
  const int64_t row_tiles = ceil_div(a.shape.length, Kernel::kRows);
  const int64_t channel_tiles = std::max<int64_t>(1, ceil_div(a.shape.channels, Kernel::kChannels));
  launch(scope, dim3(static_cast<unsigned>(a.count * row_tiles * channel_tiles)), Kernel::kThreads,
         SharedSize().take<Out>(Kernel::kTile).bytes(),
         Kernel{a.store, a.first_row, a.rows, a.shape, row_tiles, channel_tiles, a.out, a.mask});
}

std::tuple<Tensor, Tensor> gather_windows_cuda(const Tensor& store,         // [R, C]
                                               const Tensor& first_row_in,  // [B]
                                               const Tensor& rows_in,       // [B]
                                               int64_t length, ScalarType dtype,
                                               bool channels_first) {
  check_gather_windows(store, first_row_in, rows_in, length, dtype);
  const DeviceScope scope(store);
  const Tensor first_row = as_contiguous(first_row_in);
  const Tensor rows = as_contiguous(rows_in);
  const int64_t count = rows.size(0);
  const int64_t channels = store.size(1);
  const Tensor out = channels_first ? allocate(store, {count, channels, length}, dtype)
                                    : allocate(store, {count, length, channels}, dtype);
  const Tensor mask = allocate(store, {count, length}, ScalarType::Bool);
  if (mask.numel() == 0) {
    return {out, mask};
  }
  dispatch_widening(
      store.scalar_type(), dtype, [&]<typename In, typename Out>(TypeTag<In>, TypeTag<Out>) {
        constexpr int kWidth = kPackSize<Out>;
        const Arguments<In, Out> arguments{const_data<In>(store),
                                           const_data<int64_t>(first_row),
                                           const_data<int64_t>(rows),
                                           count,
                                           {store.size(0), channels, length},
                                           mutable_data<Out>(out),
                                           mutable_data<bool>(mask)};
        const bool aligned_rows =
            channels % kWidth == 0 &&
            reinterpret_cast<uintptr_t>(arguments.store) % (kWidth * sizeof(In)) == 0;
        if (channels_first) {
          aligned_rows&& length % kWidth == 0 ? launch_channels<true>(scope, arguments)
                                              : launch_channels<false>(scope, arguments);
        } else {
          aligned_rows ? launch_rows<kWidth>(scope, arguments) : launch_rows<1>(scope, arguments);
        }
      });
  return {out, mask};
}

}  // namespace

TAL_FAST_CUDA_IMPL(m) {
  m.impl("gather_windows", TORCH_BOX(&gather_windows_cuda));
}

}  // namespace tal_fast
