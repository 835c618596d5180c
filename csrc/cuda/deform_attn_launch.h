// SPDX-License-Identifier: Apache-2.0
// What deform_attn and deform_attn_fused share on a GPU: the choice of kernels and their launches.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cuda/deform_attn_forward.cuh"
#include "cuda/deform_attn_packs.cuh"
#include "cuda/launch.h"
#include "ops/deform_attn.h"

namespace tal_fast {

inline Dtype any_dtype(ScalarType type) {
  return type == ScalarType::Double     ? Dtype::kFloat64
         : type == ScalarType::Half     ? Dtype::kFloat16
         : type == ScalarType::BFloat16 ? Dtype::kBFloat16
                                        : Dtype::kFloat32;
}

template <typename C>
AnyInput<C> any_input(const Tensor& tensor) {
  return {tensor.const_data_ptr(), any_dtype(tensor.scalar_type())};
}

// `wanted` false: null.
template <typename C>
AnyOutput<C> any_output(const Tensor& tensor, bool wanted) {
  return {wanted ? tensor.mutable_data_ptr() : nullptr, any_dtype(tensor.scalar_type())};
}

inline DeformAttnSizes device_sizes(const char* op, const DeformAttnShape& shape) {
  // The kernels count rows, and samples of a query and head, in 32 bits.
  TAL_FAST_CHECK(shape.rows < int64_t{1} << 31 && shape.levels * shape.points < int64_t{1} << 30,
                 op, ": expected fewer than 2^31 rows and 2^30 samples per query and head, got ",
                 shape.rows, " and ", shape.levels * shape.points);
  return {shape.batch,
          shape.rows,
          shape.heads,
          shape.channels,
          shape.queries,
          static_cast<int>(shape.levels),
          static_cast<int>(shape.points),
          static_cast<int>(shape.levels * shape.points)};
}

// Levels for the kernels' parameters, and what must outlive their launches.
struct DeviceLevels {
  Levels levels{};
  std::vector<Tensor> table;  // at most one

  DeviceLevels(const DeviceScope& scope, const Tensor& like, const DeformAttnShape& shape) {
    std::vector<Level> all;
    int64_t start = 0;
    for (int64_t l = 0; l < shape.levels; ++l) {
      all.push_back({start, static_cast<int32_t>(shape.level_lengths[l])});
      start += shape.level_lengths[l];
    }
    if (all.size() <= kLevelsInside) {
      std::copy(all.begin(), all.end(), levels.inside);
      return;
    }
    constexpr size_t kPart = DeformAttnLevelTable::kThreads;
    table.push_back(
        allocate(like, {static_cast<int64_t>(all.size() * sizeof(Level))}, ScalarType::Byte));
    auto* target = mutable_data<Level>(table[0]);
    for (size_t first = 0; first < all.size(); first += kPart) {
      DeformAttnLevelTable kernel{};
      kernel.count = static_cast<int>(std::min(kPart, all.size() - first));
      std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(first), kernel.count, kernel.part);
      kernel.table = target + first;
      launch(scope, dim3(1), DeformAttnLevelTable::kThreads, 0, kernel);
    }
    levels.table = target;
  }
};

inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

inline int log2_at_least(int64_t value) {
  int log2 = 0;
  while (int64_t{1} << log2 < value) {
    ++log2;
  }
  return log2;
}

inline unsigned grid_size(const char* name, int64_t blocks) {
  TAL_FAST_CHECK(blocks < int64_t{1} << 31, name, ": ", blocks,
                 " blocks exceed the 2147483647 of a grid");
  return static_cast<unsigned>(blocks);
}

constexpr int64_t kMostLanes = 8;  // per side of a query: 128 bytes of a row
// Rows of a slice are not made narrower to fit. Every slice prepares all samples anew: four slices
// of 32 bytes cost more instructions than a slice of 128 bytes in global memory, two of 64 fewer.
constexpr int64_t kLeastRowBytes = 64;

// How one head's channels are cut, and whether the rows of a slice are staged.
struct Slicing {
  int lanes_log2;
  int slices;
  size_t staged_bytes;  // 0: they are not

  int64_t lanes() const { return int64_t{1} << lanes_log2; }
};

