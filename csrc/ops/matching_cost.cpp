// SPDX-License-Identifier: Apache-2.0
#include "cpu/matching_cost.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "ops/matching_cost.h"

namespace tal_fast {
namespace {

// Values per task: about 30 us of work.
constexpr int64_t kValuesPerTask = 16384;

// Where each video has its instances, and what the kernel needs to know of their classes.
struct Videos {
  std::vector<int64_t> first;         // [B + 1], its first instance
  std::vector<int64_t> first_padded;  // [B + 1], the same with every video padded
  std::vector<int64_t> first_class;   // [B + 1], its first entry in `classes`
  std::vector<int64_t> classes;       // those that occur in it, video after video
  std::vector<int32_t> slots;         // padded: the place of a label among the classes of its video
};

Videos arrange_videos(const int64_t* labels, const std::vector<int64_t>& counts, int64_t instances,
                      int64_t num_classes) {
  for (int64_t t = 0; t < instances; ++t) {
    TAL_FAST_CHECK(labels[t] >= 0 && labels[t] < num_classes,
                   "matching_cost: expected labels in [0, ", num_classes, "), got ", labels[t],
                   " at index ", t);
  }
  Videos result{{0}, {0}, {0}, {}, {}};
  std::vector<int32_t> slot_of_class(static_cast<size_t>(num_classes), -1);
  for (const int64_t count : counts) {
    const int64_t* of_video = labels + result.first.back();
    const int64_t begin = result.first_class.back();
    for (int64_t t = 0; t < count; ++t) {
      int32_t& slot = slot_of_class[of_video[t]];
      if (slot < 0) {
        slot = static_cast<int32_t>(static_cast<int64_t>(result.classes.size()) - begin);
        result.classes.push_back(of_video[t]);
      }
      result.slots.push_back(slot);
    }
    const auto end = static_cast<int64_t>(result.classes.size());
    for (int64_t u = begin; u < end; ++u) {
      slot_of_class[result.classes[u]] = -1;
    }
    result.first.push_back(result.first.back() + count);
    result.first_padded.push_back(result.first_padded.back() + cpu::matching_padded(count));
    result.first_class.push_back(end);
    result.slots.resize(static_cast<size_t>(result.first_padded.back()), 0);
  }
  return result;
}

template <typename T>
void compute(const Tensor& logits, const Tensor& segments, const Tensor& labels,
             const Tensor& targets, const std::vector<int64_t>& counts, const MatchingShape& shape,
             const MatchingWeights<T>& weights, T* out) {
  const auto [layers, videos, queries, num_logits, instances] = shape;
  const Videos of = arrange_videos(const_data<int64_t>(labels), counts, instances, num_logits);
  const int64_t padded = of.first_padded.back();
  std::vector<T> properties(static_cast<size_t>(4 * padded));
  T* centers = properties.data();
  T* widths = centers + padded;
  T* starts = widths + padded;
  T* ends = starts + padded;
  int64_t most_classes = 0;
  for (int64_t b = 0; b < videos; ++b) {
    const int64_t to = of.first_padded[b];
    TAL_FAST_ISA_CALL(matching_cost_split<T>)(const_data<T>(targets) + 2 * of.first[b], counts[b],
                                              centers + to, widths + to, starts + to, ends + to);
    most_classes = std::max(most_classes, of.first_class[b + 1] - of.first_class[b]);
  }
  const T* logits_data = const_data<T>(logits);
  const T* segments_data = const_data<T>(segments);
  const int64_t per_problem = std::max<int64_t>(1, queries * (instances / videos + most_classes));
  const int64_t grain = std::max<int64_t>(1, kValuesPerTask / per_problem);
  torch::stable::parallel_for(0, layers * videos, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch(static_cast<size_t>(queries * most_classes));
    for (int64_t p = begin; p < end; ++p) {
      const int64_t b = p % videos;
      const int64_t from = of.first_padded[b];
      const cpu::MatchingTargets<T> of_video{counts[b],
                                             centers + from,
                                             widths + from,
                                             starts + from,
                                             ends + from,
                                             of.slots.data() + from,
                                             of.classes.data() + of.first_class[b],
                                             of.first_class[b + 1] - of.first_class[b]};
      TAL_FAST_ISA_CALL(matching_cost_block<T>)(
          logits_data + p * queries * num_logits, segments_data + p * queries * 2, queries,
          num_logits, of_video, weights, scratch.data(),
          out + queries * (p / videos * instances + of.first[b]));
    }
  });
}

Tensor matching_cost_cpu(const Tensor& logits_in,    // [K, B, Q, C] or [B, Q, C]
                         const Tensor& segments_in,  // [K, B, Q, 2] or [B, Q, 2] (centre, width)
                         const Tensor& labels_in,    // [M]
                         const Tensor& targets_in,   // [M, 2] (centre, width)
                         const std::vector<int64_t>& counts,  // [B]
                         double classification, double l1, double iou, double alpha, double gamma,
                         double eps) {
  const MatchingShape shape =
      check_matching_cost(logits_in, segments_in, labels_in, targets_in, counts);
  check_matching_settings(alpha, gamma, eps);
  const ScalarType type = compute_type(logits_in.scalar_type());
  const Tensor logits = to_compute_type(logits_in);
  const Tensor segments = to_compute_type(segments_in);
  const Tensor targets = to_compute_type(targets_in);
  const Tensor labels = as_contiguous(labels_in);
  Tensor out = empty_beside(logits, {shape.layers * shape.queries * shape.instances}, type);
  if (out.numel() == 0) {
    return out;
  }
  dispatch_compute_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto weights = matching_weights<T>(classification, l1, iou, alpha, gamma, eps);
    compute<T>(logits, segments, labels, targets, counts, shape, weights, mutable_data<T>(out));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def(
      "matching_cost(Tensor logits, Tensor segments, Tensor labels, Tensor targets, SymInt[] "
      "counts, float classification, float l1, float iou, float alpha, float gamma, float eps) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("matching_cost", TORCH_BOX(&matching_cost_cpu));
}

}  // namespace tal_fast
