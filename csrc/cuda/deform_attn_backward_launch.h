// SPDX-License-Identifier: Apache-2.0
// The backward of deform_attn and deform_attn_fused on a GPU: the choice of kernels and the launch.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cuda/deform_attn_backward.cuh"
#include "cuda/deform_attn_backward_packs.cuh"
#include "cuda/deform_attn_launch.h"

namespace tal_fast {

// Of the shape and dtype of `tensor`, or empty.
inline Tensor allocate_gradient(const Tensor& tensor, bool wanted) {
  std::vector<int64_t> sizes{0};
  if (wanted) {
    sizes.assign(tensor.sizes().begin(), tensor.sizes().end());
  }
  return allocate(tensor, sizes);
}

// Null is not wanted; by_location and weight_memory are those of SampleGradients.
template <typename C>
struct SampleOutputs {
  AnyOutput<C> by_position;
  AnyOutput<C> by_weight;
  C* by_location;
  C* weight_memory;

  bool wanted() const { return by_position.data != nullptr || by_location != nullptr; }
};

// Ranges of rows of one level, as many as keep the device busy, each small enough for shared
// memory.
struct RowPlan {
  int lanes_log2;
  int slices;
  int rows;
  int64_t ranges;  // of all levels
  int parts;
  size_t bytes;
};

template <typename T, typename Source>
RowPlan plan_rows(const DeviceLimits& limits, const DeformAttnShape& shape, int threads) {
  const int64_t packs = std::max<int64_t>(1, ceil_div(shape.channels, int64_t{kPackSize<T>}));
  const int slices = static_cast<int>(ceil_div(packs, kMostLanes));
  const int lanes_log2 = log2_at_least(ceil_div(packs, slices));
  constexpr int64_t kMostRows = 256;
  constexpr int64_t kFewRows = 16;  // from here on blocks would mostly walk what others walk too
  constexpr int kMostParts = 8;
  const auto plan = [&](int64_t rows) {
    RowPlan result{lanes_log2, slices, static_cast<int>(rows), 0, 1, 0};
    for (int64_t l = 0; l < shape.levels; ++l) {
      result.ranges += ceil_div(shape.level_lengths[l], rows);
    }
    const int groups = threads >> lanes_log2;
    result.parts = std::clamp(groups / result.rows, 1, kMostParts);
    result.bytes = RowGradients<T, Source>::shared_bytes(result.rows, result.parts,
                                                         kPackSize<T> << lanes_log2);
    return result;
  };
  int64_t longest = 1;
  for (int64_t l = 0; l < shape.levels; ++l) {
    longest = std::max(longest, shape.level_lengths[l]);
  }
  RowPlan best = plan(std::min(kMostRows, longest));
  while (best.rows > kFewRows && 4 * shape.batch * shape.heads * slices * best.ranges <
                                     int64_t{3} * limits.multiprocessors) {
    best = plan(ceil_div(best.rows, 2));
  }
  return best;
}

// ---- the samples by row -------------------------------------------------------------------------

template <bool kShared, typename C, typename Source>
void launch_sort(const DeviceScope& scope, const DeformAttnShape& shape,
                 const DeformAttnSizes& sizes, const Levels& levels, const Source& source,
                 const C* softmax, const SortedSamples<C>& sorted, int32_t* counts, int warps,
                 int bins) {
  using Kernel = DeformAttnSort<C, Source, kShared>;
  const int64_t blocks = shape.batch * shape.heads * shape.levels;
  launch(scope, dim3(grid_size(Kernel::kName, blocks)), warps * kWarp,
         Kernel::shared_bytes(warps, bins),
         Kernel{sizes, source, softmax, sorted, counts, bins,
                static_cast<uint32_t>((int64_t{1} << 32) / shape.points + 1), levels});
}

// There is at least one sample. `walked` is `source`, or the same with known dtypes. What the
// result points to is in `memory`.
template <typename C, template <typename> typename Source, typename Walked>
SortedSamples<C> sort_samples(const DeviceScope& scope, const char* op,
                              const DeformAttnShape& shape, const DeformAttnSizes& sizes,
                              const Levels& levels, const Source<C>& source, const Walked& walked,
                              const Tensor& like, std::vector<Tensor>* memory) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 4096;  // rounded up to warps it still fits
  const int64_t samples = shape.queries * shape.points;
  TAL_FAST_CHECK(samples < kMost, op,
                 ": expected fewer than 2^31 - 4096 samples per head and level, got ", samples);
  const auto take = [&](int64_t count, ScalarType type) {
    memory->push_back(allocate(like, {count}, type));
    return memory->back();
  };
  const ScalarType type = compute_type(like.scalar_type());
  const int64_t pairs = shape.batch * shape.heads;
  SortedSamples<C> sorted{};
  sorted.begins =
      mutable_data<int32_t>(take(pairs * (shape.rows + 2 * shape.levels), ScalarType::Int));
  sorted.query = mutable_data<int32_t>(take(pairs * shape.levels * samples, ScalarType::Int));
  sorted.shares = mutable_data<C>(take(2 * pairs * shape.levels * samples, type));
  C* softmax = nullptr;
  if constexpr (Source<C>::kFused) {
    using Kernel = DeformAttnSoftmaxTable<C>;
    const int64_t units = pairs * shape.queries;
    softmax = mutable_data<C>(take(2 * units, type));
    launch(scope, dim3(grid_size(Kernel::kName, ceil_div(units, int64_t{Kernel::kThreads}))),
           Kernel::kThreads, 0, Kernel{sizes, source, softmax});
  }
  // A warp per 128 samples, if their counts fit into shared memory: at least four of them, or what
  // there is to do.
  constexpr int64_t kOfWarp = 128;
  constexpr int64_t kMostWarps = 32;
  constexpr int64_t kFewWarps = 4;
  const int64_t longest =
      *std::max_element(shape.level_lengths, shape.level_lengths + shape.levels);
  const int bins = static_cast<int>(longest) + 1;
  const int64_t wanted = std::clamp<int64_t>(ceil_div(samples, kOfWarp), 1, kMostWarps);
  const auto limit = static_cast<int64_t>(scope.limits().shared_per_block);
  const int64_t fitting =
      std::max<int64_t>(0, limit - 1024) / (int64_t{bins} * static_cast<int64_t>(sizeof(int32_t)));
  if (fitting >= std::min(wanted, kFewWarps)) {
    launch_sort<true>(scope, shape, sizes, levels, walked, softmax, sorted, nullptr,
                      static_cast<int>(std::min(wanted, fitting)), bins);
  } else {
    const int64_t warps = std::min<int64_t>(wanted, 8);
    const Tensor counts = take(pairs * shape.levels * warps * bins, ScalarType::Int);
    launch_sort<false>(scope, shape, sizes, levels, source, softmax, sorted,
                       mutable_data<int32_t>(counts), static_cast<int>(warps), bins);
  }
  return sorted;
}

