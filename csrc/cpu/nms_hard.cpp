// SPDX-License-Identifier: Apache-2.0
// Hard non-maximum suppression. Segments are visited by rank; each one that is kept flags those
// that it suppresses. Which segments it has to look at comes from an index: an IoU of t needs
// lengths within a factor of 1 / t and starts that are close, so all segments are sorted by length
// class (power of two) and start, and what can be suppressed is one range per class. Kept segments
// overlap each other little, so a segment lies in few such ranges. The ranges are conservative, the
// IoU formula alone decides.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/nms.h"
#include "cpu/rank_feed.h"
#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// Below this many segments, looking at all of them is faster than building the index.
constexpr int64_t kIndexFrom = 512;

// Mean number of segments per cell.
constexpr int64_t kPerCell = 4;

// From this many segments on, two length classes per power of two pay for the more ranges.
constexpr int64_t kFineClassesFrom = 8192;

// The last class holds what no threshold above zero can make act: segments whose length is not
// positive or not finite have the IoU 0, -0 or NaN with everything.
constexpr int kClasses = 128;
constexpr int kInert = kClasses - 1;

// Loops over segments take whole vectors; what they look at beyond a range does no harm.
template <typename T>
constexpr int kLanes = kFullLanes<T>;

// One flag per lane of T.
template <typename T>
using Flag = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The segments of one length class lie in cells of equal width by their starts.
struct LengthClass {
  double shortest;  // no member is shorter
  double longest;   // no member is longer
  double cells_per_unit;
  int64_t first_cell;
  int64_t last_cell;
};

struct Index {
  double first_start;   // of all acting segments
  int64_t num_classes;  // those with segments, longest first
  int64_t inert_begin;  // place of the first inert segment
  LengthClass classes[kClasses];
};

template <typename T>
struct Layout {
  RankFeed<T> feed;
  // Of all segments, by cell with an index, by rank without; filled up to whole vectors.
  T* start;
  T* end;
  T* length;  // with the epsilon
  Flag<T>* suppressed;
  int32_t* place;        // by slot: into start, end, ...
  int32_t* cell_starts;  // into start, end, ...
  Index* index;
  size_t bytes;

  Layout(int64_t n, std::byte* scratch) : Layout(n, Carver(scratch)) {}

 private:
  Layout(int64_t n, Carver carve)
      : feed(n, carve),
        start(carve.take<T>(n + kLanes<T>)),
        end(carve.take<T>(n + kLanes<T>)),
        length(carve.take<T>(n + kLanes<T>)),
        suppressed(carve.take<Flag<T>>(n + kLanes<T>)),
        place(nullptr),
        cell_starts(nullptr),
        index(nullptr) {
    if (n >= kIndexFrom) {
      place = carve.take<int32_t>(n);
      cell_starts = carve.take<int32_t>(n / kPerCell + kClasses + 2);
      index = carve.take<Index>(1);
    }
    bytes = carve.used();
  }
};

// With IoU >= 0 acting, everything acts on everything.
template <typename T>
bool use_index(int64_t n, const NmsOptions<T>& options) {
  return n >= kIndexFrom && !(options.acts_on_threshold && options.iou_threshold == T(0));
}

// Flags the segments [begin, stop), and perhaps some behind them, that segment `by` suppresses.
template <bool kActsOnThreshold, typename T>
inline void suppress(const Layout<T>& at, int64_t by, T threshold_value, int64_t begin,
                     int64_t stop) {
  using Lanes = Vector<T, kLanes<T>>;
  using Flags = Vector<Flag<T>, kLanes<T>>;
  const Lanes s = broadcast<T, kLanes<T>>(at.start[by]);
  const Lanes e = broadcast<T, kLanes<T>>(at.end[by]);
  const Lanes own = broadcast<T, kLanes<T>>(at.length[by]);
  const Lanes threshold = broadcast<T, kLanes<T>>(threshold_value);
  for (int64_t j = begin; j < stop; j += kLanes<T>) {
    const Lanes iou = nms_iou(s, e, own, load<kLanes<T>>(at.start + j), load<kLanes<T>>(at.end + j),
                              load<kLanes<T>>(at.length + j));
    Flags flags;
    std::memcpy(&flags, at.suppressed + j, sizeof(flags));
    flags |= kActsOnThreshold ? iou >= threshold : iou > threshold;
    std::memcpy(at.suppressed + j, &flags, sizeof(flags));
  }
}

template <typename T>
inline void set_segment(const Layout<T>& at, int64_t place, T start, T end, T eps) {
  at.start[place] = start;
  at.end[place] = end;
  at.length[place] = (end - start) + eps;
  at.suppressed[place] = 0;
}

template <typename T>
inline void fill_up(const Layout<T>& at, int64_t n) {
  for (int64_t place = n; place < n + kLanes<T>; ++place) {
    set_segment(at, place, T(0), T(0), T(0));
  }
}

// Exponent of a positive finite number, with the first `fine` bits behind it.
inline int length_key(float value, int fine) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<int>(bits >> (23 - fine));
}

