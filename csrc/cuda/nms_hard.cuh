// SPDX-License-Identifier: Apache-2.0
// Kernels of hard non-maximum suppression. Candidates come in rank order, a tile of them at a time
// in shared memory. What earlier tiles kept suppresses all of a tile at once; inside a tile, the 32
// candidates of a word settle among themselves with a matrix of bits, and what they keep suppresses
// the words behind. So every pair that the plain loop looks at is looked at with its formula.
#pragma once

#include "cuda/nms.cuh"

namespace tal_fast {

template <typename T>
struct TimedSegment {
  T start, end, length;  // the length with the epsilon
};

template <typename T>
TAL_FAST_DEVICE bool suppresses(const NmsOptions<T>& options, const TimedSegment<T>& kept,
                                const TimedSegment<T>& other) {
  // Segments that do not overlap have the IoU 0, -0 or NaN, which acts nowhere else.
  const bool zero_acts = options.acts_on_threshold && options.iou_threshold == T(0);
  const T left = kept.start < other.start ? other.start : kept.start;
  const T right = other.end < kept.end ? other.end : kept.end;
  if (!(T(0) < right - left) && !zero_acts) {  // spares most pairs the division
    return false;
  }
  const T iou = nms_iou(kept.start, kept.end, kept.length, other.start, other.end, other.length);
  return options.acts_on_threshold ? iou >= options.iou_threshold : iou > options.iou_threshold;
}

// The shared memory of a block and what its threads do with it together.
template <typename T>
struct HardTile {
  static constexpr int kThreads = 256;
  static constexpr int kSize = 1024;  // candidates
  static constexpr int kWords = kSize / kWarp;
  static constexpr int kWarps = kThreads / kWarp;
  static constexpr int kPart = 256;  // kept segments that are staged at once

  struct Segments {
    Shared<T> start, end, length;

    TAL_FAST_DEVICE TimedSegment<T> load(int i) const {
      return {start.load(i), end.load(i), length.load(i)};
    }
    TAL_FAST_DEVICE void store(int i, T s, T e, T eps) const {
      start.store(i, s);
      end.store(i, e);
      length.store(i, (e - s) + eps);
    }
  };

  NmsOptions<T> options;
  Segments candidates;      // [kSize]
  Segments part;            // [kPart]
  Shared<uint32_t> dead;    // [kWords]: a bit per candidate that is out
  Shared<uint32_t> kept;    // [kWords]: a bit per candidate that stays
  Shared<uint32_t> matrix;  // [32]: whom a candidate of the current word suppresses in it

  static size_t shared_bytes() {
    SharedSize size;
    for (const int64_t count : {kSize, kPart}) {
      size.take<T>(count).template take<T>(count).template take<T>(count);
    }
    return size.take<uint32_t>(kWords)
        .template take<uint32_t>(kWords)
        .template take<uint32_t>(kWarp)
        .bytes();
  }

  TAL_FAST_DEVICE explicit HardTile(const NmsOptions<T>& its_options) : options(its_options) {
    SharedMemory memory;
    for (Segments* segments : {&candidates, &part}) {
      const int count = segments == &candidates ? kSize : kPart;
      segments->start = memory.take<T>(count);
      segments->end = memory.take<T>(count);
      segments->length = memory.take<T>(count);
    }
    dead = memory.take<uint32_t>(kWords);
    kept = memory.take<uint32_t>(kWords);
    matrix = memory.take<uint32_t>(kWarp);
  }

  // Takes `count` candidates in; those with too low a score are out. Returns how many are not.
  TAL_FAST_DEVICE int load(const T* segments,  // [count, 2]
                           const T* scores,    // [count]
                           int64_t count) const {
    int live = 0;
    for (int i = static_cast<int>(threadIdx.x); i < kSize; i += kThreads) {
      bool alive = false;
      if (i < count) {
        candidates.store(i, segments[2 * i], segments[2 * i + 1], options.length_eps);
        alive = scores[i] >= options.min_score;
      }
      const unsigned out = __ballot_sync(kAllLanes, !alive);
      if (lane_index() == 0) {
        dead.store(i / kWarp, out);
      }
      live += __syncthreads_count(alive);
    }
    return live;
  }