// How the queries of a head are cut between blocks.
struct QueryPlan {
  int64_t per_head;  // blocks
  int64_t queries;   // of a block
};

// `rounds` of their queries are for blocks that stage nothing: so many, that what stands before the
// first costs little, and so few, that blocks are short.
inline QueryPlan plan_queries(const DeviceLimits& limits, const DeformAttnShape& shape, bool staged,
                              int threads, int lanes_log2, int64_t rounds) {
  const int64_t heads = shape.batch * shape.heads;
  const int64_t lanes = int64_t{2} << lanes_log2;  // per query
  int64_t per_head =
      query_blocks(shape, heads, int64_t{2} * limits.multiprocessors, staged, threads / lanes);
  if (!staged) {
    per_head = std::max(per_head, ceil_div(shape.queries * lanes, rounds * threads));
  }
  const int64_t queries = ceil_div(shape.queries, per_head);
  return {ceil_div(shape.queries, queries), queries};
}

// What a launch of the backward has, whatever its kernel.
template <typename T>
struct BackwardPlan {
  T* by_value;  // null: not wanted
  RowPlan rows;
  SortedSamples<ComputeType<T>> sorted;
  int threads;
  int lanes_log2;      // of the samples
  int packs_per_lane;  // of the samples
};

// `samples` are the kernel's, whose queries are still to be cut.
template <typename Kernel, typename T, typename Source, typename Samples>
void launch_backward(const DeviceScope& scope, const DeformAttnProblem<T, Source>& problem,
                     const DeformAttnShape& shape, const BackwardPlan<T>& plan, bool with_samples,
                     const Samples& samples, size_t staged_bytes) {
  const int64_t heads = shape.batch * shape.heads;
  Kernel kernel{};
  kernel.problem = problem;
  size_t shared_bytes = 0;

  int64_t row_blocks = 0;
  if (plan.by_value != nullptr) {
    row_blocks = heads * plan.rows.slices * plan.rows.ranges;
    kernel.rows = {plan.by_value,    plan.sorted,    plan.rows.lanes_log2,
                   plan.rows.slices, plan.rows.rows, static_cast<int>(plan.rows.ranges),
                   plan.rows.parts};
    shared_bytes = plan.rows.bytes;
  }

  int64_t sample_blocks = 0;
  if (with_samples) {
    const QueryPlan queries = plan_queries(scope.limits(), shape, staged_bytes > 0, plan.threads,
                                           plan.lanes_log2, Kernel::kRounds);
    sample_blocks = heads * queries.per_head;
    kernel.samples = samples;
    kernel.samples.queries_per_block = static_cast<int>(queries.queries);
    kernel.samples.query_blocks = static_cast<int>(queries.per_head);
    shared_bytes = std::max(shared_bytes, staged_bytes);
  }

  const unsigned blocks = grid_size(Kernel::kName, row_blocks + sample_blocks);
  kernel.row_blocks = static_cast<int>(row_blocks);
  if (blocks > 0) {
    launch(scope, dim3(blocks), plan.threads, shared_bytes, kernel);
  }
}