// Whether the samples of a head read its rows at least once: else staging moves more than it saves.
inline bool is_dense(const DeformAttnShape& shape) {
  return 2 * shape.queries * shape.levels * shape.points >= shape.rows;
}

inline Slicing slice_forward(const DeformAttnShape& shape, int64_t pack, size_t limit,
                             int64_t most_lanes = kMostLanes) {
  const int64_t packs = std::max<int64_t>(1, ceil_div(shape.channels, pack));
  const auto cut = [&](int64_t slices) {
    const int log2 = log2_at_least(ceil_div(packs, slices));
    return Slicing{log2, static_cast<int>(ceil_div(packs, int64_t{1} << log2)),
                   static_cast<size_t>(shape.rows + 1) * (size_t{16} << log2)};
  };
  const Slicing widest = cut(ceil_div(packs, most_lanes));
  for (Slicing slicing = widest; is_dense(shape); slicing = cut(int64_t{2} * slicing.slices)) {
    if (slicing.staged_bytes <= limit) {
      return slicing;
    }
    if (16 * slicing.lanes() <= kLeastRowBytes) {
      break;
    }
  }
  return {widest.lanes_log2, widest.slices, 0};
}

// Blocks of queries per head and slice, `blocks` being there without: as many as `wanted` allows,
// so that all run at once, but none with fewer samples than rows to stage, or than `least_queries`.
inline int64_t query_blocks(const DeformAttnShape& shape, int64_t blocks, int64_t wanted,
                            bool staged, int64_t least_queries) {
  if (staged) {
    const int64_t samples = std::max<int64_t>(1, 2 * shape.levels * shape.points);
    least_queries = std::max(least_queries, ceil_div(shape.rows, samples));
  }
  const int64_t most = std::max<int64_t>(1, shape.queries / std::max<int64_t>(1, least_queries));
  return std::clamp<int64_t>(wanted / std::max<int64_t>(1, blocks), 1, most);
}

// The blocks of a forward kernel.
struct ForwardGrid {
  int64_t blocks;
  int64_t whole;     // heads and slices that a block does one after the other, all of each, ...
  int64_t per_head;  // before so many blocks share one
  int64_t queries;   // of a block there
  int threads;
};

// `lanes` per query. `takes_turns`: whether the kernel can take more than one head and slice per
// block.
inline ForwardGrid forward_grid(const DeviceLimits& limits, const DeformAttnShape& shape,
                                const Slicing& slicing, int64_t lanes, bool staged,
                                int64_t most_threads, bool takes_turns) {
  const int64_t blocks = shape.batch * shape.heads * slicing.slices;
  // Blocks of 512 threads, two on a multiprocessor, unless shared memory lets in only one.
  const bool alone = staged && 2 * (slicing.staged_bytes + 1024) > limits.shared_per_multiprocessor;
  if (staged && !alone) {
    most_threads = 512;
  }
  const int64_t wanted = (alone ? 1 : 2) * limits.multiprocessors;
  // A second wave of blocks would leave most multiprocessors without one: they share its queries.
  const int64_t whole = takes_turns && alone ? (blocks - 1) / wanted : 0;
  int64_t per_head = query_blocks(shape, blocks - whole * wanted, wanted, staged, kWarp / lanes);
  if (!staged) {
    // Nothing to stage, so blocks may be short: a few rounds of their queries.
    per_head = std::max(per_head, ceil_div(shape.queries * 2 * slicing.lanes(), 4 * most_threads));
  }
  const int64_t queries = ceil_div(shape.queries, per_head);
  per_head = ceil_div(shape.queries, queries);
  const int64_t most_queries = whole > 0 ? shape.queries : queries;
  const int64_t threads =
      std::min(most_threads, ceil_div(most_queries * lanes, int64_t{kWarp}) * kWarp);
  return {whole > 0 ? wanted : blocks * per_head, whole, per_head, queries,
          static_cast<int>(threads)};
}

