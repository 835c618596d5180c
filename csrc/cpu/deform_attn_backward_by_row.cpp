// SPDX-License-Identifier: Apache-2.0
// The backward of few queries: a head's samples are put in the order of the rows that they read,
// and the rows are visited once, in place. A row's gradient is then a sum in registers that is
// stored once, and what is read at random are the queries' gradients, which fit the first-level
// cache. The general backward (deform_attn_backward.cpp) takes samples as they come, and adds each
// to two rows in memory.
#include "cpu/deform_attn.h"
#include "cpu/deform_attn_samples.h"
#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// For what is kept of a head: the gradients of its queries, and its samples.
constexpr size_t kMostBytes = size_t{256} * 1024;
// Samples per row and head up to which this is not slower than the general backward. Measured on
// 64 to 512 rows of 8 heads of 32 channels: a third less time at 1.25 samples per row, the same at
// 4, a third more at 16.
constexpr int64_t kMostSamplesPerRow = 4;
constexpr int64_t kRowsAhead = 8;

template <int kVectors, bool kWrite = false, typename C>
inline void prefetch_row(const C* row) {
  for (int64_t d = 0; d < kVectors * kFullLanes<C>; d += 64 / int64_t{sizeof(C)}) {
    __builtin_prefetch(row + d, kWrite ? 1 : 0);
  }
}

// A level of T rows has T + 1 buckets, the taps -1 to T - 1; the last bucket of all is that of
// samples which contribute nothing.
int64_t bucket_count(const DeformAttnShape& shape) {
  return shape.rows + shape.levels + 1;
}

// What stays the same for all heads, and the samples k = (q, l, p) of the current one.
template <typename C>
struct Plan {
  int64_t samples;
  int64_t slots;      // samples rounded up to whole vectors
  C* zeros;           // [D]: what a tap outside its level or on a padded row reads
  C* grads;           // [Q, D], of the head
  C* length;          // [slots] level length as a number
  int32_t* buckets;   // [slots] number of buckets of the level
  int32_t* first;     // [slots] the bucket of the level's tap -1
  int32_t* grad_row;  // [slots] where the query's gradient begins in grads
  C* location;        // [slots], then the gradient
  C* weight;          // [slots]
  C* fraction;        // [slots]
  C* left_weight;     // [slots]
  C* right_weight;    // [slots]
  int32_t* bucket;    // [slots]
  int32_t* order;     // [samples] by bucket, those of a bucket in their own order
  int32_t* end;       // [buckets] of a bucket in order
  C* partial;         // [slots, lanes] products with both taps, partly summed
  C* dots;            // [2 * slots] the same, summed, left and right tap in turn
  C* by_weight;       // [slots]

  Plan(const DeformAttnShape& shape, Carver& carve) {
    constexpr int64_t kLanes = kFullLanes<C>;
    samples = shape.queries * shape.levels * shape.points;
    slots = round_up(samples, kLanes);
    zeros = carve.take<C>(shape.channels);
    grads = carve.take<C>(shape.queries * shape.channels);
    length = carve.take<C>(slots);
    buckets = carve.take<int32_t>(slots);
    first = carve.take<int32_t>(slots);
    grad_row = carve.take<int32_t>(slots);
    location = carve.take<C>(slots);
    weight = carve.take<C>(slots);
    fraction = carve.take<C>(slots);
    left_weight = carve.take<C>(slots);
    right_weight = carve.take<C>(slots);
    bucket = carve.take<int32_t>(slots);
    order = carve.take<int32_t>(slots);
    end = carve.take<int32_t>(bucket_count(shape));
    partial = carve.take<C>(slots * kLanes);
    dots = carve.take<C>(2 * slots);
    by_weight = carve.take<C>(slots);
  }

