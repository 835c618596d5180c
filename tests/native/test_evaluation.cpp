// SPDX-License-Identifier: Apache-2.0
// The evaluator without Python, for the sanitizers: hand-computed cases, bad input, and the same
// bits from every number of threads.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>

#include "evaluation/average_precision.h"
#include "evaluation/error_analysis.h"
#include "evaluation/recall.h"
#include "evaluation/resampling.h"

namespace ev = tal_fast::evaluation;

namespace {

// Not assert(): release builds define NDEBUG.
#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

struct Columns {
  std::vector<int64_t> video, label;
  std::vector<double> start, end, score;

  void add(int64_t v, int64_t c, double s, double e, double x = 0.0) {
    video.push_back(v);
    label.push_back(c);
    start.push_back(s);
    end.push_back(e);
    score.push_back(x);
  }
};

struct Case {
  Columns truth, found;
  int64_t num_videos = 2;
  int64_t num_classes = 2;
  std::vector<double> thresholds{0.5};
  ev::Rules rules;
  Columns regions;
  std::vector<int64_t> order;

  ev::Problem problem() const {
    ev::Problem p;
    p.ground_truth = {static_cast<int64_t>(truth.video.size()), truth.video.data(),
                      truth.label.data(), truth.start.data(), truth.end.data()};
    p.detections = {static_cast<int64_t>(found.video.size()),
                    found.video.data(),
                    found.label.data(),
                    found.start.data(),
                    found.end.data(),
                    found.score.data()};
    p.num_videos = num_videos;
    p.num_classes = num_classes;
    p.num_thresholds = static_cast<int64_t>(thresholds.size());
    p.thresholds = thresholds.data();
    p.ambiguous = {static_cast<int64_t>(regions.video.size()), regions.video.data(),
                   regions.start.data(), regions.end.data()};
    p.rules = rules;
    p.order = order.empty() ? nullptr : order.data();
    return p;
  }

  ev::Result run(int threads = 1, bool want_matched = false) const {
    const ev::Problem p = problem();
    ev::check(p);
    return ev::average_precision(p, threads, want_matched);
  }

