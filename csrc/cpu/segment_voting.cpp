// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_voting.h"

#include <cmath>
#include <limits>

#include "cpu/radix_sort.h"

namespace tal_fast {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Partial sums per quantity, the same number for every instruction set.
constexpr int kLanes = 8;

template <typename T>
struct Layout {
  SortItem<T>* items;
  SortItem<T>* spare;
  T* start;        // [n], rising
  T* end;          // [n]
  T* score;        // [n]
  double* facts;   // [1]: the greatest length
  int64_t* sizes;  // [1]: how many of the voters have a positive finite length
  size_t bytes;

  Layout(int64_t n, std::byte* scratch) {
    Carver carve(scratch);
    items = carve.take<SortItem<T>>(n);
    spare = carve.take<SortItem<T>>(n);
    start = carve.take<T>(n);
    end = carve.take<T>(n);
    score = carve.take<T>(n);
    facts = carve.take<double>(1);
    sizes = carve.take<int64_t>(1);
    bytes = carve.used();
  }
};

// Number of values in rising a[0..n) that are below `bound`.
template <typename T>
inline int64_t count_below(const T* a, int64_t n, double bound) {
  int64_t begin = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    const bool right = static_cast<double>(a[begin + half]) < bound;
    begin += right ? half + 1 : 0;
    n = right ? n - half - 1 : half;
  }
  return begin;
}

struct Sums {
  double weight[kLanes] = {};
  double start[kLanes] = {};
  double end[kLanes] = {};
};

inline double total(const double* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

template <VotingWeight kWeight, int kCount, typename T>
inline void vote(Sums& sums, T s, T e, T threshold, const T* start, const T* end, const T* score,
                 int64_t count) {
  for (int64_t l = 0; l < (kCount > 0 ? kCount : count); ++l) {
    const T left = s < start[l] ? start[l] : s;
    const T right = end[l] < e ? end[l] : e;
    const T overlap = right - left;
    const T inter = T(0) < overlap ? overlap : T(0);
    const T iou = inter / ((e - s) + (end[l] - start[l]) - inter);
    const T full = kWeight == VotingWeight::kScore ? score[l] : score[l] * iou;
    const double weight = iou >= threshold ? full : T(0);
    sums.weight[l] += weight;
    sums.start[l] += weight * start[l];
    sums.end[l] += weight * end[l];
  }
}

template <VotingWeight kWeight, typename T>
void apply(const Layout<T>& at, T threshold, const T* kept, int64_t first_kept, int64_t end_kept,
           T* out) {
  const double t = static_cast<double>(threshold) * (1.0 - 1e-5);
  const int64_t n = *at.sizes;
  for (int64_t k = first_kept; k < end_kept; ++k) {
    const T s = kept[2 * k];
    const T e = kept[2 * k + 1];
    out[2 * k] = s;
    out[2 * k + 1] = e;
    const double own = static_cast<double>(e) - s;
    if (!(own > 0.0)) {  // overlaps nothing
      continue;
    }
    // An IoU of t needs an overlap of t times the longer length: a voter starts before end - t *
    // own, and, being at most own / t long and outside by at most (1 - t) of that, after start -
    // (1 - t) * own / t.
    const double longest = own / t < *at.facts ? own / t : *at.facts;
    const double slack =
        16.0 * std::numeric_limits<T>::epsilon() * (std::fabs(double{s}) + std::fabs(double{e})) +
        1e-6 * (longest + own);
    const double first = s - (1.0 - t) * longest - slack;
    const double last = e - t * own + slack;
    const int64_t begin = count_below(at.start, n, first);
    const int64_t stop = begin + count_below(at.start + begin, n - begin, last);
    Sums sums;
    int64_t j = begin;
    for (; j + kLanes <= stop; j += kLanes) {
      vote<kWeight, kLanes>(sums, s, e, threshold, at.start + j, at.end + j, at.score + j, kLanes);
    }
    vote<kWeight, 0>(sums, s, e, threshold, at.start + j, at.end + j, at.score + j, stop - j);
    const double weight = total(sums.weight);
    if (weight != 0.0) {
      out[2 * k] = static_cast<T>(total(sums.start) / weight);
      out[2 * k + 1] = static_cast<T>(total(sums.end) / weight);
    }
  }
}

}  // namespace

template <typename T>
size_t voting_scratch_bytes(int64_t count) {
  return Layout<T>(count, nullptr).bytes;
}

template <typename T>
void voting_prepare(const T* segments, const T* scores, const int32_t* rows, int64_t count,
                    std::byte* scratch) {
  const Layout<T> at(count, scratch);
  // Without those that have no vote: their IoU is 0 or NaN.
  int64_t n = 0;
  T longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows == nullptr ? i : rows[i];
    const T length = segments[2 * row + 1] - segments[2 * row];
    if (length > T(0) && length <= std::numeric_limits<T>::max()) {
      longest = longest < length ? length : longest;
      at.items[n++] = SortItem<T>::rising(segments[2 * row], static_cast<uint32_t>(row));
    }
  }
  *at.facts = longest;
  *at.sizes = n;
  const SortItem<T>* by_start = sort_items(at.items, at.spare, n);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = by_start[i].slot();
    at.start[i] = segments[2 * row];
    at.end[i] = segments[2 * row + 1];
    at.score[i] = scores[row];
  }
}

template <typename T>
void voting_apply(int64_t count, std::byte* scratch, const VotingOptions& options, const T* kept,
                  int64_t begin, int64_t end, T* out) {
  const Layout<T> at(count, scratch);
  const auto threshold = static_cast<T>(options.iou_threshold);
  if (options.weight == VotingWeight::kScore) {
    apply<VotingWeight::kScore>(at, threshold, kept, begin, end, out);
  } else {
    apply<VotingWeight::kScoreIou>(at, threshold, kept, begin, end, out);
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                               \
  template size_t voting_scratch_bytes<T>(int64_t);                                           \
  template void voting_prepare<T>(const T*, const T*, const int32_t*, int64_t, std::byte*);   \
  template void voting_apply<T>(int64_t, std::byte*, const VotingOptions&, const T*, int64_t, \
                                int64_t, T*);
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(double)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast
