// SPDX-License-Identifier: Apache-2.0
#include "average_precision.h"

#include <cmath>
#include <limits>
#include <numeric>

namespace tal_fast::evaluation {
namespace {

// What one thread needs for one class, kept between classes so that nothing is allocated per class.
struct Scratch {
  struct Instance {
    double start;
    double end;
    uint64_t taken;  // bit k: already matched at thresholds[k]
    int64_t index;   // in the input
  };
  struct Candidate {
    double overlap;
    uint64_t reach;  // bit k: overlap is not below thresholds[k]
    Instance* instance;
  };
  // A video's instances: [begin, end).
  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
  };

  // A detection, copied beside the others of its class: visiting them by score would otherwise miss
  // the cache three times for each.
  struct Detection {
    double start;
    double end;
    int64_t video;
  };

  Ranker ranker;
  std::vector<int64_t> rank;            // positions in the class's group, by rank
  std::vector<uint64_t> hits;           // by rank
  std::vector<uint64_t> hits_of_group;  // by position in the group
  std::vector<Detection> packed;        // the class's detections, in the order of their group
  std::vector<int64_t> order;           // the class's ground truth, as input indices by video
  std::vector<Range> range_of_video;    // [num_videos]; empty between classes
  std::vector<Instance> instances;      // the class's ground truth, by video
  std::vector<Candidate> candidates;    // of one detection
  std::vector<double> overlaps;         // of one detection, or [instances, detections] of a video
  std::vector<int64_t> tried;           // order of the above
  std::vector<int64_t> videos;          // that have ground truth of the class
  std::vector<std::vector<int64_t>> detections_of;  // [videos], by rank
  std::vector<uint8_t> taken;                       // [detections] of a video
  std::vector<std::vector<int64_t>> hit_rank;       // [num_thresholds][true positives], rising
  std::vector<int64_t> removed;                     // [num_thresholds] so far in rank order
};

class Evaluation {
 public:
  Evaluation(const Problem& problem, bool want_matched, Result& result)
      : p_(problem),
        r_(result),
        detections_(group_by(problem.detections.label, problem.detections.size, problem.num_classes,
                             problem.order)),
        ground_truth_(
            group_by(problem.ground_truth.label, problem.ground_truth.size, problem.num_classes)),
        lowest_(*std::min_element(problem.thresholds, problem.thresholds + problem.num_thresholds)),
        want_matched_(want_matched) {
    r_.begin = detections_.begin;
  }

  // Writes only what belongs to class c.
  void run_class(int64_t c, Scratch& s) const {
    const int64_t* gt_begin = ground_truth_.of(c);
    const int64_t num_gt = ground_truth_.size_of(c);
    const int64_t num_det = detections_.size_of(c);
    r_.num_ground_truth[c] = num_gt;
    r_.num_detections[c] = num_det;
    int64_t* const ranked = r_.ranked.data() + detections_.begin[c];
    rank_detections(detections_.of(c), num_det, s);
    for (int64_t n = 0; n < num_det; ++n)
      ranked[n] = detections_.of(c)[s.rank[n]];
    if (num_gt == 0)
      return;  // AP stays NaN

    place_ground_truth(gt_begin, num_gt, s);
    s.hits.resize(static_cast<size_t>(num_det));
    if (p_.rules.instances_choose) {
      let_instances_choose(ranked, num_det, s);
      for (int64_t n = 0; n < num_det; ++n)
        s.hits[n] = r_.hits[ranked[n]];
    } else {
      pack_detections(detections_.of(c), num_det, s);
      s.hits_of_group.resize(static_cast<size_t>(num_det));
      for (int64_t n = 0; n < num_det; ++n) {
        s.hits[n] = match(ranked[n], s.packed[s.rank[n]], s);
        s.hits_of_group[s.rank[n]] = s.hits[n];
      }
      // In the order of the group, which is that of memory.
      for (int64_t n = 0; n < num_det; ++n)
        r_.hits[detections_.of(c)[n]] = s.hits_of_group[n];
    }
    measure(c, ranked, num_det, num_gt, s);
    for (int64_t g = 0; g < num_gt; ++g) {
      r_.found[s.instances[g].index] = s.instances[g].taken;
      s.range_of_video[p_.ground_truth.video[gt_begin[g]]] = {};
    }
  }