  void fill(const DeformAttnShape& shape) const {
    for (int64_t d = 0; d < shape.channels; ++d) {
      zeros[d] = C(0);
    }
    int64_t k = 0;
    for (int64_t q = 0; q < shape.queries; ++q) {
      int64_t start = 0;
      for (int64_t l = 0; l < shape.levels; ++l) {
        for (int64_t p = 0; p < shape.points; ++p, ++k) {
          length[k] = static_cast<C>(shape.level_lengths[l]);
          buckets[k] = static_cast<int32_t>(shape.level_lengths[l] + 1);
          first[k] = static_cast<int32_t>(start);
          grad_row[k] = static_cast<int32_t>(q * shape.channels);
        }
        start += shape.level_lengths[l] + 1;
      }
    }
    for (; k < slots; ++k) {  // whole vectors are computed, so these have to hold something
      length[k] = location[k] = weight[k] = C(1);
      buckets[k] = first[k] = grad_row[k] = 0;
      for (int64_t i = 0; i < kFullLanes<C>; ++i) {
        partial[k * kFullLanes<C> + i] = C(0);
      }
    }
  }
};

template <int kLanes>
inline Vector<int32_t, kLanes> load_numbers(const int32_t* source) {
  Vector<int32_t, kLanes> numbers;
  std::memcpy(&numbers, source, sizeof(numbers));
  return numbers;
}

template <typename C>
void locate_samples(const Plan<C>& plan, int32_t nowhere) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  using Numbers = Vector<int32_t, kLanes>;
  for (int64_t k = 0; k < plan.slots; k += kLanes) {
    const auto [tap, fraction] =
        locate_lanes<C, kLanes>(load<kLanes>(plan.location + k), load<kLanes>(plan.length + k));
    const Numbers within = tap + 1;
    const Numbers bucket = (within >= 0) & (within < load_numbers<kLanes>(plan.buckets + k))
                               ? load_numbers<kLanes>(plan.first + k) + within
                               : Numbers{} + nowhere;
    std::memcpy(plan.bucket + k, &bucket, sizeof(bucket));
    const V weight = load<kLanes>(plan.weight + k);
    const V share = weight * fraction;
    store<kLanes>(plan.left_weight + k, weight - share);
    store<kLanes>(plan.right_weight + k, share);
    store<kLanes>(plan.fraction + k, fraction);
  }
}

// A counting sort.
template <typename C>
void order_samples(const Plan<C>& plan, int64_t buckets) {
  int32_t* const end = plan.end;
  std::memset(end, 0, static_cast<size_t>(buckets) * sizeof(*end));
  for (int64_t k = 0; k < plan.samples; ++k) {
    ++end[plan.bucket[k]];
  }
  int32_t before = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    const int32_t count = end[b];
    end[b] = before;
    before += count;
  }
  for (int64_t k = 0; k < plan.samples; ++k) {
    plan.order[end[plan.bucket[k]]++] = static_cast<int32_t>(k);
  }
}

// The samples order[begin, end) lie between two rows: adds their gradients to the sums of both, and
// keeps their products with both, still to be summed over lanes, as the two halves of one vector.
template <int kVectors, bool kMore, typename C>
inline void walk_bucket(const Plan<C>& plan, int64_t begin, int64_t end, const C* grads,
                        const C* left, const C* right, Vector<C, kFullLanes<C>>* left_sum,
                        Vector<C, kFullLanes<C>>* right_sum) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  for (int64_t j = begin; j < end; ++j) {
    const int64_t k = plan.order[j];
    const C* grad_row = grads + plan.grad_row[k];
    const C left_weight = plan.left_weight[k];
    const C right_weight = plan.right_weight[k];
    V left_dot{};
    V right_dot{};
    for (int v = 0; v < kVectors; ++v) {
      const V g = load<kLanes>(grad_row + v * kLanes);
      left_dot += g * load<kLanes>(left + v * kLanes);
      right_dot += g * load<kLanes>(right + v * kLanes);
      left_sum[v] += left_weight * g;
      right_sum[v] += right_weight * g;
    }
    V folded = fold<1, C, kLanes>(left_dot, right_dot);
    if constexpr (kMore) {
      folded += load<kLanes>(plan.partial + k * kLanes);
    }
    store<kLanes>(plan.partial + k * kLanes, folded);
  }
}