template <typename T, bool kStaged, typename Source>
void launch_general(const DeviceScope& scope, const DeformAttnProblem<T, Source>& problem,
                    const DeformAttnShape& shape, const T* value, const BackwardPlan<T>& plan,
                    const SampleOutputs<ComputeType<T>>& outputs, size_t staged_bytes) {
  const SampleGradients<T, Source, kStaged> samples = {value,
                                                       plan.lanes_log2,
                                                       plan.packs_per_lane,
                                                       0,
                                                       0,
                                                       outputs.by_position,
                                                       outputs.by_weight,
                                                       outputs.by_location,
                                                       outputs.weight_memory};
  launch_backward<DeformAttnBackward<T, Source, kStaged>>(scope, problem, shape, plan,
                                                          outputs.wanted(), samples, staged_bytes);
}

// ---- samples of known dtypes --------------------------------------------------------------------

// Lanes of a row of 32 channels, which the kernels of deform_attn_backward_packs.cuh are for.
template <typename T>
constexpr int kPackLanesLog2 = sizeof(T) == 2 ? 2 : 3;

template <typename T, typename Source>
bool fits_backward_packs(const DeformAttnShape& shape, const Source& source, bool aligned) {
  constexpr int64_t kMost = int64_t{1} << 31;
  constexpr int64_t kMostThreads = 256;
  const int64_t samples = shape.levels * shape.points;
  const int64_t row = shape.heads * shape.channels;
  const int64_t query = std::max(shape.heads * samples, longest_stride(source));
  return aligned && shape.channels == kPackSize<T> << kPackLanesLog2<T> &&
         shape.levels <= static_cast<int64_t>(kLevelsInside) && samples > 0 &&
         samples * shape.points < 65536 && shape.points > 1 &&
         shape.queries * shape.points * shape.points < int64_t{1} << 32 &&
         row * kMostThreads < kMost && shape.heads * samples * kMostThreads < kMost &&
         (shape.queries + kMostThreads) * query < kMost && shape.rows * row < kMost &&
         has_dtypes(source, kDtypeOf<T>);
}

template <typename T, bool kStaged, bool kOnce, typename Source>
void launch_backward_packs(const DeviceScope& scope, const DeformAttnProblem<T, Source>& problem,
                           const DeformAttnShape& shape, const T* value,
                           const BackwardPlan<T>& plan, const SampleOutputs<float>& outputs,
                           size_t staged_bytes) {
  using Kernel = DeformAttnBackwardPacks<T, Source, kPackLanesLog2<T>, kStaged, kOnce>;
  using Samples = PackSampleGradients<T, Source, kPackLanesLog2<T>, kStaged, kOnce>;
  const Samples samples = {value,
                           0,
                           0,
                           static_cast<int>(65536 / shape.points + 1),
                           static_cast<float*>(outputs.by_position.data),
                           static_cast<T*>(outputs.by_weight.data)};
  launch_backward<Kernel>(scope, problem, shape, plan, outputs.wanted(), samples, staged_bytes);
}

template <typename T>
int sample_lanes_log2(const DeformAttnShape& shape) {
  return log2_at_least(std::min(kMostLanes, ceil_div(shape.channels, int64_t{kPackSize<T>})));
}

