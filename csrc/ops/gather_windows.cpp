// SPDX-License-Identifier: Apache-2.0
// gather_windows: schema and the CPU implementation.
#include "ops/gather_windows.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "cpu/gather_windows.h"

namespace tal_fast {
namespace {

// Elements per task: some 20 us at the speed of copying.
constexpr int64_t kElementsPerTask = 65536;
// Rows per task of the transposing copy: whole cache lines of the output.
constexpr int64_t kRowAlignment = 64;

void check_ranges(const int64_t* first_row, const int64_t* rows, int64_t count, int64_t store_rows,
                  int64_t length) {
  for (int64_t b = 0; b < count; ++b) {
    TAL_FAST_CHECK(rows[b] >= 0 && rows[b] <= length, "gather_windows: expected rows in [0, ",
                   length, "], got ", rows[b], " for window ", b);
    // Compared by subtraction: a sum could overflow.
    TAL_FAST_CHECK(first_row[b] >= 0 && first_row[b] <= store_rows - rows[b],
                   "gather_windows: expected windows within the ", store_rows,
                   " rows of store, got first_row ", first_row[b], " with ", rows[b],
                   " rows for window ", b);
  }
}

// Rows [begin, end) of a window, and the padding among them.
template <typename In, typename Out>
void gather(const In* source,  // [rows, C]
            int64_t rows, int64_t channels, int64_t length, bool channels_first, int64_t begin,
            int64_t end,
            Out* out) {  // [length, C] or [C, length]
  const int64_t real = std::clamp(rows, begin, end);
  const In* from = source + begin * channels;
  if (channels_first) {
    TAL_FAST_ISA_CALL(gather_channels<In, Out>)(from, real - begin, channels, out + begin, length);
    for (int64_t c = 0; c < channels; ++c) {
      std::fill(out + c * length + real, out + c * length + end, Out{});
    }
  } else {
    TAL_FAST_ISA_CALL(gather_rows<In, Out>)(from, (real - begin) * channels,
                                            out + begin * channels);
    std::fill(out + real * channels, out + end * channels, Out{});
  }
}

std::tuple<Tensor, Tensor> gather_windows_cpu(const Tensor& store,         // [R, C]
                                              const Tensor& first_row_in,  // [B]
                                              const Tensor& rows_in,       // [B]
                                              int64_t length, ScalarType dtype,
                                              bool channels_first) {
  check_gather_windows(store, first_row_in, rows_in, length, dtype);
  const Tensor first_row = as_contiguous(first_row_in);
  const Tensor rows = as_contiguous(rows_in);
  const int64_t* first_data = const_data<int64_t>(first_row);
  const int64_t* rows_data = const_data<int64_t>(rows);
  const int64_t count = rows.size(0);
  const int64_t channels = store.size(1);
  check_ranges(first_data, rows_data, count, store.size(0), length);
  Tensor out = channels_first ? empty_beside(store, {count, channels, length}, dtype)
                              : empty_beside(store, {count, length, channels}, dtype);
  Tensor mask = empty_beside(store, {count, length}, ScalarType::Bool);
  if (mask.numel() == 0) {
    return {out, mask};
  }
  bool* mask_data = mutable_data<bool>(mask);
  const int64_t wanted = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, channels));
  const int64_t part =
      channels_first ? (wanted + kRowAlignment - 1) / kRowAlignment * kRowAlignment : wanted;
  const int64_t parts = (length + part - 1) / part;
  const int64_t grain = std::max<int64_t>(1, wanted / std::min(part, length));
  dispatch_widening(
      store.scalar_type(), dtype, [&]<typename In, typename Out>(TypeTag<In>, TypeTag<Out>) {
        const In* source = const_data<In>(store);
        Out* target = mutable_data<Out>(out);
        torch::stable::parallel_for(0, count * parts, grain, [&](int64_t first, int64_t last) {
          for (int64_t task = first; task < last; ++task) {
            const int64_t b = task / parts;
            const int64_t begin = task % parts * part;
            const int64_t end = std::min(length, begin + part);
            gather(source + first_data[b] * channels, rows_data[b], channels, length,
                   channels_first, begin, end, target + b * length * channels);
            for (int64_t t = begin; t < end; ++t) {
              mask_data[b * length + t] = t >= rows_data[b];
            }
          }
        });
      });
  return {out, mask};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "gather_windows(Tensor store, Tensor first_row, Tensor rows, SymInt length, "
      "ScalarType dtype, bool channels_first=False) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("gather_windows", TORCH_BOX(&gather_windows_cpu));
}

}  // namespace tal_fast
