// SPDX-License-Identifier: Apache-2.0
#include "cpu/nms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace tal_fast {
namespace {

// Written so that equal operands give equal bits everywhere: this file is compiled without fused
// multiply-add. No epsilon: two segments of length zero give 0 / 0 = NaN, which no comparison with
// a threshold accepts, so they never suppress each other.
template <typename T>
inline T segment_iou(T start_a, T end_a, T length_a, T start_b, T end_b, T length_b) {
  const T overlap = std::min(end_a, end_b) - std::max(start_a, start_b);
  const T inter = std::max(T(0), overlap);
  return inter / (length_a + length_b - inter);
}

template <typename T>
struct Ranked {
  T score;
  int64_t index;
};

template <typename T>
inline bool ranks_before(const Ranked<T>& a, const Ranked<T>& b) {
  return a.score != b.score ? a.score > b.score : a.index < b.index;
}

// The segments of a problem, ordered by their start, so that those which can overlap a given one
// are a range, and as one array per property, so that the compiler vectorises the loop over it.
template <typename T>
class SortedSegments {
 public:
  SortedSegments(const T* segments, const std::vector<int64_t>& rows)
      : row(rows), start(rows.size()), end(rows.size()), length(rows.size()) {
    std::sort(row.begin(), row.end(), [segments](int64_t a, int64_t b) {
      return segments[2 * a] != segments[2 * b] ? segments[2 * a] < segments[2 * b] : a < b;
    });
    for (size_t slot = 0; slot < row.size(); ++slot) {
      start[slot] = segments[2 * row[slot]];
      end[slot] = segments[2 * row[slot] + 1];
      length[slot] = end[slot] - start[slot];
      max_length_ = std::max(max_length_, length[slot]);
    }
  }

  struct Range {
    int64_t begin;
    int64_t end;
  };

  // All slots whose segment can have an IoU with that of `slot` which is positive and at least
  // `threshold`, and perhaps some more. IoU >= t needs an overlap of t times the longer length: the
  // other one starts before end - t * length, and, being at most length / t long and outside by at
  // most (1 - t) of that, after start - length * (1 - t) / t. The computed IoU is within 1e-6 of
  // the exact one, hence the smaller t; the slack covers the rounding of the two bounds.
  Range candidates(int64_t slot, double threshold) const {
    const double t = threshold * (1.0 - 1e-5);
    const double s = start[slot];
    const double e = end[slot];
    const double own = length[slot];
    const double reach =
        t > 0.0 ? std::min<double>(own * (1.0 - t) / t, max_length_) : double(max_length_);
    const double slack = 1e-12 * (std::abs(s) + std::abs(e) + reach);
    const double first = s - reach - slack;
    const double last = e - t * own + slack;
    const auto begin = std::lower_bound(start.begin(), start.end(), first,
                                        [](T value, double bound) { return value < bound; });
    const auto stop = std::upper_bound(begin, start.end(), last,
                                       [](double bound, T value) { return bound < value; });
    return {begin - start.begin(), stop - start.begin()};
  }

  std::vector<int64_t> row;
  std::vector<T> start;
  std::vector<T> end;
  std::vector<T> length;

