// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// What all parts of the evaluator share: the problem in plain arrays, the rules, the temporal IoU
// and the work over threads. No torch, no Python.
namespace tal_fast::evaluation {

// A detection's hits are one bit per threshold.
constexpr int64_t kMaxThresholds = 64;

// What becomes of a union of length zero, which only two zero-length segments have.
enum class Union : int {
  kGuarded = 0,    // tIoU 0
  kUnguarded = 1,  // 0 / 0 = NaN, which is below no threshold and comes before every tIoU
  kClamped = 2,    // union at least 1e-8, so tIoU 0
};

// What distinguishes the evaluators in use, as far as it is decided here: the rest of a dialect is
// applied before (tal_fast/evaluation/rules.py).
struct Rules {
  Union union_rule = Union::kGuarded;
  // tIoU is rounded to float32 before it is compared with the (float64) thresholds.
  bool single_tiou = false;
  // Segments are rounded to float32 first and their lengths computed in it.
  bool single_segments = false;
  // Instances choose among the detections (THUMOS'14) instead of detections among the instances.
  bool instances_choose = false;
  // A tIoU must exceed the threshold, not only reach it.
  bool strictly_above = false;
  // Precision at a recall is the largest one at this recall or a higher one.
  bool interpolate = true;
};

struct Detections {
  int64_t size = 0;
  const int64_t* video = nullptr;  // [size] in [0, num_videos)
  const int64_t* label = nullptr;  // [size] in [0, num_classes)
  const double* start = nullptr;   // [size] finite, any unit, the same as the ground truth's
  const double* end = nullptr;     // [size] finite, >= start
  const double* score = nullptr;   // [size] finite
};

struct GroundTruth {
  int64_t size = 0;
  const int64_t* video = nullptr;  // [size]
  const int64_t* label = nullptr;  // [size]
  const double* start = nullptr;   // [size]
  const double* end = nullptr;     // [size]
};

// Stretches of time where a detection that hits nothing is not held against it.
struct Regions {
  int64_t size = 0;
  const int64_t* video = nullptr;  // [size]
  const double* start = nullptr;   // [size]
  const double* end = nullptr;     // [size]
};

// Puts overlaps in the order in which a detection tries them; called where equal ones (or NaN)
// leave that open and another order than ours is wanted. May be called from several threads.
using TieOrder = std::function<void(const double* overlaps, int64_t size, int64_t* order)>;

struct Problem {
  Detections detections;
  GroundTruth ground_truth;
  Regions ambiguous;
  int64_t num_videos = 0;
  int64_t num_classes = 0;
  int64_t num_thresholds = 0;
  const double* thresholds = nullptr;  // [num_thresholds], in (0, 1], in any order
  // Permutation of the detections by falling score, with the ties as wanted; null: ours.
  const int64_t* order = nullptr;  // [detections]
  TieOrder tie_order;              // empty: ours
  Rules rules;
};

// Throws std::invalid_argument that names the array and index of the first bad value: what the code
// goes by (video, label, order, number of thresholds) and thresholds outside (0, 1]. Times and
// scores are the caller's to check, who knows the names of their records
// (tal_fast/evaluation/columns.py): no value of theirs leads outside an array.
void check(const Problem& problem);

// Temporal IoU of two segments under the rules.
inline double overlap(const Rules& rules, double start, double end, double other_start,
                      double other_end) {
  double intersection;
  double length_union;
  if (rules.single_segments) {
    const auto s = static_cast<float>(start), e = static_cast<float>(end);
    const auto os = static_cast<float>(other_start), oe = static_cast<float>(other_end);
    const float common = std::max(std::min(e, oe) - std::max(s, os), 0.0F);
    intersection = common;
    length_union = (oe - os) + (e - s) - common;
  } else {
    intersection = std::max(std::min(end, other_end) - std::max(start, other_start), 0.0);
    length_union = (other_end - other_start) + (end - start) - intersection;
  }
  if (rules.union_rule == Union::kGuarded && length_union <= 0.0)
    return 0.0;
  if (rules.union_rule == Union::kClamped)
    length_union = std::max(length_union, 1e-8);
  const double tiou = intersection / length_union;
  return rules.single_tiou ? static_cast<double>(static_cast<float>(tiou)) : tiou;
}

// Indices grouped by a key, in input order within a group.
struct Groups {
  std::vector<int64_t> begin;  // [num_groups + 1]
  std::vector<int64_t> index;  // [size]

  int64_t size_of(int64_t group) const { return begin[group + 1] - begin[group]; }
  const int64_t* of(int64_t group) const { return index.data() + begin[group]; }
};

// `order`: the sequence in which to go over the elements; null: as they are.
Groups group_by(const int64_t* key, int64_t size, int64_t num_groups,
                const int64_t* order = nullptr);

// Positions by falling score; input order among equal scores.
class Ranker {
 public:
  struct Entry {
    uint64_t key;
    int64_t position;  // in `index`
  };
  // index: which scores to rank, [size]. Returns its positions ranked; valid until the next call.
  const std::vector<Entry>& rank(const double* score, const int64_t* index, int64_t size);

 private:
  std::vector<Entry> entries_, spare_;
};

// Threads to use: `wanted`, or as many as `work` detections are worth, and no more than `parts`.
int choose_threads(int wanted, int64_t work, int64_t parts);

// Calls work(part, scratch) for every part, each on one thread, one Scratch per thread. The first
// exception is rethrown when all threads have ended.
template <typename Scratch, typename Work>
void for_each_part(int64_t parts, int num_threads, const Work& work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  // An exception must not leave a thread's function.
  const auto run = [&] {
    try {
      Scratch scratch;
      for (int64_t part; (part = next.fetch_add(1)) < parts;) {
        work(part, scratch);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error)
        error = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(std::max(num_threads, 1)));
  try {
    for (int n = num_threads; n > 1; --n)
      helpers.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had: those that started, and this one, do all the work.
  }
  run();
  for (std::thread& helper : helpers)
    helper.join();
  if (error)
    std::rethrow_exception(error);
}

}  // namespace tal_fast::evaluation
