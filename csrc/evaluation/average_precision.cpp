// SPDX-License-Identifier: Apache-2.0
#include "average_precision.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace tal_fast::evaluation {
namespace {

// Below this many detections per thread, starting threads costs more than they save.
constexpr int64_t kDetectionsPerThread = 20'000;

[[noreturn]] void fail(const char* array, int64_t index, const std::string& why) {
  throw std::invalid_argument(std::string(array) + " " + std::to_string(index) + ": " + why);
}

void check_segment(const char* array, int64_t i, double start, double end) {
  if (!std::isfinite(start) || !std::isfinite(end)) {
    fail(array, i,
         "expected finite times, got [" + std::to_string(start) + ", " + std::to_string(end) + "]");
  }
  if (end < start) {
    fail(array, i,
         "expected end >= start, got [" + std::to_string(start) + ", " + std::to_string(end) + "]");
  }
}

void check_index(const char* array, int64_t i, const char* what, int64_t value, int64_t limit) {
  if (value < 0 || value >= limit) {
    fail(array, i,
         std::string("expected a ") + what + " in [0, " + std::to_string(limit) + "), got " +
             std::to_string(value));
  }
}

void check(const Problem& p) {
  if (p.num_videos < 0 || p.num_classes < 0) {
    throw std::invalid_argument("expected num_videos and num_classes >= 0, got " +
                                std::to_string(p.num_videos) + " and " +
                                std::to_string(p.num_classes));
  }
  if (p.num_thresholds < 1 || p.num_thresholds > kMaxThresholds) {
    throw std::invalid_argument("expected 1 to " + std::to_string(kMaxThresholds) +
                                " thresholds, got " + std::to_string(p.num_thresholds));
  }
  for (int64_t k = 0; k < p.num_thresholds; ++k) {
    // Written so that NaN fails too.
    if (!(p.thresholds[k] > 0.0 && p.thresholds[k] <= 1.0)) {
      fail("threshold", k, "expected 0 < t <= 1, got " + std::to_string(p.thresholds[k]));
    }
  }
  const GroundTruth& g = p.ground_truth;
  for (int64_t i = 0; i < g.size; ++i) {
    check_index("ground truth", i, "video", g.video[i], p.num_videos);
    check_index("ground truth", i, "label", g.label[i], p.num_classes);
    check_segment("ground truth", i, g.start[i], g.end[i]);
  }
  const Detections& d = p.detections;
  for (int64_t i = 0; i < d.size; ++i) {
    check_index("detection", i, "video", d.video[i], p.num_videos);
    check_index("detection", i, "label", d.label[i], p.num_classes);
    check_segment("detection", i, d.start[i], d.end[i]);
    if (!std::isfinite(d.score[i])) {
      fail("detection", i, "expected a finite score, got " + std::to_string(d.score[i]));
    }
  }
}

// Indices grouped by label, in input order within a label.
struct ByLabel {
  std::vector<int64_t> begin;  // [num_classes + 1]
  std::vector<int64_t> index;  // [size]
};

ByLabel group_by_label(const int64_t* label, int64_t size, int64_t num_classes) {
  ByLabel groups;
  groups.begin.assign(static_cast<size_t>(num_classes) + 1, 0);
  groups.index.resize(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i)
    ++groups.begin[label[i] + 1];
  for (int64_t c = 0; c < num_classes; ++c)
    groups.begin[c + 1] += groups.begin[c];
  std::vector<int64_t> next(groups.begin.begin(), groups.begin.end() - 1);
  for (int64_t i = 0; i < size; ++i)
    groups.index[next[label[i]]++] = i;
  return groups;
}

// What one thread needs for one class, kept between classes so that nothing is allocated per class.
struct Scratch {
  struct Ranked {
    double score;
    int64_t index;
  };
  struct Instance {
    double start;
    double end;
    uint64_t taken;  // bit k: already matched at thresholds[k]
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

