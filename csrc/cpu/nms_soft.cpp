// SPDX-License-Identifier: Apache-2.0
// Soft non-maximum suppression, lazily: scores only fall, so a score that has not seen the latest
// decays is an upper bound. The segment with the highest bound is brought up to date, with the
// decays that it has missed in the order of selection; if it is still the highest it is selected,
// otherwise it waits in a heap. So each score goes through the multiplications of the eager
// procedure in their order and has its bits, and what is never near the top is never touched.
#include <cmath>
#include <limits>

#include "cpu/nms.h"
#include "cpu/rank_feed.h"
#include "cpu/simd.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Selected segments that are tested for overlap at once: the bits of a mask.
constexpr int64_t kGroup = 64;

template <typename T>
struct Layout {
  RankFeed<T> feed;
  SortItem<T>* heap;  // [n]: segments that wait with a decayed score, the best one first
  T* score;           // by slot, of those that wait
  int32_t* seen;      // by slot: how many selected segments that score has been decayed by
  T* picked_start;    // [capacity]: the selected segments, followed by some that overlap nothing
  T* picked_end;
  T* picked_length;  // with the epsilon
  int64_t capacity;
  size_t bytes;

  Layout(int64_t n, int64_t most_picks, std::byte* scratch)
      : Layout(n, most_picks, Carver(scratch)) {}

 private:
  Layout(int64_t n, int64_t most_picks, Carver carve)
      : feed(n, carve),
        heap(carve.take<SortItem<T>>(n)),
        score(carve.take<T>(n)),
        seen(carve.take<int32_t>(n)),
        capacity(most_picks + kGroup) {
    picked_start = carve.take<T>(capacity);
    picked_end = carve.take<T>(capacity);
    picked_length = carve.take<T>(capacity);
    bytes = carve.used();
  }
};

// A binary heap with the least item, that is the highest score, in front.
template <typename Item>
inline void push(Item* heap, int64_t& size, Item item) {
  int64_t at = size++;
  while (at > 0 && item < heap[(at - 1) / 2]) {
    heap[at] = heap[(at - 1) / 2];
    at = (at - 1) / 2;
  }
  heap[at] = item;
}

// Puts `item` in the place of the first one.
template <typename Item>
inline void replace_first(Item* heap, int64_t size, Item item) {
  int64_t at = 0;
  for (int64_t child = 1; child < size; child = 2 * at + 1) {
    child += child + 1 < size && heap[child + 1] < heap[child] ? 1 : 0;
    if (!(heap[child] < item)) {
      break;
    }
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = item;
}

template <typename Item>
inline void pop(Item* heap, int64_t& size) {
  --size;
  if (size > 0) {
    replace_first(heap, size, heap[size]);
  }
}

// Bit i: start[i] < e and end[i] > s, for one vector of segments of positive length.
inline uint32_t overlap_bits(const float* start, const float* end, float s, float e) {
#if defined(__AVX512F__)
  return _mm512_mask_cmp_ps_mask(
      _mm512_cmp_ps_mask(_mm512_loadu_ps(start), _mm512_set1_ps(e), _CMP_LT_OQ),
      _mm512_loadu_ps(end), _mm512_set1_ps(s), _CMP_GT_OQ);
#elif defined(__AVX2__)
  const __m256 before = _mm256_cmp_ps(_mm256_loadu_ps(start), _mm256_set1_ps(e), _CMP_LT_OQ);
  const __m256 after = _mm256_cmp_ps(_mm256_loadu_ps(end), _mm256_set1_ps(s), _CMP_GT_OQ);
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_and_ps(before, after)));
#elif defined(__SSE2__)
  const __m128 before = _mm_cmplt_ps(_mm_loadu_ps(start), _mm_set1_ps(e));
  const __m128 after = _mm_cmpgt_ps(_mm_loadu_ps(end), _mm_set1_ps(s));
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_and_ps(before, after)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kFullLanes<float>; ++i) {
    bits |= static_cast<uint32_t>(start[i] < e && end[i] > s) << i;
  }
  return bits;
#endif
}

inline uint32_t overlap_bits(const double* start, const double* end, double s, double e) {
  uint32_t bits = 0;
  for (int i = 0; i < kFullLanes<double>; ++i) {
    bits |= static_cast<uint32_t>(start[i] < e && end[i] > s) << i;
  }
  return bits;
}

// Bit i: the selected segment base + i overlaps [s, e), for up to kGroup of those before `picks`.
template <typename T>
inline uint64_t group_bits(const Layout<T>& at, int64_t base, int64_t picks, T s, T e) {
  uint64_t bits = 0;
  const int64_t count = picks - base < kGroup ? picks - base : kGroup;
  for (int64_t i = 0; i < count; i += kFullLanes<T>) {
    bits |= uint64_t{overlap_bits(at.picked_start + base + i, at.picked_end + base + i, s, e)} << i;
  }
  return bits;
}

