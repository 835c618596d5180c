// SPDX-License-Identifier: Apache-2.0
#include "recall.h"

#include <algorithm>

namespace tal_fast::evaluation {
namespace {

struct Scratch {
  Ranker ranker;
  std::vector<int64_t> ranked;                 // of one video
  std::vector<std::vector<int64_t>> by_label;  // [num_classes], filled and cleared per video
};

void visit_instance(const Problem& p, int64_t g, const std::vector<int64_t>& ranked, int64_t* out) {
  int64_t open = p.num_thresholds;
  for (size_t n = 0; n < ranked.size() && open > 0; ++n) {
    const int64_t i = ranked[n];
    const double o = overlap(p.rules, p.detections.start[i], p.detections.end[i],
                             p.ground_truth.start[g], p.ground_truth.end[g]);
    if (!(o > 0.0))
      continue;  // every threshold is above 0
    for (int64_t k = 0; k < p.num_thresholds; ++k) {
      if (out[k] == kNever && o >= p.thresholds[k]) {
        out[k] = static_cast<int64_t>(n);
        --open;
      }
    }
  }
}

}  // namespace

std::vector<int64_t> first_hits(const Problem& p, bool by_class, int num_threads) {
  std::vector<int64_t> first(static_cast<size_t>(p.ground_truth.size * p.num_thresholds), kNever);
  const Groups truth = group_by(p.ground_truth.video, p.ground_truth.size, p.num_videos);
  const Groups found = group_by(p.detections.video, p.detections.size, p.num_videos, p.order);
  const auto run_video = [&](int64_t video, Scratch& s) {
    if (truth.size_of(video) == 0 || found.size_of(video) == 0)
      return;
    const int64_t* own = found.of(video);
    const int64_t size = found.size_of(video);
    s.ranked.assign(own, own + size);
    if (p.order == nullptr) {
      const auto& entries = s.ranker.rank(p.detections.score, own, size);
      for (int64_t n = 0; n < size; ++n)
        s.ranked[n] = own[entries[n].position];
    }
    if (by_class) {
      s.by_label.resize(static_cast<size_t>(p.num_classes));
      for (const int64_t i : s.ranked)
        s.by_label[p.detections.label[i]].push_back(i);
    }
    for (int64_t n = 0; n < truth.size_of(video); ++n) {
      const int64_t g = truth.of(video)[n];
      visit_instance(p, g, by_class ? s.by_label[p.ground_truth.label[g]] : s.ranked,
                     first.data() + g * p.num_thresholds);
    }
    if (by_class) {
      for (const int64_t i : s.ranked)
        s.by_label[p.detections.label[i]].clear();
    }
  };
  for_each_part<Scratch>(p.num_videos, choose_threads(num_threads, p.detections.size, p.num_videos),
                         run_video);
  return first;
}

}  // namespace tal_fast::evaluation