inline int length_key(double value, int fine) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<int>(bits >> (52 - fine));
}

// The least number with this key.
template <typename T>
inline double least_length(int key, int fine) {
  if constexpr (sizeof(T) == 4) {
    const uint32_t bits = static_cast<uint32_t>(key) << (23 - fine);
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  } else {
    const uint64_t bits = static_cast<uint64_t>(key) << (52 - fine);
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
}

template <typename T>
constexpr int kLengthKeys = (sizeof(T) == 4 ? 256 : 2048) * 2;

// The cell of a class that a start lies in, or would lie in. Rises with the start: what starts
// after a bound lies in the bound's cell or behind it.
inline int64_t cell_of(const Index& index, const LengthClass& c, double start) {
  const double cell = (start - index.first_start) * c.cells_per_unit;
  const double most = static_cast<double>(c.last_cell - c.first_cell);
  return c.first_cell + static_cast<int64_t>(cell < 0.0 ? 0.0 : cell < most ? cell : most);
}

template <bool kActsOnThreshold, typename T>
int64_t select_with_index(const NmsProblem<T>& problem, const NmsOptions<T>& options, Layout<T>& at,
                          int32_t* kept, T* kept_scores) {
  const T threshold = options.iou_threshold;
  // The computed IoU is within a few units in the last place of the exact one.
  const double t = static_cast<double>(threshold) * (1.0 - 1e-5);
  constexpr double kRounding = 16.0 * std::numeric_limits<T>::epsilon();
  const Index& index = *at.index;
  const LengthClass* classes_end = index.classes + index.num_classes;
  int64_t num_kept = 0;
  for (int64_t b = 0; b < at.feed.buckets(); ++b) {
    const auto [begin, end] =
        at.feed.sorted(b, [&](uint32_t slot) { return at.suppressed[at.place[slot]] == 0; });
    for (const SortItem<T>* item = begin; item < end; ++item) {
      const int64_t place = at.place[item->slot()];
      if (at.suppressed[place] != 0) {
        continue;
      }
      const int32_t row = problem.rows[item->slot()];
      kept[num_kept] = row;
      kept_scores[num_kept] = problem.scores[row];
      if (++num_kept == options.max_segments) {
        return num_kept;
      }
      if (place >= index.inert_begin) {
        continue;
      }
      const double s = at.start[place];
      const double e = at.end[place];
      const double own = at.end[place] - at.start[place];
      const double least = t * own;
      const double most = t > 0.0 ? own / t : std::numeric_limits<double>::infinity();
      for (const LengthClass* c = index.classes; c < classes_end; ++c) {
        if (c->shortest > most) {
          continue;
        }
        if (c->longest < least) {
          break;
        }
        // The overlap is at least t times the longer of the two. So the other one starts before
        // end - overlap, and ends after start + overlap, its own length later than it starts.
        const double low = c->shortest < least ? least : c->shortest;
        const double high = most < c->longest ? most : c->longest;
        const double slack = kRounding * (std::fabs(s) + std::fabs(e) + high) + 1e-6 * high;
        const double first = s + t * (high < own ? own : high) - high - slack;
        const double last = e - t * (low < own ? own : low) + slack;
        if (last < first) {
          continue;
        }
        suppress<kActsOnThreshold>(at, place, threshold, at.cell_starts[cell_of(index, *c, first)],
                                   at.cell_starts[cell_of(index, *c, last) + 1]);
      }
    }
  }
  return num_kept;
}

template <bool kActsOnThreshold, typename T>
int64_t select_without_index(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                             Layout<T>& at, int32_t* kept, T* kept_scores) {
  const T threshold = options.iou_threshold;
  const T eps = options.length_eps;
  const int64_t n = problem.count;
  // The rows by rank go where the kept ones will: not more of them are kept than have been read.
  int64_t ranked = 0;
  for (int64_t b = 0; b < at.feed.buckets(); ++b) {
    const auto [begin, end] = at.feed.sorted(b, [](uint32_t /*slot*/) { return true; });
    for (const SortItem<T>* item = begin; item < end; ++item, ++ranked) {
      const int64_t row = problem.rows[item->slot()];
      kept[ranked] = static_cast<int32_t>(row);
      set_segment(at, ranked, problem.segments[2 * row], problem.segments[2 * row + 1], eps);
    }
  }
  fill_up(at, n);
  int64_t num_kept = 0;
  for (int64_t rank = 0; rank < n && num_kept < options.max_segments; ++rank) {
    if (at.suppressed[rank] != 0) {
      continue;
    }
    kept[num_kept] = kept[rank];
    kept_scores[num_kept] = problem.scores[kept[rank]];
    ++num_kept;
    suppress<kActsOnThreshold>(at, rank, threshold, rank + 1, n);
  }
  return num_kept;
}

}  // namespace

template <typename T>
size_t hard_nms_scratch_bytes(int64_t count) {
  return Layout<T>(count, nullptr).bytes;
}

template <typename T>
void hard_nms_rank(const NmsProblem<T>& problem, const NmsOptions<T>& /*options*/,
                   std::byte* scratch) {
  Layout<T> at(problem.count, scratch);
  at.feed.fill(problem.scores, problem.rows);
}

