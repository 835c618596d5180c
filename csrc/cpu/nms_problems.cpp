// SPDX-License-Identifier: Apache-2.0
#include "cpu/nms_problems.h"

#include <algorithm>
#include <numeric>

#include "cpu/radix_sort.h"

namespace tal_fast::cpu {
namespace {

// From this many segments on, ranking and indexing are worth two threads.
constexpr int64_t kRunBothFrom = 65536;

struct KeyRange {
  int64_t low;
  uint64_t size;  // number of values from lowest to highest, 0 if that does not fit
};

KeyRange range_of(const int64_t* keys, int64_t n) {
  if (keys == nullptr || n == 0) {
    return {0, 1};
  }
  int64_t low = keys[0];
  int64_t high = keys[0];
  for (int64_t i = 1; i < n; ++i) {
    low = std::min(low, keys[i]);
    high = std::max(high, keys[i]);
  }
  return {low, static_cast<uint64_t>(high) - static_cast<uint64_t>(low) + 1};
}

// Labels and videos are small dense numbers as a rule: one counting sort by the pair of them.
NmsGroups count_problems(const int64_t* videos, const int64_t* labels, int64_t n, KeyRange video,
                         KeyRange label) {
  const auto num_labels = static_cast<int64_t>(label.size);
  const auto cells = static_cast<int64_t>(video.size * label.size);
  const auto cell_of = [=](int64_t i) {
    const int64_t v = videos == nullptr ? 0 : videos[i] - video.low;
    const int64_t l = labels == nullptr ? 0 : labels[i] - label.low;
    return v * num_labels + l;
  };
  NmsGroups groups;
  groups.rows.resize(static_cast<size_t>(n));
  std::vector<int64_t> next(static_cast<size_t>(cells), 0);
  for (int64_t i = 0; i < n; ++i) {
    ++next[cell_of(i)];
  }
  int64_t sum = 0;
  int64_t last_video = -1;
  for (int64_t cell = 0; cell < cells; ++cell) {
    const int64_t count = next[cell];
    next[cell] = sum;
    if (count == 0) {
      continue;
    }
    if (cell / num_labels != last_video) {
      last_video = cell / num_labels;
      groups.video_starts.push_back(static_cast<int64_t>(groups.problem_starts.size()));
    }
    groups.problem_starts.push_back(sum);
    sum += count;
  }
  for (int64_t i = 0; i < n; ++i) {
    groups.rows[next[cell_of(i)]++] = static_cast<int32_t>(i);
  }
  return groups;
}

NmsGroups sort_problems(const int64_t* videos, const int64_t* labels, int64_t n) {
  const auto key = [](const int64_t* keys, int32_t row) { return keys == nullptr ? 0 : keys[row]; };
  NmsGroups groups;
  groups.rows.resize(static_cast<size_t>(n));
  std::iota(groups.rows.begin(), groups.rows.end(), 0);
  std::stable_sort(groups.rows.begin(), groups.rows.end(), [&](int32_t a, int32_t b) {
    const int64_t video_a = key(videos, a);
    const int64_t video_b = key(videos, b);
    return video_a != video_b ? video_a < video_b : key(labels, a) < key(labels, b);
  });
  for (int64_t i = 0; i < n; ++i) {
    const int32_t row = groups.rows[i];
    const int32_t before = i == 0 ? row : groups.rows[i - 1];
    const bool new_video = i == 0 || key(videos, row) != key(videos, before);
    if (new_video) {
      groups.video_starts.push_back(static_cast<int64_t>(groups.problem_starts.size()));
    }
    if (new_video || key(labels, row) != key(labels, before)) {
      groups.problem_starts.push_back(i);
    }
  }
  return groups;
}

// The rows with a score of at least `min_score`, in their order.
template <typename T>
int64_t select_rows(const NmsProblem<T>& problem, T min_score, int32_t* rows) {
  int64_t n = 0;
  for (int64_t i = 0; i < problem.count; ++i) {
    rows[n] = problem.rows[i];
    n += problem.scores[problem.rows[i]] >= min_score ? 1 : 0;
  }
  return n;
}

template <typename T>
int32_t best_row(const NmsProblem<T>& problem) {
  int32_t best = problem.rows[0];
  for (int64_t i = 1; i < problem.count; ++i) {
    best = problem.scores[best] < problem.scores[problem.rows[i]] ? problem.rows[i] : best;
  }
  return best;
}

}  // namespace

NmsGroups split_into_problems(const int64_t* videos, const int64_t* labels, int64_t n) {
  if (videos == nullptr && labels == nullptr) {
    NmsGroups all;
    all.rows.resize(static_cast<size_t>(n));
    std::iota(all.rows.begin(), all.rows.end(), 0);
    all.problem_starts = {0, n};
    all.video_starts = {0, 1};
    return all;
  }
  const KeyRange video = range_of(videos, n);
  const KeyRange label = range_of(labels, n);
  const uint64_t limit = 2 * static_cast<uint64_t>(n) + 1024;
  const bool dense = video.size - 1 < limit && label.size - 1 < limit &&
                     video.size * label.size <= limit;  // a size of 0 is one that did not fit
  NmsGroups groups =
      dense ? count_problems(videos, labels, n, video, label) : sort_problems(videos, labels, n);
  groups.video_starts.push_back(static_cast<int64_t>(groups.problem_starts.size()));
  groups.problem_starts.push_back(n);
  return groups;
}

template <typename T>
size_t nms_scratch_bytes(NmsMethod method, int64_t count) {
  Carver carve(nullptr);
  carve.take<int32_t>(count);
  return carve.used() + (method == NmsMethod::kHard
                             ? TAL_FAST_ISA_CALL(hard_nms_scratch_bytes<T>)(count)
                             : TAL_FAST_ISA_CALL(soft_nms_scratch_bytes<T>)(count));
}

template <typename T>
int64_t solve_nms(const NmsProblem<T>& problem, const NmsOptions<T>& options, std::byte* scratch,
                  const RunBoth& run_both, int32_t* kept, T* kept_scores) {
  Carver carve(scratch);
  auto* rows = carve.take<int32_t>(problem.count);
  std::byte* rest = scratch + carve.used();
  const T least = std::max(problem.floor, options.min_score);
  NmsProblem<T> live = problem;
  if (least > -std::numeric_limits<T>::infinity()) {
    live.rows = rows;
    live.count = select_rows(problem, least, rows);
  }
  if (live.count == 0) {
    if (!options.spare_first || problem.count == 0) {
      return 0;
    }
    const int32_t best = best_row(problem);
    if (problem.scores[best] >= options.min_score || problem.scores[best] < problem.floor) {
      return 0;  // the floor has removed it
    }
    // All others fall in the round after the first pick.
    kept[0] = best;
    kept_scores[0] = problem.scores[best];
    return 1;
  }
  if (options.method != NmsMethod::kHard) {
    return TAL_FAST_ISA_CALL(soft_nms_solve<T>)(live, options, rest, kept, kept_scores);
  }
  const auto step = [&](int which) {
    if (which == 0) {
      TAL_FAST_ISA_CALL(hard_nms_rank<T>)(live, options, rest);
    } else {
      TAL_FAST_ISA_CALL(hard_nms_index<T>)(live, options, rest);
    }
  };
  if (live.count >= kRunBothFrom) {
    run_both(step);
  } else {
    step(0);
    step(1);
  }
  return TAL_FAST_ISA_CALL(hard_nms_select<T>)(live, options, rest, kept, kept_scores);
}

template <typename T>
void BestScores<T>::clear() {
  count_ = 0;
  fresh_ = 0;
  floor_ = -std::numeric_limits<T>::infinity();
}

template <typename T>
void BestScores<T>::add(const T* scores, int64_t count) {
  std::copy_n(scores, count, scores_ + count_);
  count_ += count;
  fresh_ += count;
  if (count_ < wanted_ || 4 * fresh_ < wanted_) {
    return;
  }
  std::nth_element(scores_, scores_ + wanted_ - 1, scores_ + count_, std::greater<T>());
  count_ = wanted_;
  fresh_ = 0;
  floor_ = scores_[wanted_ - 1];
}

template <typename T>
size_t merge_scratch_bytes(int64_t count) {
  Carver carve(nullptr);
  carve.take<SortItem<T>>(count);
  carve.take<SortItem<T>>(count);
  return carve.used();
}

template <typename T>
void merge_by_score(const T* scores, int64_t count, int64_t limit, std::byte* scratch,
                    int32_t* rows) {
  Carver carve(scratch);
  auto* items = carve.take<SortItem<T>>(count);
  auto* spare = carve.take<SortItem<T>>(count);
  for (int64_t i = 0; i < count; ++i) {
    items[i] = SortItem<T>::falling(scores[rows[i]], static_cast<uint32_t>(rows[i]));
  }
  const int64_t wanted = std::min(count, limit);
  if (wanted <= count / 4) {
    std::nth_element(items, items + wanted, items + count);
  }
  const int64_t sorted_count = wanted <= count / 4 ? wanted : count;
  SortItem<T>* sorted = sort_items(items, spare, sorted_count);
  for (int64_t begin = 0; begin < sorted_count;) {
    // The rows did not rise, so the sort has left those of equal scores in their order.
    int64_t end = begin + 1;
    while (end < sorted_count && sorted[end].key() == sorted[begin].key()) {
      ++end;
    }
    if (end - begin > 1) {
      std::sort(sorted + begin, sorted + end);
    }
    begin = end;
  }
  for (int64_t i = 0; i < wanted; ++i) {
    rows[i] = static_cast<int32_t>(sorted[i].slot());
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                         \
  template size_t nms_scratch_bytes<T>(NmsMethod, int64_t);                             \
  template int64_t solve_nms<T>(const NmsProblem<T>&, const NmsOptions<T>&, std::byte*, \
                                const RunBoth&, int32_t*, T*);                          \
  template class BestScores<T>;                                                         \
  template size_t merge_scratch_bytes<T>(int64_t);                                      \
  template void merge_by_score<T>(const T*, int64_t, int64_t, std::byte*, int32_t*);
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(double)
#undef TAL_FAST_INSTANTIATE

}  // namespace tal_fast::cpu