// Up to so many samples of a query and head no lane has a second one.
template <typename T>
int64_t sample_lanes(const DeformAttnShape& shape) {
  return int64_t{1} << sample_lanes_log2<T>(shape);
}

// Fills the gradients that are wanted; an empty `grad_value` is not. float64 is for checking
// gradients and always takes the general path.
template <typename T, typename Source>
void run_deform_attn_backward(const DeviceScope& scope, const char* op,
                              const DeformAttnShape& shape, const Levels& levels,
                              const Source& source, const Tensor& grad, const Tensor& value,
                              const bool* padding, const Tensor& grad_value,
                              SampleOutputs<ComputeType<T>> outputs) {
  using Kernel = DeformAttnBackward<T, Source, true>;
  constexpr int64_t kPack = kPackSize<T>;
  T* by_value = grad_value.numel() > 0 ? mutable_data<T>(grad_value) : nullptr;
  if (shape.batch * shape.queries * shape.samples_per_query() == 0) {
    outputs = {};
  }
  const bool aligned = shape.channels % kPack == 0 && is_aligned(value) && is_aligned(grad) &&
                       (by_value == nullptr || is_aligned(grad_value));
  const DeformAttnSizes sizes = device_sizes(op, shape);
  const int lanes_log2 = sample_lanes_log2<T>(shape);
  const int64_t packs = std::max<int64_t>(1, ceil_div(shape.channels, kPack));
  const int64_t packs_per_lane = ceil_div(packs, int64_t{1} << lanes_log2);
  // Small problems need few threads: two lanes' worth per query, and lanes for the rows.
  const int64_t work = std::max(shape.queries * (int64_t{2} << lanes_log2),
                                std::min<int64_t>(shape.rows, 64) << lanes_log2);
  const int threads =
      static_cast<int>(std::clamp<int64_t>(ceil_div(work, kWarp) * kWarp, kWarp, Kernel::kThreads));

  const DeviceLimits limits = scope.limits();
  BackwardPlan<T> plan = {by_value, {}, {}, threads, lanes_log2, static_cast<int>(packs_per_lane)};
  std::vector<Tensor> memory;
  const size_t staged_bytes =
      static_cast<size_t>(shape.rows + 1) * 16 * static_cast<size_t>(packs_per_lane << lanes_log2);
  // Calls launch(problem, staged_bytes), 0 if rows are not staged, for the samples as `walked` has
  // them and a kernel that is to have `blocks` at once.
  const auto run = [&](const auto& walked, int blocks, const auto& launch) {
    if (by_value != nullptr) {
      plan.rows = plan_rows<T, Source>(limits, shape, threads);
      if (shape.queries * shape.points > 0) {
        plan.sorted = sort_samples(scope, op, shape, sizes, levels, source, walked, grad, &memory);
      }
    }
    const DeformAttnProblem<T, std::decay_t<decltype(walked)>> problem = {
        sizes, walked, const_data<T>(grad), padding, aligned, levels};
    const size_t limit =
        std::min(limits.shared_per_block,
                 limits.shared_per_multiprocessor / static_cast<size_t>(blocks) - 1024);
    launch(problem, is_dense(shape) && staged_bytes <= limit ? staged_bytes : 0);
  };
  const T* rows = const_data<T>(value);
  if constexpr (!std::is_same_v<T, double> && !Source::kFused) {
    if (fits_backward_packs<T>(shape, source, aligned)) {
      const bool once = shape.levels * shape.points <= int64_t{1} << lanes_log2;
      run(typed<T>(source), kBackwardPackBlocks<T>, [&](const auto& problem, size_t staged) {
        if (once && staged > 0) {
          launch_backward_packs<T, true, true>(scope, problem, shape, rows, plan, outputs, staged);
        } else if (once) {
          launch_backward_packs<T, false, true>(scope, problem, shape, rows, plan, outputs, 0);
        } else {
          launch_backward_packs<T, false, false>(scope, problem, shape, rows, plan, outputs, 0);
        }
      });
      return;
    }
  }
  run(source, Kernel::kBlocks, [&](const auto& problem, size_t staged) {
    if constexpr (!std::is_same_v<T, double>) {
      if (staged > 0) {
        launch_general<T, true>(scope, problem, shape, rows, plan, outputs, staged);
        return;
      }
    }
    launch_general<T, false>(scope, problem, shape, rows, plan, outputs, 0);
  });
}

}  // namespace tal_fast