template <typename T, bool kStaged, typename Source>
void launch_forward(const DeviceScope& scope, const char* op, const DeformAttnShape& shape,
                    const Levels& levels, const Source& source, const Tensor& value,
                    const bool* padding, const Slicing& slicing, const Tensor& out) {
  using Kernel = DeformAttnForward<T, Source, kStaged>;
  const ForwardGrid grid = forward_grid(scope.limits(), shape, slicing, 2 * slicing.lanes(),
                                        kStaged, Kernel::kThreads, false);
  const int64_t pack = kPackSize<T>;
  Kernel kernel{};
  kernel.sizes = device_sizes(op, shape);
  kernel.source = source;
  kernel.value = const_data<T>(value);
  kernel.padding = padding;
  kernel.out = mutable_data<T>(out);
  kernel.aligned = shape.channels % pack == 0 && is_aligned(value) && is_aligned(out);
  kernel.lanes_log2 = slicing.lanes_log2;
  kernel.slices = slicing.slices;
  kernel.queries_per_block = static_cast<int>(grid.queries);
  kernel.query_blocks = static_cast<int>(grid.per_head);
  kernel.levels = levels;
  launch(scope, dim3(grid_size(Kernel::kName, grid.blocks)), grid.threads, slicing.staged_bytes,
         kernel);
}

// ---- samples of known dtypes --------------------------------------------------------------------
// Those that come up: locations (reference points) in float32, weights (offsets and logits) in the
// dtype of value.

template <typename T>
constexpr Dtype kDtypeOf = std::is_same_v<T, Half>       ? Dtype::kFloat16
                           : std::is_same_v<T, BFloat16> ? Dtype::kBFloat16
                                                         : Dtype::kFloat32;

template <typename Weight>
TypedGivenSamples<Weight> typed(const GivenSamples<float>& source) {
  return {static_cast<const float*>(source.locations.data),
          static_cast<const Weight*>(source.weights.data)};
}

template <typename Projected>
TypedProjectedSamples<Projected> typed(const ProjectedSamples<float>& source) {
  return {static_cast<const Projected*>(source.offsets.data),
          source.offsets_batch_stride,
          source.offsets_query_stride,
          static_cast<const Projected*>(source.logits.data),
          source.logits_batch_stride,
          source.logits_query_stride,
          static_cast<const float*>(source.reference.data),
          source.reference_batch_stride,
          source.reference_query_stride,
          source.components,
          source.part};
}

inline bool has_dtypes(const GivenSamples<float>& source, Dtype weights) {
  return source.locations.dtype == Dtype::kFloat32 && source.weights.dtype == weights;
}
inline bool has_dtypes(const ProjectedSamples<float>& source, Dtype projected) {
  return source.reference.dtype == Dtype::kFloat32 && source.offsets.dtype == projected &&
         source.logits.dtype == projected;
}
inline int64_t longest_stride(const GivenSamples<float>&) {
  return 0;
}
inline int64_t longest_stride(const ProjectedSamples<float>& source) {
  return std::max(
      {source.offsets_query_stride, source.logits_query_stride, source.reference_query_stride});
}

// Whether a kernel of deform_attn_packs.cuh can do it: 64 or 128 bytes of a row, 64 in float32 only
// where rows are staged; whole packs, levels within the parameters, 32 bits for all that they count
// in them.
template <typename T, typename Source>
bool fits_packs(const DeformAttnShape& shape, const Source& source, const Tensor& value,
                const Tensor& out, const Slicing& slicing) {
  constexpr int64_t kMost = int64_t{1} << 31;
  constexpr int64_t kMostLanesOfBlock = 1024;
  const int64_t samples = shape.levels * shape.points;
  const int64_t query = std::max(shape.heads * samples, longest_stride(source));
  const int64_t row = shape.heads * shape.channels;
  const bool staged = slicing.staged_bytes > 0;
  const int log2 = slicing.lanes_log2;
  return (log2 == 3 || (log2 == 2 && (sizeof(T) == 2 || staged))) &&
         shape.channels % (slicing.lanes() * kPackSize<T>) == 0 && is_aligned(value) &&
         is_aligned(out) && shape.levels <= static_cast<int64_t>(kLevelsInside) && samples > 0 &&
         samples * shape.points < 65536 && shape.batch * shape.heads * slicing.slices < kMost &&
         row * kMostLanesOfBlock < kMost && row * samples * kMostLanesOfBlock < kMost &&
         (shape.queries + kMostLanesOfBlock) * query < kMost && shape.rows * row < kMost;
}