 private:
  T max_length_ = 0;
};

template <typename T>
std::vector<int64_t> rows_from_score(const T* scores, const int64_t* members, int64_t count,
                                     T min_score) {
  std::vector<int64_t> rows;
  rows.reserve(static_cast<size_t>(count));
  std::copy_if(members, members + count, std::back_inserter(rows),
               [scores, min_score](int64_t row) { return scores[row] >= min_score; });
  return rows;
}

template <typename T>
int64_t hard_nms(const T* segments, const T* scores, const int64_t* members, int64_t count,
                 const NmsOptions& options, int64_t* kept, T* kept_scores) {
  // One flag per lane of T, so that the loop below vectorises.
  using Flag = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  const std::vector<int64_t> rows =
      rows_from_score(scores, members, count, static_cast<T>(options.min_score));
  const SortedSegments<T> sorted(segments, rows);
  const auto n = static_cast<int64_t>(rows.size());
  const T threshold = static_cast<T>(options.iou_threshold);

  struct Candidate {
    T score;
    int64_t index;
    int64_t slot;
  };
  std::vector<Candidate> by_rank(rows.size());
  for (int64_t slot = 0; slot < n; ++slot) {
    by_rank[slot] = {scores[sorted.row[slot]], sorted.row[slot], slot};
  }
  std::sort(by_rank.begin(), by_rank.end(), [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.index < b.index;
  });

  std::vector<Flag> suppressed(rows.size(), 0);
  int64_t num_kept = 0;
  for (const Candidate& candidate : by_rank) {
    if (num_kept == options.max_segments) {
      break;
    }
    if (suppressed[candidate.slot] != 0) {
      continue;
    }
    kept[num_kept] = candidate.index;
    kept_scores[num_kept] = candidate.score;
    ++num_kept;
    const T s = sorted.start[candidate.slot];
    const T e = sorted.end[candidate.slot];
    const T own = sorted.length[candidate.slot];
    const auto [begin, stop] = sorted.candidates(candidate.slot, options.iou_threshold);
    const T* start = sorted.start.data();
    const T* end = sorted.end.data();
    const T* length = sorted.length.data();
    Flag* flags = suppressed.data();
    // Flags of better-ranked segments change too; nobody reads them any more.
    for (int64_t j = begin; j < stop; ++j) {
      const T iou = segment_iou(s, e, own, start[j], end[j], length[j]);
      flags[j] |= iou > threshold ? 1 : 0;
    }
  }
  return num_kept;
}

// Current scores with the maximum of every block of them: finding the best segment reads the maxima
// and one block, and a decay refreshes the blocks that it touched.
template <typename T>
class ScoreBoard {
 public:
  static constexpr int64_t kBlock = 64;
  static constexpr T kGone = -std::numeric_limits<T>::infinity();

  ScoreBoard(const T* scores, const std::vector<int64_t>& rows)
      : scores_(rows.size()), maxima_((rows.size() + kBlock - 1) / kBlock) {
    for (size_t slot = 0; slot < rows.size(); ++slot) {
      scores_[slot] = scores[rows[slot]];
    }
    refresh(0, static_cast<int64_t>(rows.size()));
  }

  T& operator[](int64_t slot) { return scores_[slot]; }

  // Call after writing scores in [begin, end).
  void refresh(int64_t begin, int64_t end) {
    const auto size = static_cast<int64_t>(scores_.size());
    for (int64_t block = begin / kBlock; block * kBlock < end; ++block) {
      const int64_t stop = std::min(size, (block + 1) * kBlock);
      T best = kGone;
      for (int64_t slot = block * kBlock; slot < stop; ++slot) {
        best = std::max(best, scores_[slot]);
      }
      maxima_[block] = best;
    }
  }

  // The slot with the highest score, of equal ones that with the lowest row; -1: none is left.
  int64_t best(const std::vector<int64_t>& rows) const {
    T top = kGone;
    for (const T maximum : maxima_) {
      top = std::max(top, maximum);
    }
    if (top == kGone) {
      return -1;
    }
    int64_t found = -1;
    const auto size = static_cast<int64_t>(scores_.size());
    for (int64_t block = 0; block < static_cast<int64_t>(maxima_.size()); ++block) {
      if (maxima_[block] != top) {
        continue;
      }
      const int64_t stop = std::min(size, (block + 1) * kBlock);
      for (int64_t slot = block * kBlock; slot < stop; ++slot) {
        if (scores_[slot] == top && (found < 0 || rows[slot] < rows[found])) {
          found = slot;
        }
      }
    }
    return found;
  }