 private:
  // By video; input order within a video, which is the tie rule for equal tIoU.
  void place_ground_truth(const int64_t* index, int64_t size, Scratch& s) const {
    const GroundTruth& gt = p_.ground_truth;
    s.order.assign(index, index + size);
    std::sort(s.order.begin(), s.order.end(), [&gt](int64_t a, int64_t b) {
      return gt.video[a] != gt.video[b] ? gt.video[a] < gt.video[b] : a < b;
    });
    s.range_of_video.resize(static_cast<size_t>(p_.num_videos));
    s.instances.resize(static_cast<size_t>(size));
    for (int64_t g = 0; g < size; ++g) {
      const int64_t i = s.order[g];
      Scratch::Range& range = s.range_of_video[gt.video[i]];
      if (range.begin == range.end)
        range.begin = g;
      range.end = g + 1;
      s.instances[g] = {gt.start[i], gt.end[i], 0, i};
    }
  }

  void rank_detections(const int64_t* index, int64_t size, Scratch& s) const {
    s.rank.resize(static_cast<size_t>(size));
    if (p_.order != nullptr) {
      std::iota(s.rank.begin(), s.rank.end(), int64_t{0});  // grouped in the order that was given
      return;
    }
    const auto& entries = s.ranker.rank(p_.detections.score, index, size);
    for (int64_t n = 0; n < size; ++n)
      s.rank[n] = entries[n].position;
  }

  void pack_detections(const int64_t* index, int64_t size, Scratch& s) const {
    const Detections& det = p_.detections;
    s.packed.resize(static_cast<size_t>(size));
    for (int64_t n = 0; n < size; ++n)
      s.packed[n] = {det.start[index[n]], det.end[index[n]], det.video[index[n]]};
  }

  bool reaches(double overlap, double threshold) const {
    // NaN (an unguarded union) is not below any threshold.
    return p_.rules.strictly_above ? overlap > threshold : !(overlap < threshold);
  }

  // Takes the instances that detection i matches; returns the thresholds at which it matched one.
  //
  // All thresholds share one walk over the instances by falling tIoU: `open` are the thresholds
  // at which the detection still looks for an instance.
  uint64_t match(int64_t i, const Scratch::Detection& detection, Scratch& s) const {
    const Scratch::Range range = s.range_of_video[detection.video];
    s.candidates.clear();
    for (int64_t g = range.begin; g < range.end; ++g) {
      Scratch::Instance& instance = s.instances[g];
      const double o =
          overlap(p_.rules, detection.start, detection.end, instance.start, instance.end);
      if (o < lowest_)
        continue;  // a NaN stays
      uint64_t reach = 0;
      for (int64_t k = 0; k < p_.num_thresholds; ++k) {
        if (reaches(o, p_.thresholds[k]))
          reach |= uint64_t{1} << k;
      }
      s.candidates.push_back({std::isnan(o) ? kFirst : o, reach, &instance});
    }
    if (s.candidates.size() > 1)
      order_candidates(detection, range, s);
    uint64_t open = ~uint64_t{0};
    uint64_t hits = 0;
    for (const Scratch::Candidate& candidate : s.candidates) {
      const uint64_t take = open & candidate.reach & ~candidate.instance->taken;
      candidate.instance->taken |= take;
      hits |= take;
      open &= ~take;
      if (want_matched_)
        note_match(i, candidate.instance->index, take);
    }
    return hits;
  }