// The score after the decays by the selected segments [seen, picks), in their order; kNmsDropped if
// it falls below the least score.
template <NmsMethod kMethod, typename T>
inline T decayed(const Layout<T>& at, const NmsOptions<T>& options, T score, int64_t seen,
                 int64_t picks, T s, T e, T length) {
  if (!(s < e)) {  // overlaps nothing
    return score;
  }
  const bool acts_on_threshold = options.acts_on_threshold;
  for (int64_t base = seen; base < picks; base += kGroup) {
    for (uint64_t bits = group_bits(at, base, picks, s, e); bits != 0; bits &= bits - 1) {
      const int64_t i = base + __builtin_ctzll(bits);
      score = decayed_score<kMethod>(options, acts_on_threshold, score, at.picked_start[i],
                                     at.picked_end[i], at.picked_length[i], s, e, length);
      if (score == T(kNmsDropped)) {
        return score;
      }
    }
  }
  return score;
}

template <NmsMethod kMethod, typename T>
int64_t solve(const NmsProblem<T>& problem, const NmsOptions<T>& options, int64_t most_picks,
              std::byte* scratch, int32_t* kept, T* kept_scores) {
  Layout<T> at(problem.count, most_picks, scratch);
  for (int64_t i = 0; i < at.capacity; ++i) {
    at.picked_start[i] = std::numeric_limits<T>::infinity();
    at.picked_end[i] = -std::numeric_limits<T>::infinity();
  }
  at.feed.fill(problem.scores, problem.rows);

  // The candidates are the fresh ones, which nothing has decayed yet, in falling order, and those
  // in the heap.
  const SortItem<T>* fresh = nullptr;
  const SortItem<T>* fresh_end = nullptr;
  int64_t bucket = 0;
  int64_t waiting = 0;
  int64_t picks = 0;
  while (picks < most_picks) {
    while (fresh == fresh_end && bucket < at.feed.buckets()) {
      const auto range = at.feed.sorted(bucket++, [](uint32_t /*slot*/) { return true; });
      fresh = range.begin;
      fresh_end = range.end;
    }
    const bool has_fresh = fresh != fresh_end;
    if (!has_fresh && waiting == 0) {
      break;
    }
    const bool take_fresh = has_fresh && (waiting == 0 || *fresh < at.heap[0]);
    const uint32_t slot = take_fresh ? fresh->slot() : at.heap[0].slot();
    const int32_t row = problem.rows[slot];
    const T s = problem.segments[2 * int64_t{row}];
    const T e = problem.segments[2 * int64_t{row} + 1];
    const T length = (e - s) + options.length_eps;
    const T before = take_fresh ? problem.scores[row] : at.score[slot];
    if (before < problem.floor) {
      break;
    }
    const T score =
        decayed<kMethod>(at, options, before, take_fresh ? 0 : at.seen[slot], picks, s, e, length);
    fresh += take_fresh ? 1 : 0;
    if (score == T(kNmsDropped)) {
      if (!take_fresh) {
        pop(at.heap, waiting);
      }
      continue;
    }
    if (score != before) {
      const SortItem<T> item = SortItem<T>::falling(score, slot);
      at.score[slot] = score;
      at.seen[slot] = static_cast<int32_t>(picks);
      if (take_fresh) {
        push(at.heap, waiting, item);
      } else {
        replace_first(at.heap, waiting, item);
      }
      continue;
    }
    if (!take_fresh) {
      pop(at.heap, waiting);
    }
    kept[picks] = row;
    kept_scores[picks] = score;
    if (s < e) {
      at.picked_start[picks] = s;
      at.picked_end[picks] = e;
      at.picked_length[picks] = length;
    }
    ++picks;
  }
  return picks;
}

}  // namespace

template <typename T>
size_t soft_nms_scratch_bytes(int64_t count) {
  return Layout<T>(count, count, nullptr).bytes;
}

template <typename T>
int64_t soft_nms_solve(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                       std::byte* scratch, int32_t* kept, T* kept_scores) {
  const int64_t most = problem.count < options.max_segments ? problem.count : options.max_segments;
  switch (options.method) {
    case NmsMethod::kLinear:
      return solve<NmsMethod::kLinear>(problem, options, most, scratch, kept, kept_scores);
    case NmsMethod::kLengthGaussian:
      return solve<NmsMethod::kLengthGaussian>(problem, options, most, scratch, kept, kept_scores);
    default:
      return solve<NmsMethod::kGaussian>(problem, options, most, scratch, kept, kept_scores);
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                              \
  template size_t soft_nms_scratch_bytes<T>(int64_t);                                        \
  template int64_t soft_nms_solve<T>(const NmsProblem<T>&, const NmsOptions<T>&, std::byte*, \
                                     int32_t*, T*);
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(double)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