 private:
  std::vector<T> scores_;
  std::vector<T> maxima_;
};

template <typename T>
int64_t soft_nms(const T* segments, const T* scores, const int64_t* members, int64_t count,
                 const NmsOptions& options, int64_t* kept, T* kept_scores) {
  const T min_score = static_cast<T>(options.min_score);
  const T threshold = static_cast<T>(options.iou_threshold);
  const T sigma = static_cast<T>(options.sigma);
  const bool gaussian = options.method == NmsMethod::kGaussian;
  const SortedSegments<T> sorted(segments, rows_from_score(scores, members, count, min_score));
  ScoreBoard<T> board(scores, sorted.row);

  int64_t num_kept = 0;
  while (num_kept < options.max_segments) {
    const int64_t best = board.best(sorted.row);
    if (best < 0) {
      break;
    }
    kept[num_kept] = sorted.row[best];
    kept_scores[num_kept] = board[best];
    ++num_kept;
    board[best] = ScoreBoard<T>::kGone;
    const T s = sorted.start[best];
    const T e = sorted.end[best];
    const T own = sorted.length[best];
    // Gaussian decay acts on every overlap. Without one the weight is exactly 1.
    const auto [begin, stop] = sorted.candidates(best, gaussian ? 0.0 : options.iou_threshold);
    for (int64_t j = begin; j < stop; ++j) {
      if (board[j] == ScoreBoard<T>::kGone) {
        continue;
      }
      const T iou = segment_iou(s, e, own, sorted.start[j], sorted.end[j], sorted.length[j]);
      T weight = 1;
      if (gaussian) {
        weight = iou > T(0) ? std::exp(-(iou * iou) / sigma) : T(1);
      } else if (iou >= threshold) {
        weight = T(1) - iou;
      }
      const T decayed = board[j] * weight;
      // "Not at least" instead of "below": an infinite score times zero is NaN and goes as well.
      board[j] = decayed >= min_score ? decayed : ScoreBoard<T>::kGone;
    }
    board.refresh(std::min(begin, best), std::max(stop, best + 1));
  }
  return num_kept;
}

// Rows in rising order of their key, equal keys in their present order.
void stable_sort_rows(std::vector<int64_t>& rows, const int64_t* keys) {
  if (rows.empty()) {
    return;
  }
  const auto n = static_cast<int64_t>(rows.size());
  const auto [low, high] = std::minmax_element(keys, keys + n);
  // The difference of two int64 need not fit into one.
  const uint64_t range = static_cast<uint64_t>(*high) - static_cast<uint64_t>(*low);
  if (range > static_cast<uint64_t>(n) + 1024) {
    std::stable_sort(rows.begin(), rows.end(),
                     [keys](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    return;
  }
  // Labels and videos are small dense numbers: count them.
  std::vector<int64_t> next(range + 2, 0);
  for (int64_t i = 0; i < n; ++i) {
    ++next[keys[i] - *low + 1];
  }
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::vector<int64_t> ordered(rows.size());
  for (const int64_t row : rows) {
    ordered[next[keys[row] - *low]++] = row;
  }
  rows.swap(ordered);
}

}  // namespace

NmsProblems split_into_problems(const int64_t* videos, const int64_t* labels, int64_t n) {
  NmsProblems problems;
  std::vector<int64_t>& members = problems.members;
  members.resize(static_cast<size_t>(n));
  std::iota(members.begin(), members.end(), int64_t{0});
  if (labels != nullptr) {
    stable_sort_rows(members, labels);
  }
  if (videos != nullptr) {
    stable_sort_rows(members, videos);
  }
  for (int64_t i = 0; i < n; ++i) {
    const bool new_video =
        i == 0 || (videos != nullptr && videos[members[i]] != videos[members[i - 1]]);
    const bool new_label =
        labels != nullptr && i > 0 && labels[members[i]] != labels[members[i - 1]];
    if (new_video) {
      problems.video_starts.push_back(static_cast<int64_t>(problems.problem_starts.size()));
    }
    if (new_video || new_label) {
      problems.problem_starts.push_back(i);
    }
  }
  problems.video_starts.push_back(static_cast<int64_t>(problems.problem_starts.size()));
  problems.problem_starts.push_back(n);
  return problems;
}

template <typename T>
int64_t solve_nms(const T* segments, const T* scores, const int64_t* members, int64_t count,
                  const NmsOptions& options, int64_t* kept, T* kept_scores) {
  return options.method == NmsMethod::kHard
             ? hard_nms(segments, scores, members, count, options, kept, kept_scores)
             : soft_nms(segments, scores, members, count, options, kept, kept_scores);
}

template <typename T>
void sort_by_score(int64_t* indices, T* scores, int64_t count) {
  std::vector<Ranked<T>> ranked(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    ranked[i] = {scores[i], indices[i]};
  }
  std::sort(ranked.begin(), ranked.end(), ranks_before<T>);
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = ranked[i].score;
    indices[i] = ranked[i].index;
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                                 \
  template int64_t solve_nms<T>(const T*, const T*, const int64_t*, int64_t, const NmsOptions&, \
                                int64_t*, T*);                                                  \
  template void sort_by_score<T>(int64_t*, T*, int64_t);
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(double)
#undef TAL_FAST_INSTANTIATE

}  // namespace tal_fast