  void order_candidates(const Scratch::Detection& detection, const Scratch::Range& range,
                        Scratch& s) const {
    // Few candidates reach a threshold: insertion sort, stable.
    bool tied = false;
    for (size_t n = 1; n < s.candidates.size(); ++n) {
      const Scratch::Candidate candidate = s.candidates[n];
      size_t at = n;
      for (; at > 0 && s.candidates[at - 1].overlap < candidate.overlap; --at) {
        s.candidates[at] = s.candidates[at - 1];
      }
      tied |= at > 0 && s.candidates[at - 1].overlap == candidate.overlap;
      s.candidates[at] = candidate;
    }
    if (!tied || !p_.tie_order)
      return;
    const int64_t size = range.end - range.begin;
    s.overlaps.resize(static_cast<size_t>(size));
    s.tried.resize(static_cast<size_t>(size));
    for (int64_t g = 0; g < size; ++g)
      s.overlaps[g] = overlap(p_.rules, detection.start, detection.end,
                              s.instances[range.begin + g].start, s.instances[range.begin + g].end);
    p_.tie_order(s.overlaps.data(), size, s.tried.data());
    s.candidates.clear();
    for (const int64_t g : s.tried) {
      const double o = s.overlaps[g];
      if (o < lowest_)
        continue;
      uint64_t reach = 0;
      for (int64_t k = 0; k < p_.num_thresholds; ++k) {
        if (reaches(o, p_.thresholds[k]))
          reach |= uint64_t{1} << k;
      }
      s.candidates.push_back({o, reach, &s.instances[range.begin + g]});
    }
  }

  void note_match(int64_t i, int64_t instance, uint64_t thresholds) const {
    for (int64_t k = 0; thresholds != 0; ++k, thresholds >>= 1) {
      if (thresholds & 1)
        r_.matched[k * p_.detections.size + i] = instance;
    }
  }

  void let_instances_choose(const int64_t* ranked, int64_t size, Scratch& s) const {
    // Detections of each video that has ground truth, by rank.
    s.detections_of.resize(std::max(s.detections_of.size(), s.instances.size()));
    for (size_t g = 0; g < s.instances.size(); ++g)
      s.detections_of[g].clear();
    for (int64_t n = 0; n < size; ++n) {
      const Scratch::Range& range = s.range_of_video[p_.detections.video[ranked[n]]];
      if (range.begin != range.end)
        s.detections_of[range.begin].push_back(ranked[n]);
    }
    for (size_t g = 0; g < s.instances.size();) {
      const int64_t video = p_.ground_truth.video[s.instances[g].index];
      const Scratch::Range range = s.range_of_video[video];
      choose_in_video(range, s.detections_of[range.begin], s);
      g = static_cast<size_t>(range.end);
    }
  }

  void choose_in_video(const Scratch::Range& range, const std::vector<int64_t>& own,
                       Scratch& s) const {
    const size_t columns = own.size();
    s.overlaps.resize(static_cast<size_t>(range.end - range.begin) * columns);
    for (int64_t g = range.begin; g < range.end; ++g) {
      for (size_t d = 0; d < columns; ++d)
        s.overlaps[static_cast<size_t>(g - range.begin) * columns + d] =
            overlap(p_.rules, p_.detections.start[own[d]], p_.detections.end[own[d]],
                    s.instances[g].start, s.instances[g].end);
    }
    for (int64_t k = 0; k < p_.num_thresholds; ++k) {
      s.taken.assign(columns, 0);
      for (int64_t g = range.begin; g < range.end; ++g) {
        const double* row = s.overlaps.data() + static_cast<size_t>(g - range.begin) * columns;
        double best = -1.0;
        size_t at = columns;
        for (size_t d = 0; d < columns; ++d) {
          if (s.taken[d] == 0 && row[d] > best) {
            best = row[d];
            at = d;
          }
        }
        if (at == columns || !reaches(best, p_.thresholds[k]))
          continue;
        s.taken[at] = 1;
        s.instances[g].taken |= uint64_t{1} << k;
        r_.hits[own[at]] |= uint64_t{1} << k;
        if (want_matched_)
          note_match(own[at], s.instances[g].index, uint64_t{1} << k);
      }
    }
  }

