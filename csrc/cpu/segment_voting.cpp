// SPDX-License-Identifier: Apache-2.0
#include "cpu/segment_voting.h"

#include "cpu/radix_sort.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

constexpr int kLanes = kVotingLanes;

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
    const double weight = vote_weight<kWeight>(s, e, threshold, start[l], end[l], score[l]);
    sums.weight[l] += weight;
    sums.start[l] += weight * start[l];
    sums.end[l] += weight * end[l];
  }
}

template <VotingWeight kWeight, typename T>
void apply(const Layout<T>& at, T threshold, const T* kept, int64_t first_kept, int64_t end_kept,
           T* out) {
  const int64_t n = *at.sizes;
  for (int64_t k = first_kept; k < end_kept; ++k) {
    const T s = kept[2 * k];
    const T e = kept[2 * k + 1];
    out[2 * k] = s;
    out[2 * k + 1] = e;
    if (!(s < e)) {  // overlaps nothing
      continue;
    }
    const VotingWindow window = voting_window(s, e, threshold, *at.facts);
    const int64_t begin = count_below(at.start, n, window.first);
    const int64_t stop = begin + count_below(at.start + begin, n - begin, window.last);
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
    if (can_vote(length)) {
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
}  // namespace tal_fast::cpu
