// SPDX-License-Identifier: Apache-2.0
// rows_to_tiles, tiles_to_rows: schemas and the CPU implementation. They are parts of a convolution
// on a CPU (tal_fast/ops/conv_tiles.py) and have no CUDA kernels: on a GPU the products that they
// save are cheaper than they are.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu/conv_tiles.h"
#include "cpu/huge_pages.h"
#include "ops/tensor_checks.h"

namespace tal_fast {
namespace {

using cpu::kTilePlanes;
using cpu::kTileRows;
using cpu::TileSpan;

constexpr int64_t kElementsPerTask = 65536;  // about 20 us

// Spans in a row, with the number of the first tile of each, and of the tiles in all.
struct Tiling {
  std::vector<TileSpan> spans;
  std::vector<int64_t> first_tile;  // one more than spans

  int64_t tiles() const { return first_tile.back(); }
};

// `flat` holds first, end, low and high of each span.
Tiling make_tiling(const char* op, const std::vector<int64_t>& flat, int64_t rows) {
  TAL_FAST_CHECK(flat.size() % 4 == 0, op, ": expected four numbers per span, got ", flat.size(),
                 " in all");
  Tiling tiling{{}, {0}};
  int64_t done = 0;  // rows before it belong to an earlier span
  for (size_t i = 0; i < flat.size(); i += 4) {
    const TileSpan span{flat[i], flat[i + 1], flat[i + 2], flat[i + 3]};
    TAL_FAST_CHECK(0 <= span.low && span.low <= span.first && span.first < span.end &&
                       span.end <= span.high && span.high <= rows,
                   op, ": expected 0 <= low <= first < end <= high <= ", rows,
                   " in each span, got first ", span.first, ", end ", span.end, ", low ", span.low,
                   ", high ", span.high, " in span ", i / 4);
    const int64_t begin = std::max(span.first - 1, span.low);
    TAL_FAST_CHECK(begin >= done, op,
                   ": expected spans in order, without a row that two of them read, got row ",
                   begin, " in span ", i / 4, " and before");
    done = std::min(span.end + 1, span.high);
    tiling.spans.push_back(span);
    tiling.first_tile.push_back(tiling.tiles() +
                                (span.end - span.first + kTileRows - 1) / kTileRows);
  }
  return tiling;
}

// Calls body(span, its first tile, begin, end) for the tiles of all spans, in tasks.
template <typename Body>
void for_tiles(const Tiling& tiling, int64_t channels, Body&& body) {
  const int64_t grain =
      std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, kTilePlanes * channels));
  torch::stable::parallel_for(0, tiling.tiles(), grain, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < tiling.spans.size(); ++i) {
      const int64_t first = tiling.first_tile[i];
      const int64_t from = std::max(begin, first);
      const int64_t to = std::min(end, tiling.first_tile[i + 1]);
      if (from < to) {
        body(tiling.spans[i], first, from - first, to - first);
      }
    }
  });
}

template <typename Body>
void dispatch_wide(ScalarType type, const char* op, const char* argument, Body&& body) {
  TAL_FAST_CHECK(type == ScalarType::Double || type == ScalarType::Float, op, ": expected ",
                 argument, " of dtype float64 or float32, got ", dtype_string(type));
  return type == ScalarType::Double ? body(TypeTag<double>{}) : body(TypeTag<float>{});
}

Tensor rows_to_tiles_cpu(const Tensor& rows_in,  // [R, C]
                         const std::vector<int64_t>& spans, bool inputs) {
  constexpr const char* kOp = "rows_to_tiles";
  TAL_FAST_CHECK(rows_in.dim() == 2, kOp, ": expected rows of shape [R, C], got ",
                 shape_string(rows_in));
  const Tiling tiling = make_tiling(kOp, spans, rows_in.size(0));
  const Tensor rows = as_contiguous(rows_in);
  const int64_t channels = rows.size(1);
  const int64_t plane = tiling.tiles() * channels;
  Tensor out = empty_beside(rows, {kTilePlanes, tiling.tiles(), channels});
  dispatch_wide(rows.scalar_type(), kOp, "rows", [&]<typename T>(TypeTag<T>) {
    const T* source = const_data<T>(rows);
    T* target = mutable_data<T>(out);
    cpu::advise_huge_pages(target, out.numel() * static_cast<int64_t>(sizeof(T)));
    for_tiles(tiling, channels,
              [&](const TileSpan& span, int64_t first, int64_t begin, int64_t end) {
                TAL_FAST_ISA_CALL(rows_to_tiles<T>)(source, span, inputs, channels, begin, end,
                                                    target + first * channels, plane);
              });
  });
  return out;
}

Tensor tiles_to_rows_cpu(const Tensor& tiles_in,  // [6, N, C]
                         const std::vector<int64_t>& spans, int64_t row_count, bool inputs) {
  constexpr const char* kOp = "tiles_to_rows";
  TAL_FAST_CHECK(row_count >= 0, kOp, ": expected rows >= 0, got ", row_count);
  const Tiling tiling = make_tiling(kOp, spans, row_count);
  TAL_FAST_CHECK(
      tiles_in.dim() == 3 && tiles_in.size(0) == kTilePlanes && tiles_in.size(1) == tiling.tiles(),
      kOp, ": expected tiles of shape [", kTilePlanes, ", ", tiling.tiles(), ", C], got ",
      shape_string(tiles_in));
  const Tensor tiles = as_contiguous(tiles_in);
  const int64_t channels = tiles.size(2);
  const int64_t plane = tiling.tiles() * channels;
  Tensor out = empty_beside(tiles, {row_count, channels});
  dispatch_wide(tiles.scalar_type(), kOp, "tiles", [&]<typename T>(TypeTag<T>) {
    const T* source = const_data<T>(tiles);
    T* target = mutable_data<T>(out);
    cpu::advise_huge_pages(target, out.numel() * static_cast<int64_t>(sizeof(T)));
    int64_t done = 0;
    for (const TileSpan& span : tiling.spans) {
      const int64_t begin = inputs ? std::max(span.first - 1, span.low) : span.first;
      std::fill(target + done * channels, target + begin * channels, T(0));
      done = inputs ? std::min(span.end + 1, span.high) : span.end;
    }
    std::fill(target + done * channels, target + row_count * channels, T(0));
    for_tiles(tiling, channels,
              [&](const TileSpan& span, int64_t first, int64_t begin, int64_t end) {
                TAL_FAST_ISA_CALL(tiles_to_rows<T>)(source + first * channels, plane, span, inputs,
                                                    channels, begin, end, target);
              });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def("rows_to_tiles(Tensor rows, SymInt[] spans, bool inputs) -> Tensor");
  m.def("tiles_to_rows(Tensor tiles, SymInt[] spans, SymInt rows, bool inputs) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("rows_to_tiles", TORCH_BOX(&rows_to_tiles_cpu));
  m.impl("tiles_to_rows", TORCH_BOX(&tiles_to_rows_cpu));
}

}  // namespace tal_fast