  void measure(int64_t c, const int64_t* ranked, int64_t size, int64_t num_gt, Scratch& s) const {
    s.hit_rank.resize(static_cast<size_t>(p_.num_thresholds));
    for (auto& ranks : s.hit_rank)
      ranks.clear();
    s.removed.assign(static_cast<size_t>(p_.num_thresholds), 0);
    for (int64_t n = 0; n < size; ++n) {
      const uint64_t hits = s.hits[n];
      const bool touches = !r_.ambiguous.empty() && r_.ambiguous[ranked[n]] != 0;
      if (hits == 0 && !touches)
        continue;
      for (int64_t k = 0; k < p_.num_thresholds; ++k) {
        if (hits >> k & 1)
          s.hit_rank[k].push_back(n - s.removed[k]);
        else if (touches)
          ++s.removed[k];
      }
    }
    for (int64_t k = 0; k < p_.num_thresholds; ++k) {
      const int64_t at = c * p_.num_thresholds + k;
      r_.true_positives[at] = static_cast<int64_t>(s.hit_rank[k].size());
      r_.ap[at] = area(s.hit_rank[k], num_gt, p_.rules.interpolate);
    }
  }

  // NaN sorts before every tIoU, as numpy's reversed argsort has it.
  static constexpr double kFirst = std::numeric_limits<double>::infinity();

  const Problem& p_;
  Result& r_;
  const Groups detections_;
  const Groups ground_truth_;
  const double lowest_;  // of the thresholds
  const bool want_matched_;
};

// Which detections overlap an ambiguous region of their video.
std::vector<uint8_t> touching(const Problem& p) {
  if (p.ambiguous.size == 0)
    return {};
  const Groups regions = group_by(p.ambiguous.video, p.ambiguous.size, p.num_videos);
  std::vector<uint8_t> touches(static_cast<size_t>(p.detections.size), 0);
  for (int64_t i = 0; i < p.detections.size; ++i) {
    const int64_t video = p.detections.video[i];
    for (int64_t n = 0; n < regions.size_of(video); ++n) {
      const int64_t a = regions.of(video)[n];
      if (overlap(p.rules, p.detections.start[i], p.detections.end[i], p.ambiguous.start[a],
                  p.ambiguous.end[a]) > 0.0)
        touches[i] = 1;
    }
  }
  return touches;
}

}  // namespace

// Between two hits precision only falls, so the envelope is decided at the hits alone, and each hit
// adds 1 / num_gt of recall.
double area(const std::vector<int64_t>& rank, int64_t num_gt, bool interpolate) {
  double best = 0.0;
  double sum = 0.0;
  for (size_t n = rank.size(); n-- > 0;) {
    const double precision = static_cast<double>(n + 1) / static_cast<double>(rank[n] + 1);
    best = interpolate ? std::max(best, precision) : precision;
    sum += best;
  }
  return sum / static_cast<double>(num_gt);
}

Result average_precision(const Problem& p, int num_threads, bool want_matched) {
  const auto cells = static_cast<size_t>(p.num_classes * p.num_thresholds);
  const auto size = static_cast<size_t>(p.detections.size);
  Result result;
  result.ap.assign(cells, std::numeric_limits<double>::quiet_NaN());
  result.true_positives.assign(cells, 0);
  result.num_ground_truth.assign(static_cast<size_t>(p.num_classes), 0);
  result.num_detections.assign(static_cast<size_t>(p.num_classes), 0);
  result.hits.assign(size, 0);
  result.found.assign(static_cast<size_t>(p.ground_truth.size), 0);
  result.ranked.resize(size);
  result.ambiguous = touching(p);
  if (want_matched)
    result.matched.assign(size * static_cast<size_t>(p.num_thresholds), -1);

  const Evaluation evaluation(p, want_matched, result);
  for_each_part<Scratch>(p.num_classes,
                         choose_threads(num_threads, p.detections.size, p.num_classes),
                         [&](int64_t c, Scratch& scratch) { evaluation.run_class(c, scratch); });
  return result;
}

}  // namespace tal_fast::evaluation