  // Suppresses candidates by `count` kept segments. Barriers before and after are the caller's.
  TAL_FAST_DEVICE void suppress_by(const T* segments,  // [count, 2]
                                   int64_t count) const {
    const int thread = static_cast<int>(threadIdx.x);
    for (int64_t first = 0; first < count; first += kPart) {
      const int size = count - first < kPart ? static_cast<int>(count - first) : kPart;
      if (thread < size) {
        part.store(thread, segments[2 * (first + thread)], segments[2 * (first + thread) + 1],
                   options.length_eps);
      }
      __syncthreads();
      for (int word = warp_index(); word < kWords; word += kWarps) {
        suppress_word(word, part, size, kAllLanes);
      }
      __syncthreads();
    }
  }

  // Suppresses the candidates of a word by those of 32 segments whose bits are set, or, with all
  // bits, by `size` segments. The whole warp must call it; it owns the word.
  TAL_FAST_DEVICE void suppress_word(int word, const Segments& by, int size, unsigned bits) const {
    const unsigned before = dead.load(word);
    if (before == kAllLanes) {
      return;
    }
    const bool was_dead = ((before >> lane_index()) & 1u) != 0;
    bool is_dead = was_dead;
    if (!was_dead) {
      const TimedSegment<T> own = candidates.load(word * kWarp + lane_index());
      for (int j = 0; j < size && !is_dead; ++j) {
        if (bits == kAllLanes || ((bits >> j) & 1u) != 0) {
          is_dead = suppresses(options, by.load(j), own);
        }
      }
    }
    const unsigned after = __ballot_sync(kAllLanes, is_dead);
    if (lane_index() == 0) {
      dead.store(word, after);
    }
  }

  // Goes through the candidates and appends those that stay to the list, which has `num_kept` of
  // this problem already. Returns how many it has then. Begins and ends with a barrier.
  TAL_FAST_DEVICE int64_t settle(const KeptList<T>& list, int64_t list_begin, int64_t num_kept,
                                 const int64_t* order,  // [count] rows of the candidates
                                 const T* scores,       // [count]
                                 int64_t count) const {
    const int lane = lane_index();
    const int thread = static_cast<int>(threadIdx.x);
    const int words = static_cast<int>((count + kWarp - 1) / kWarp);
    const int64_t kept_before = num_kept;
    if (thread < kWords) {
      kept.store(thread, 0);
    }
    __syncthreads();
    for (int word = 0; word < words && num_kept < options.max_segments; ++word) {  // hot: word
      unsigned alive = ~dead.load(word);
      if (alive == 0) {  // for all threads alike
        continue;
      }
      const int first = word * kWarp;
      for (int row = warp_index(); row < kWarp; row += kWarps) {
        const bool asks = ((alive >> row) & 1u) != 0 && lane > row && ((alive >> lane) & 1u) != 0;
        const bool acts = asks && suppresses(options, candidates.load(first + row),
                                             candidates.load(first + lane));
        const unsigned suppressed = __ballot_sync(kAllLanes, acts);
        if (lane == 0) {
          matrix.store(row, suppressed);
        }
      }
      __syncthreads();
      for (int row = 0; row < kWarp; row += 4) {
        const Pack<uint32_t, 4> suppressed = matrix.template load_pack<4>(row);
        for (int i = 0; i < 4; ++i) {
          alive &= ((alive >> (row + i)) & 1u) != 0 ? ~suppressed[i] : kAllLanes;
        }
      }
      while (num_kept + __popc(alive) > options.max_segments) {
        alive &= ~(0x80000000u >> __clz(static_cast<int>(alive)));  // the last one is too many
      }
      if (thread == 0) {
        kept.store(word, alive);
      }
      num_kept += __popc(alive);
      const Segments by = {candidates.start + first, candidates.end + first,
                           candidates.length + first};
      for (int other = word + 1 + warp_index(); other < words; other += kWarps) {
        suppress_word(other, by, kWarp, alive);
      }
      __syncthreads();
    }
    // Written at the end: within the loop every word would wait for global memory.
    for (int i = thread; i < count; i += kThreads) {
      const int word = i / kWarp;
      const unsigned bits = kept.load(word);
      if (((bits >> lane) & 1u) != 0) {
        int64_t to = list_begin + kept_before + __popc(bits & ((1u << lane) - 1u));
        for (int w = 0; w < word; ++w) {
          to += __popc(kept.load(w));
        }
        list.rows[to] = order[i];
        list.scores[to] = scores[i];
        list.segments[2 * to] = candidates.start.load(i);
        list.segments[2 * to + 1] = candidates.end.load(i);
      }
    }
    __syncthreads();
    return num_kept;
  }
};

// One block per problem, one problem after the other.
template <typename T>
struct NmsHard {
  using Tile = HardTile<T>;
  static constexpr const char* kName = "nms hard, a block per problem";
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kBlocks = 4;