  std::vector<int64_t> order;         // the class's ground truth, as input indices by video
  std::vector<Range> range_of_video;  // [num_videos]; empty between classes
  std::vector<Instance> instances;    // the class's ground truth, by video
  std::vector<Ranked> ranked;         // the class's detections, by falling score
  std::vector<Candidate> candidates;  // of one detection
  std::vector<std::vector<int64_t>> hit_rank;  // [num_thresholds][true positives], rising
};

class Evaluation {
 public:
  Evaluation(const Problem& problem, Result& result)
      : p_(problem),
        result_(result),
        detections_(
            group_by_label(problem.detections.label, problem.detections.size, problem.num_classes)),
        ground_truth_(group_by_label(problem.ground_truth.label, problem.ground_truth.size,
                                     problem.num_classes)),
        lowest_(
            *std::min_element(problem.thresholds, problem.thresholds + problem.num_thresholds)) {}

  // Writes only what belongs to class c: its rows of the result and its detections' hits.
  void run_class(int64_t c, Scratch& s) const {
    const int64_t* gt_begin = ground_truth_.index.data() + ground_truth_.begin[c];
    const int64_t num_gt = ground_truth_.begin[c + 1] - ground_truth_.begin[c];
    const int64_t num_det = detections_.begin[c + 1] - detections_.begin[c];
    result_.num_ground_truth[c] = num_gt;
    result_.num_detections[c] = num_det;
    if (num_gt == 0)
      return;  // AP stays NaN

    place_ground_truth(gt_begin, num_gt, s);
    rank_detections(detections_.index.data() + detections_.begin[c], num_det, s);
    s.hit_rank.resize(static_cast<size_t>(p_.num_thresholds));
    for (auto& ranks : s.hit_rank)
      ranks.clear();
    for (int64_t r = 0; r < num_det; ++r) {
      const int64_t i = s.ranked[r].index;
      const uint64_t hits = match(i, s);
      result_.hits[i] = hits;
      if (hits == 0)
        continue;
      for (int64_t k = 0; k < p_.num_thresholds; ++k) {
        if (hits >> k & 1)
          s.hit_rank[k].push_back(r);
      }
    }
    for (int64_t k = 0; k < p_.num_thresholds; ++k) {
      const int64_t at = c * p_.num_thresholds + k;
      result_.true_positives[at] = static_cast<int64_t>(s.hit_rank[k].size());
      result_.ap[at] = envelope_area(s.hit_rank[k], num_gt);
    }
    for (int64_t g = 0; g < num_gt; ++g)
      s.range_of_video[p_.ground_truth.video[gt_begin[g]]] = {};
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
      s.instances[g] = {gt.start[i], gt.end[i], 0};
    }
  }

  // By falling score; input order among equal scores.
  void rank_detections(const int64_t* index, int64_t size, Scratch& s) const {
    s.ranked.resize(static_cast<size_t>(size));
    for (int64_t r = 0; r < size; ++r)
      s.ranked[r] = {p_.detections.score[index[r]], index[r]};
    // The index makes the order total, so that an unstable sort gives the stable result.
    std::sort(s.ranked.begin(), s.ranked.end(),
              [](const Scratch::Ranked& a, const Scratch::Ranked& b) {
                return a.score != b.score ? a.score > b.score : a.index < b.index;
              });
  }

  double overlap(double start, double end, const Scratch::Instance& instance) const {
    const double intersection =
        std::max(std::min(end, instance.end) - std::max(start, instance.start), 0.0);
    const double length_union = (instance.end - instance.start) + (end - start) - intersection;
    if (p_.rules.guard_union && length_union <= 0.0)
      return 0.0;
    return intersection / length_union;
  }