// Some channels of a head. value, grad_value and padding are those of the batch element, both
// former from those channels on; kMore: adds to the products of the channels before.
template <int kVectors, bool kMore, typename C>
void walk_rows(const DeformAttnShape& shape, const Plan<C>& plan, const C* grads, const C* value,
               const bool* padding, C* grad_value) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const int64_t stride = shape.heads * shape.channels;
  const bool dense = plan.samples >= shape.rows;  // else many rows are read by no sample
  const int32_t* end = plan.end;
  int64_t done = 0;
  for (int64_t l = 0; l < shape.levels; ++l) {
    const int64_t length = shape.level_lengths[l];
    const C* left = plan.zeros;
    V left_sum[kVectors]{};
    for (int64_t row = 0; row <= length; ++row) {  // the right one
      const bool read = row < length && (padding == nullptr || !padding[row]);
      const C* right = read ? value + row * stride : plan.zeros;
      if (dense) {
        prefetch_row<kVectors>(value + (row + kRowsAhead) * stride);
      }
      prefetch_row<kVectors, true>(grad_value + (row + kRowsAhead) * stride);
      V right_sum[kVectors]{};
      walk_bucket<kVectors, kMore>(plan, done, *end, grads, left, right, left_sum, right_sum);
      done = *end++;
      if (row > 0) {
        const bool kept = padding == nullptr || !padding[row - 1];
        for (int v = 0; v < kVectors; ++v) {
          store<kLanes>(grad_value + (row - 1) * stride + v * kLanes, kept ? left_sum[v] : V{});
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        left_sum[v] = right_sum[v];
      }
      left = right;
    }
    value += length * stride;
    grad_value += length * stride;
    padding = padding == nullptr ? nullptr : padding + length;
  }
  for (int64_t j = done; j < plan.samples; ++j) {
    store<kLanes>(plan.partial + plan.order[j] * int64_t{kLanes}, V{});
  }
}

// From the products with the taps to the gradients for the locations, in plan.location, and for the
// weights, in plan.by_weight.
template <typename C>
void finish_samples(const Plan<C>& plan) {
  constexpr int kLanes = kFullLanes<C>;
  for (int64_t k = 0; k < 2 * plan.slots; k += kLanes) {
    store<kLanes>(plan.dots + k, finish_sums<C, kLanes, 2>(plan.partial + k / 2 * kLanes));
  }
  slope_and_value(plan.dots, plan.fraction, plan.weight, plan.length, plan.slots, plan.location,
                  plan.by_weight);
}