template <typename T>
void hard_nms_index(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                    std::byte* scratch) {
  const int64_t n = problem.count;
  if (!use_index(n, options)) {
    return;
  }
  const Layout<T> at(n, scratch);
  Index& index = *at.index;
  const int fine = n < kFineClassesFrom ? 0 : 1;

  // How many segments have which length key; -1 stands for inert until the cells are known.
  int32_t key_counts[kLengthKeys<T>] = {};
  int top = 0;
  T longest = 0;
  T low = std::numeric_limits<T>::infinity();
  T high = -std::numeric_limits<T>::infinity();
  for (int64_t slot = 0; slot < n; ++slot) {
    const T* segment = problem.segments + 2 * int64_t{problem.rows[slot]};
    const T length = segment[1] - segment[0];
    if (length > T(0) && length <= std::numeric_limits<T>::max()) {
      const int key = length_key(length, fine);
      at.place[slot] = key;
      ++key_counts[key];
      top = key > top ? key : top;
      longest = length > longest ? length : longest;
      low = segment[0] < low ? segment[0] : low;
      high = segment[0] > high ? segment[0] : high;
    } else {
      at.place[slot] = -1;
    }
  }

  // Keys become classes, longest first; the last class takes all that are shorter.
  int32_t class_of_key[kLengthKeys<T>];
  int64_t num_classes = 0;
  int64_t cells = 0;
  int64_t acting = 0;
  const double range = static_cast<double>(high) - low;
  for (int key = top; key >= 0;) {
    if (key_counts[key] == 0) {
      --key;
      continue;
    }
    const auto number = static_cast<int32_t>(num_classes++);
    const int first_key = key;
    int64_t members = 0;
    do {
      members += key_counts[key];
      class_of_key[key] = number;
      --key;
    } while (key >= 0 && number == kInert - 1);
    const int64_t wanted = members / kPerCell + 1;
    const double above = least_length<T>(first_key + 1, fine);  // infinite in the last one
    index.classes[number] = {least_length<T>(key + 1, fine), above < longest ? above : longest,
                             range > 0.0 ? static_cast<double>(wanted) / range : 0.0, cells,
                             cells + wanted - 1};
    cells += wanted;
    acting += members;
  }
  index.first_start = low;
  index.num_classes = num_classes;
  index.inert_begin = acting;

  // Cell of every segment; the inert ones have one behind all others.
  for (int64_t cell = 0; cell <= cells + 1; ++cell) {
    at.cell_starts[cell] = 0;
  }
  for (int64_t slot = 0; slot < n; ++slot) {
    int64_t cell = cells;
    if (at.place[slot] >= 0) {
      const T* segment = problem.segments + 2 * int64_t{problem.rows[slot]};
      cell = cell_of(index, index.classes[class_of_key[at.place[slot]]], segment[0]);
    }
    at.place[slot] = static_cast<int32_t>(cell);
    ++at.cell_starts[cell];
  }
  int32_t sum = 0;
  for (int64_t cell = 0; cell <= cells; ++cell) {
    sum += at.cell_starts[cell];
    at.cell_starts[cell] = sum;
  }
  // First where every segment goes, backwards, so that the running ends become starts; then all
  // arrays in one sweep. The slots wait where the flags will be.
  for (int64_t slot = n - 1; slot >= 0; --slot) {
    const int32_t place = --at.cell_starts[at.place[slot]];
    at.place[slot] = place;
    at.suppressed[place] = static_cast<Flag<T>>(slot);
  }
  const T eps = options.length_eps;
  for (int64_t place = 0; place < n; ++place) {
    const T* segment = problem.segments + 2 * int64_t{problem.rows[at.suppressed[place]]};
    set_segment(at, place, segment[0], segment[1], eps);
  }
  fill_up(at, n);
}

template <typename T>
int64_t hard_nms_select(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                        std::byte* scratch, int32_t* kept, T* kept_scores) {
  Layout<T> at(problem.count, scratch);
  const bool index = use_index(problem.count, options);
  if (options.acts_on_threshold) {
    return index ? select_with_index<true>(problem, options, at, kept, kept_scores)
                 : select_without_index<true>(problem, options, at, kept, kept_scores);
  }
  return index ? select_with_index<false>(problem, options, at, kept, kept_scores)
               : select_without_index<false>(problem, options, at, kept, kept_scores);
}

#define TAL_FAST_INSTANTIATE(T)                                                               \
  template size_t hard_nms_scratch_bytes<T>(int64_t);                                         \
  template void hard_nms_rank<T>(const NmsProblem<T>&, const NmsOptions<T>&, std::byte*);     \
  template void hard_nms_index<T>(const NmsProblem<T>&, const NmsOptions<T>&, std::byte*);    \
  template int64_t hard_nms_select<T>(const NmsProblem<T>&, const NmsOptions<T>&, std::byte*, \
                                      int32_t*, T*);
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(double)
#undef TAL_FAST_INSTANTIATE

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