  // Takes the instances that detection i matches; returns the thresholds at which it matched one.
  //
  // All thresholds share one walk over the instances by falling tIoU: `open` are the thresholds
  // at which the detection still looks for an instance.
  uint64_t match(int64_t i, Scratch& s) const {
    const Detections& det = p_.detections;
    const Scratch::Range range = s.range_of_video[det.video[i]];
    s.candidates.clear();
    for (int64_t g = range.begin; g < range.end; ++g) {
      Scratch::Instance& instance = s.instances[g];
      const double o = overlap(det.start[i], det.end[i], instance);
      if (o < lowest_)
        continue;  // a NaN (unguarded union) stays
      uint64_t reach = 0;
      for (int64_t k = 0; k < p_.num_thresholds; ++k) {
        if (!(o < p_.thresholds[k]))
          reach |= uint64_t{1} << k;
      }
      s.candidates.push_back({std::isnan(o) ? kFirst : o, reach, &instance});
    }
    // Few candidates reach a threshold: insertion sort, stable.
    for (size_t n = 1; n < s.candidates.size(); ++n) {
      const Scratch::Candidate candidate = s.candidates[n];
      size_t at = n;
      for (; at > 0 && s.candidates[at - 1].overlap < candidate.overlap; --at) {
        s.candidates[at] = s.candidates[at - 1];
      }
      s.candidates[at] = candidate;
    }
    uint64_t open = ~uint64_t{0};
    uint64_t hits = 0;
    for (const Scratch::Candidate& candidate : s.candidates) {
      const uint64_t take = open & candidate.reach & ~candidate.instance->taken;
      candidate.instance->taken |= take;
      hits |= take;
      open &= ~take;
    }
    return hits;
  }

  // Area under the precision envelope. Between two hits precision only falls, so the envelope is
  // decided at the hits alone, and each hit adds 1 / num_gt of recall.
  static double envelope_area(const std::vector<int64_t>& hit_rank, int64_t num_gt) {
    double best = 0.0;
    double sum = 0.0;
    for (size_t n = hit_rank.size(); n-- > 0;) {
      best = std::max(best, static_cast<double>(n + 1) / static_cast<double>(hit_rank[n] + 1));
      sum += best;
    }
    return sum / static_cast<double>(num_gt);
  }

  // NaN sorts before every tIoU, as numpy's reversed argsort has it.
  static constexpr double kFirst = std::numeric_limits<double>::infinity();

  const Problem& p_;
  Result& result_;
  const ByLabel detections_;
  const ByLabel ground_truth_;
  const double lowest_;  // of the thresholds
};

int choose_threads(const Problem& p, int wanted) {
  int64_t threads = wanted;
  if (threads <= 0) {
    const int64_t available = std::max<int64_t>(std::thread::hardware_concurrency(), 1);
    threads = std::min(available, p.detections.size / kDetectionsPerThread + 1);
  }
  return static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(p.num_classes, 1)));
}

}  // namespace

Result average_precision(const Problem& p, int num_threads) {
  check(p);
  const auto cells = static_cast<size_t>(p.num_classes * p.num_thresholds);
  Result result;
  result.ap.assign(cells, std::numeric_limits<double>::quiet_NaN());
  result.true_positives.assign(cells, 0);
  result.num_ground_truth.assign(static_cast<size_t>(p.num_classes), 0);
  result.num_detections.assign(static_cast<size_t>(p.num_classes), 0);
  result.hits.assign(static_cast<size_t>(p.detections.size), 0);

  const Evaluation evaluation(p, result);
  std::atomic<int64_t> next_class{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  // An exception must not leave a thread's function; only memory can fail here.
  const auto work = [&] {
    try {
      Scratch scratch;
      for (int64_t c; (c = next_class.fetch_add(1)) < p.num_classes;) {
        evaluation.run_class(c, scratch);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error)
        error = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(choose_threads(p, num_threads)));
  try {
    for (int n = choose_threads(p, num_threads); n > 1; --n)
      helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // No more threads to be had: those that started, and this one, do all the work.
  }
  work();
  for (std::thread& helper : helpers)
    helper.join();
  if (error)
    std::rethrow_exception(error);
  return result;
}

}  // namespace tal_fast::evaluation