template <int kVectors, typename C>
void backward(const DeformAttnShape& shape, int64_t heads_per_unit, const C* grad, const C* value,
              const bool* padding, const C* locations, const C* weights, int64_t unit_begin,
              int64_t unit_end, std::byte* scratch, C* grad_value, C* grad_locations,
              C* grad_weights) {
  constexpr int kLanes = kFullLanes<C>;
  // The sums of two rows and a gradient stay in registers: 16, or 32 of them.
  constexpr int kMost = kVectorBytes == 64 ? 8 : 4;
  constexpr int kStep = kVectors < kMost ? kVectors : kMost;
  Carver carve(scratch);
  const Plan<C> plan(shape, carve);
  plan.fill(shape);
  const int64_t channels = int64_t{kVectors} * kLanes;
  const int64_t row = shape.heads * channels;
  const int64_t per_query = shape.levels * shape.points;
  const int64_t query_stride = shape.samples_per_query();
  const int64_t units_per_batch = (shape.heads + heads_per_unit - 1) / heads_per_unit;
  const int64_t buckets = bucket_count(shape);
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t b = unit / units_per_batch;
    const int64_t first_head = unit % units_per_batch * heads_per_unit;
    const int64_t heads =
        first_head + heads_per_unit <= shape.heads ? heads_per_unit : shape.heads - first_head;
    const bool* padded = padding == nullptr ? nullptr : padding + b * shape.rows;
    for (int64_t h = first_head; h < first_head + heads; ++h) {
      const int64_t query = b * shape.queries;
      const int64_t sample = query * query_stride + h * per_query;
      copy_samples(locations + sample, query_stride, plan.location, per_query, per_query,
                   shape.queries);
      copy_samples(weights + sample, query_stride, plan.weight, per_query, per_query,
                   shape.queries);
      locate_samples(plan, static_cast<int32_t>(buckets - 1));
      order_samples(plan, buckets);
      const C* source = grad + query * row + h * channels;
      for (int64_t q = 0; q < shape.queries; ++q, source += row) {
        prefetch_row<kVectors>(source + kRowsAhead * row);
        for (int v = 0; v < kVectors; ++v) {
          store<kLanes>(plan.grads + q * channels + v * kLanes, load<kLanes>(source + v * kLanes));
        }
      }
      const int64_t column = b * shape.rows * row + h * channels;
      walk_rows<kStep, false>(shape, plan, plan.grads, value + column, padded, grad_value + column);
      for (int64_t d = kStep * kLanes; d < channels; d += kStep * kLanes) {
        walk_rows<kStep, true>(shape, plan, plan.grads + d, value + column + d, padded,
                               grad_value + column + d);
      }
      finish_samples(plan);
      copy_samples(plan.location, per_query, grad_locations + sample, query_stride, per_query,
                   shape.queries);
      copy_samples(plan.by_weight, per_query, grad_weights + sample, query_stride, per_query,
                   shape.queries);
    }
  }
}

}  // namespace

template <typename C>
bool deform_attn_backward_is_by_row(const DeformAttnShape& shape) {
  constexpr int64_t kLanes = kFullLanes<C>;
  const int64_t vectors = shape.channels / kLanes;
  return shape.channels % kLanes == 0 &&
         (vectors == 1 || vectors == 2 || vectors == 4 || vectors == 8) &&
         shape.queries * shape.levels * shape.points <= kMostSamplesPerRow * shape.rows &&
         deform_attn_backward_by_row_scratch<C>(shape) <= kMostBytes;
}

template <typename C>
size_t deform_attn_backward_by_row_scratch(const DeformAttnShape& shape) {
  Carver carve(nullptr);
  const Plan<C> plan(shape, carve);
  return carve.used();
}

template <typename C>
void deform_attn_backward_by_row(const DeformAttnShape& shape, int64_t heads_per_unit,
                                 const C* grad, const C* value, const bool* padding,
                                 const C* locations, const C* weights, int64_t unit_begin,
                                 int64_t unit_end, std::byte* scratch, C* grad_value,
                                 C* grad_locations, C* grad_weights) {
  auto run = &backward<8, C>;
  switch (shape.channels / kFullLanes<C>) {
    case 1:
      run = &backward<1, C>;
      break;
    case 2:
      run = &backward<2, C>;
      break;
    case 4:
      run = &backward<4, C>;
      break;
  }
  run(shape, heads_per_unit, grad, value, padding, locations, weights, unit_begin, unit_end,
      scratch, grad_value, grad_locations, grad_weights);
}

#define TAL_FAST_INSTANTIATE(C)                                                                    \
  template bool deform_attn_backward_is_by_row<C>(const DeformAttnShape&);                         \
  template size_t deform_attn_backward_by_row_scratch<C>(const DeformAttnShape&);                  \
  template void deform_attn_backward_by_row<C>(const DeformAttnShape&, int64_t, const C*,          \
                                               const C*, const bool*, const C*, const C*, int64_t, \
                                               int64_t, std::byte*, C*, C*, C*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