template <typename T, int kLog2, PackPath kPath, typename Source>
void launch_packs(const DeviceScope& scope, const char* op, const DeformAttnShape& shape,
                  const Levels& levels, const Source& source, const Tensor& value,
                  const bool* padding, const Slicing& slicing, const Tensor& out) {
  using Kernel = DeformAttnForwardPacks<T, Source, kLog2, kPath>;
  const ForwardGrid grid = forward_grid(scope.limits(), shape, slicing, slicing.lanes(),
                                        Kernel::kStaged, Kernel::kThreads, true);
  Kernel kernel{};
  kernel.sizes = device_sizes(op, shape);
  kernel.source = source;
  kernel.value = const_data<T>(value);
  kernel.padding = padding;
  kernel.out = mutable_data<T>(out);
  kernel.slices = slicing.slices;
  kernel.heads_and_slices = static_cast<int>(shape.batch * shape.heads * slicing.slices);
  kernel.whole = static_cast<int>(grid.whole);
  kernel.queries_per_block = static_cast<int>(grid.queries);
  kernel.query_blocks = static_cast<int>(grid.per_head);
  kernel.by_query_blocks = Divisor(grid.per_head);
  kernel.by_slices = Divisor(slicing.slices);
  kernel.by_heads = Divisor(shape.heads);
  kernel.per_point = static_cast<int>(65536 / shape.points + 1);
  kernel.levels = levels;
  launch(scope, dim3(grid_size(Kernel::kName, grid.blocks)), grid.threads, slicing.staged_bytes,
         kernel);
}

// Fills `out` and returns true where one of the kernels of deform_attn_packs.cuh can.
template <typename T, typename Source>
bool run_packs(const DeviceScope& scope, const char* op, const DeformAttnShape& shape,
               const Levels& levels, const Source& source, const Tensor& value, const bool* padding,
               const Slicing& slicing, const Tensor& out) {
  if (!fits_packs<T>(shape, source, value, out, slicing) || !has_dtypes(source, kDtypeOf<T>)) {
    return false;
  }
  const auto run = [&]<int kLog2, PackPath kPath>() {
    launch_packs<T, kLog2, kPath>(scope, op, shape, levels, typed<T>(source), value, padding,
                                  slicing, out);
  };
  const bool once = shape.levels * shape.points <= slicing.lanes();
  const auto run_lanes = [&]<int kLog2>() {
    if (slicing.staged_bytes > 0) {
      once ? run.template operator()<kLog2, PackPath::kOnce>()
           : run.template operator()<kLog2, PackPath::kRounds>();
    } else if constexpr (kLog2 == 3 || sizeof(T) == 2) {
      run.template operator()<kLog2, PackPath::kGlobal>();
    }
  };
  if (slicing.lanes_log2 == 3) {
    run_lanes.template operator()<3>();
  } else {
    run_lanes.template operator()<2>();
  }
  return true;
}

// Fills `out`, which has elements. float64 is for checking gradients and always takes the general
// path.
template <typename T, typename Source>
void run_deform_attn_forward(const DeviceScope& scope, const char* op, const DeformAttnShape& shape,
                             const Source& source, const Tensor& value, const bool* padding,
                             const Tensor& out) {
  const DeviceLevels levels(scope, value, shape);
  const size_t limit = scope.limits().shared_per_block;
  const Slicing slicing = slice_forward(shape, kPackSize<T>, limit);
  if constexpr (!std::is_same_v<T, double>) {
    const auto run = [&](const Slicing& of) {
      return run_packs<T>(scope, op, shape, levels.levels, source, value, padding, of, out);
    };
    // In 16 bits half a query's lanes would prepare no sample: two slices are cheaper then.
    if (sizeof(T) == 2 && slicing.lanes_log2 == 3 &&
        shape.levels * shape.points <= kMostLanes / 2 &&
        run(slice_forward(shape, kPackSize<T>, limit, kMostLanes / 2))) {
      return;
    }
    if (run(slicing)) {
      return;
    }
    if (slicing.staged_bytes > 0) {
      launch_forward<T, true>(scope, op, shape, levels.levels, source, value, padding, slicing,
                              out);
      return;
    }
  }
  launch_forward<T, false>(scope, op, shape, levels.levels, source, value, padding,
                           {slicing.lanes_log2, slicing.slices, 0}, out);
}

}  // namespace tal_fast