  NmsOptions<T> options;
  const int64_t* starts;  // [problems + 1]
  const int64_t* order;   // [N]
  const T* segments;      // [N, 2] in rank order
  const T* scores;        // [N] in rank order
  KeptList<T> list;
  NmsFacts* facts;

  TAL_FAST_DEVICE void operator()() const {
    const Tile tile(options);
    const int32_t problems = facts->problems;
    for (int64_t p = blockIdx.x; p < problems; p += gridDim.x) {
      const int64_t begin = starts[p];
      const int64_t end = starts[p + 1];
      int64_t num_kept = 0;
      for (int64_t at = begin; at < end && num_kept < options.max_segments; at += Tile::kSize) {
        const int64_t count = end - at < Tile::kSize ? end - at : Tile::kSize;
        if (tile.load(segments + 2 * at, scores + at, count) == 0) {
          break;
        }
        tile.suppress_by(list.segments + 2 * begin, num_kept);
        num_kept = tile.settle(list, begin, num_kept, order + at, scores + at, count);
      }
      if (threadIdx.x == 0) {
        if (num_kept == 0 && options.spare_first) {
          num_kept = spare_first_place(list, begin, order, scores);
        }
        list.counts[p] = num_kept;
        atomicAdd(&facts->solved, static_cast<int32_t>(num_kept));
      }
    }
  }
};

// One large problem by many blocks: launch `step` suppresses in all tiles from `step` on by what
// tile step - 1 kept, and then settles tile `step`. The blocks of a launch need nothing of each
// other.
template <typename T>
struct NmsHardStep {
  static constexpr const char* kName = "nms hard, tile by tile";
  static constexpr int kThreads = HardTile<T>::kThreads;
  static constexpr int kBlocks = 4;

  NmsOptions<T> options;
  int64_t step;
  int64_t n;
  const int64_t* order;  // [N]
  const T* segments;     // [N, 2] in rank order
  const T* scores;       // [N] in rank order
  uint32_t* dead;        // [tiles, kWords] in, out
  int64_t* ends;         // [tiles]: how many are kept after each tile; in, out
  KeptList<T> list;
  NmsFacts* facts;

  TAL_FAST_DEVICE void operator()() const {
    using Tile = HardTile<T>;
    const Tile tile(options);
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t number = step + blockIdx.x;
    const int64_t at = number * Tile::kSize;
    const int64_t count = n - at < Tile::kSize ? n - at : Tile::kSize;
    const int64_t kept_before = step >= 1 ? ends[step - 1] : 0;
    const int64_t fresh_from = step >= 2 ? ends[step - 2] : 0;
    int64_t num_kept = kept_before;
    if (kept_before < options.max_segments) {
      tile.load(segments + 2 * at, scores + at, count);
      if (step > 0) {
        __syncthreads();
        if (thread < Tile::kWords) {
          tile.dead.store(thread, dead[number * Tile::kWords + thread]);
        }
      }
      __syncthreads();
      tile.suppress_by(list.segments + 2 * fresh_from, kept_before - fresh_from);
      if (blockIdx.x == 0) {
        num_kept = tile.settle(list, 0, kept_before, order + at, scores + at, count);
      } else if (thread < Tile::kWords) {
        dead[number * Tile::kWords + thread] = tile.dead.load(thread);
      }
    }
    if (blockIdx.x == 0 && thread == 0) {
      ends[step] = num_kept;
      if (at + count == n) {
        if (num_kept == 0 && options.spare_first) {
          num_kept = spare_first_place(list, 0, order, scores);
        }
        list.counts[0] = num_kept;
        facts->solved = static_cast<int32_t>(num_kept);
      }
    }
  }
};

}  // namespace tal_fast