  std::string error() const {
    try {
      run();
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "no error";
  }
};

void matches_and_ranks() {
  Case c;
  c.thresholds = {0.7, 0.3};  // any order
  c.truth.add(0, 0, 0, 10);
  c.truth.add(0, 0, 20, 30);
  c.found.add(0, 0, 0, 5, 0.9);     // tIoU 0.5: hit at 0.3
  c.found.add(1, 0, 0, 10, 0.8);    // other video: false
  c.found.add(0, 0, 20, 30, 0.7);   // hit at both
  c.found.add(0, 1, 20, 30, 0.99);  // class without ground truth
  const ev::Result r = c.run();
  CHECK(std::abs(r.ap[0] - 0.5 * (1.0 / 3.0)) < 1e-15);
  CHECK(std::abs(r.ap[1] - 0.5 * (1.0 + 2.0 / 3.0)) < 1e-15);
  CHECK(std::isnan(r.ap[2]) && std::isnan(r.ap[3]));
  CHECK(r.hits == (std::vector<uint64_t>{2, 0, 3, 0}));
  CHECK(r.true_positives == (std::vector<int64_t>{1, 2, 0, 0}));
  CHECK(r.num_ground_truth == (std::vector<int64_t>{2, 0}));
  CHECK(r.num_detections == (std::vector<int64_t>{3, 1}));
}

void falls_through_to_the_second_best() {
  Case c;
  c.truth.add(0, 0, 0, 10);
  c.truth.add(0, 0, 2, 12);
  c.found.add(0, 0, 0, 10, 0.9);
  c.found.add(0, 0, 0, 10, 0.8);  // best is taken, the other has tIoU 8 / 12
  c.found.add(0, 0, 0, 10, 0.7);  // both taken
  const ev::Result r = c.run();
  CHECK(r.hits == (std::vector<uint64_t>{1, 1, 0}));
  CHECK(r.ap[0] == 1.0);
}

void ties_keep_the_input_order() {
  Case c;
  c.truth.add(0, 0, 0, 10);
  c.found.add(1, 0, 0, 10, 0.5);
  c.found.add(0, 0, 0, 10, 0.5);
  CHECK(c.run().ap[0] == 0.5);
  std::swap(c.found.video[0], c.found.video[1]);
  CHECK(c.run().ap[0] == 1.0);
  c.found.score = {0.0, -0.0};  // equal too
  CHECK(c.run().ap[0] == 1.0);
}

void zero_length() {
  Case c;
  c.truth.add(0, 0, 5, 5);
  c.found.add(0, 0, 5, 5, 0.5);
  CHECK(c.run().ap[0] == 0.0);
  c.rules.union_rule = ev::Union::kClamped;
  CHECK(c.run().ap[0] == 0.0);
  c.rules.union_rule = ev::Union::kUnguarded;
  CHECK(c.run().ap[0] == 1.0);
}

void nothing_at_all() {
  Case c;
  CHECK(std::isnan(c.run(8).ap[1]));
  c.num_classes = 0;
  c.num_videos = 0;
  CHECK(c.run(8).ap.empty());
}

void all_threshold_bits() {
  Case c;
  c.thresholds.clear();
  for (int k = 1; k <= 64; ++k)
    c.thresholds.push_back(k / 64.0);
  c.truth.add(0, 0, 0, 10);
  c.found.add(0, 0, 0, 10, 0.5);
  const ev::Result r = c.run();
  CHECK(r.hits[0] == ~uint64_t{0});
  for (int k = 0; k < 64; ++k)
    CHECK(r.ap[k] == 1.0);
  c.thresholds.push_back(0.001);
  CHECK(c.error() == "expected 1 to 64 thresholds, got 65");
}

Case random_case() {
  Case c;
  c.num_videos = 50;
  c.num_classes = 13;
  c.thresholds = {0.3, 0.4, 0.5, 0.6, 0.7};
  std::mt19937_64 random(7);
  const auto uniform = [&random](double high) {
    return high * static_cast<double>(random() >> 11) / 9007199254740992.0;
  };
  for (int n = 0; n < 600; ++n) {
    const double start = uniform(100);
    c.truth.add(static_cast<int64_t>(random() % 50), static_cast<int64_t>(random() % 12), start,
                start + uniform(20));
  }
  for (int n = 0; n < 20000; ++n) {
    const double start = uniform(100);
    c.found.add(static_cast<int64_t>(random() % 50), static_cast<int64_t>(random() % 13), start,
                start + uniform(20), std::floor(uniform(500)));  // many ties
  }
  return c;
}

void threads_do_not_matter() {
  const Case c = random_case();
  const ev::Result one = c.run(1);
  CHECK(one.true_positives[0] > 0);
  for (const int threads : {0, 2, 3, 16, 64}) {
    const ev::Result many = c.run(threads);
    CHECK(std::memcmp(one.ap.data(), many.ap.data(), one.ap.size() * sizeof(double)) == 0);
    CHECK(one.hits == many.hits);
    CHECK(one.true_positives == many.true_positives);
    CHECK(one.num_detections == many.num_detections);
  }
}

void instances_choose() {
  Case c;
  c.rules.instances_choose = true;
  c.rules.strictly_above = true;
  c.rules.interpolate = false;
  c.truth.add(0, 0, 0, 10);
  c.truth.add(0, 0, 20, 30);
  c.found.add(0, 0, 0, 6, 0.9);    // tIoU 0.6, but the next one has more
  c.found.add(0, 0, 0, 9, 0.8);    // hit
  c.found.add(0, 0, 20, 25, 0.7);  // tIoU 0.5 is not above 0.5
  const ev::Result r = c.run(1, true);
  CHECK(r.hits == (std::vector<uint64_t>{0, 1, 0}));
  CHECK(r.matched == (std::vector<int64_t>{-1, 0, -1}));
  CHECK(r.ap[0] == 0.25);
  c.regions.add(0, 0, 5, 7);  // over the first two; the hit stays
  CHECK(c.run().ap[0] == 0.5);
}

void the_given_order_holds() {
  Case c;
  c.truth.add(0, 0, 0, 10);
  c.found.add(1, 0, 0, 10, 0.5);
  c.found.add(0, 0, 0, 10, 0.5);
  c.order = {1, 0};
  CHECK(c.run().ap[0] == 1.0);
  c.order = {1, 1};
  CHECK(c.error() == "order 1: expected each detection once, got 1");
}

void first_hits_count_detections() {
  Case c;
  c.thresholds = {0.4, 0.9};
  c.truth.add(0, 0, 0, 10);
  c.truth.add(1, 0, 0, 10);
  c.found.add(0, 1, 0, 10, 0.9);
  c.found.add(0, 0, 0, 5, 0.8);
  const ev::Problem p = c.problem();
  CHECK(ev::first_hits(p, false) == (std::vector<int64_t>{0, 0, ev::kNever, ev::kNever}));
  CHECK(ev::first_hits(p, true) == (std::vector<int64_t>{0, ev::kNever, ev::kNever, ev::kNever}));
}

void errors_have_kinds() {
  Case c;
  c.truth.add(0, 0, 0, 10);
  c.truth.add(0, 1, 40, 50);
  c.found.add(0, 0, 0, 10, 0.9);   // hit
  c.found.add(0, 0, 0, 9, 0.8);    // double
  c.found.add(0, 0, 40, 50, 0.7);  // wrong label
  c.found.add(0, 0, 0, 3, 0.6);    // localisation
  c.found.add(0, 0, 40, 43, 0.5);  // confusion
  c.found.add(1, 0, 0, 10, 0.4);   // background
  const ev::Problem p = c.problem();
  const ev::Result r = ev::average_precision(p, 1, true);
  const ev::Kinds kinds = ev::error_kinds(p, r, 0.1);
  CHECK(kinds.kind == (std::vector<uint8_t>{0, 1, 2, 3, 4, 5}));
  CHECK(kinds.best_instance == (std::vector<int64_t>{0, 0, 1, 0, 1, -1}));
  const std::vector<double> without = ev::ap_without(p, r, kinds.kind);
  for (int e = 0; e < 5; ++e)
    CHECK(without[e * 2] == 1.0);  // the hit comes first
  const std::vector<int64_t> bin{0, 1};
  const std::vector<double> ap = ev::ap_of_bins(p, r, bin.data(), 2, 1.0);
  CHECK(ap[0] == 1.0 && std::isnan(ap[1]) && std::isnan(ap[2]) && ap[3] == 0.0);
}

void a_replicate_that_draws_each_video_once_is_the_result() {
  Case c = random_case();
  c.num_videos = 50;
  const ev::Problem p = c.problem();
  const ev::Result r = c.run();
  const std::vector<double> one = ev::resample(p, r, 20, 3, 1);
  const std::vector<double> four = ev::resample(p, r, 20, 3, 4);
  CHECK(std::memcmp(one.data(), four.data(), one.size() * sizeof(double)) == 0);  // NaN too
  CHECK(ev::draw_videos(1, 0, 0) == std::vector<int64_t>{1});
  Case small;
  small.num_videos = 1;
  small.num_classes = 1;
  small.truth.add(0, 0, 0, 10);
  small.found.add(0, 0, 30, 40, 0.9);
  small.found.add(0, 0, 0, 10, 0.8);
  CHECK(ev::resample(small.problem(), small.run(), 3, 1)[2] == 0.5);
}

void bad_input_is_named() {
  Case good;
  good.truth.add(0, 0, 0, 10);
  good.found.add(0, 0, 0, 10, 0.5);
  CHECK(good.error() == "no error");
  Case c = good;
  c.found.label[0] = 2;
  CHECK(c.error() == "detection 0: expected a label in [0, 2), got 2");
  c = good;
  c.truth.video[0] = -1;
  CHECK(c.error() == "ground truth 0: expected a video in [0, 2), got -1");
  c = good;
  c.thresholds = {0.5, std::numeric_limits<double>::quiet_NaN()};
  CHECK(c.error() == "threshold 1: expected 0 < t <= 1, got nan");
  c = good;
  c.thresholds.clear();
  CHECK(c.error() == "expected 1 to 64 thresholds, got 0");
}

}  // namespace

int main() {
  matches_and_ranks();
  falls_through_to_the_second_best();
  ties_keep_the_input_order();
  zero_length();
  nothing_at_all();
  all_threshold_bits();
  threads_do_not_matter();
  instances_choose();
  the_given_order_holds();
  first_hits_count_detections();
  errors_have_kinds();
  a_replicate_that_draws_each_video_once_is_the_result();
  bad_input_is_named();
  std::puts("evaluation: all passed");
  return 0;
}
