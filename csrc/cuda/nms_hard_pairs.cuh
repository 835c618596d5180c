// SPDX-License-Identifier: Apache-2.0
// Hard non-maximum suppression of one list of some thousand segments, which one block would take
// too long for. All multiprocessors find which pairs suppress, 32 pairs to a word; then one block
// goes through the words in rank order and looks at no segment any more.
#pragma once

#include "cuda/nms_hard.cuh"

namespace tal_fast {

// Where the words of pairs are: for a word of segments and each segment above it in rank, the
// segments of the word that it suppresses. Within a word the other way round: for each segment,
// those before it by which it is suppressed.
struct PairWords {
  static constexpr int kMostWords = 128;

  uint32_t* words;  // [count, count * 32]; those below the diagonal are not written
  int count;

  TAL_FAST_DEVICE uint32_t* at(int word, int segment) const {
    return words + static_cast<int64_t>(word) * (count * kWarp) + segment;
  }
};

// A warp per word and 32 segments.
template <typename T>
struct NmsHardPairs {
  static constexpr const char* kName = "nms hard, pairs";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;
  static constexpr int kWarps = kThreads / kWarp;

  NmsOptions<T> options;
  const T* segments;  // [N, 2] in rank order
  int n;
  PairWords pairs;  // out

  static size_t shared_bytes() {
    return SharedSize().take<T>(2 * kThreads).template take<T>(kThreads).bytes();
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<T> ends = memory.take<T>(2 * kThreads);  // of the segments of the warp's word
    const Shared<T> lengths = memory.take<T>(kThreads);
    const int lane = lane_index();
    const int row = static_cast<int>(blockIdx.y);  // 32 segments
    const int word = static_cast<int>(blockIdx.x) * kWarps + warp_index();
    if (word < row || word >= pairs.count) {
      return;
    }
    const TimedSegment<T> own = load(row * kWarp + lane);
    const TimedSegment<T> staged = load(word * kWarp + lane);
    const int first = warp_index() * kWarp;
    ends.template store_pack<2>(2 * (first + lane), Pack<T, 2>{{staged.start, staged.end}});
    lengths.store(first + lane, staged.length);
    __syncwarp();
    const int count = n - word * kWarp < kWarp ? n - word * kWarp : kWarp;
    const Shared<T> word_ends = ends + 2 * first;
    const Shared<T> word_lengths = lengths + first;
    const unsigned bits = word == row ? pairs_of<true>(own, word_ends, word_lengths, count)
                                      : pairs_of<false>(own, word_ends, word_lengths, count);
    *pairs.at(word, row * kWarp + lane) = bits;
  }

 private:
  template <bool kWithin>
  TAL_FAST_DEVICE unsigned pairs_of(const TimedSegment<T>& own, Shared<T> ends, Shared<T> lengths,
                                    int count) const {
    unsigned bits = 0;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
    for (int i = 0; i < count; ++i) {  // hot: pair
      const Pack<T, 2> at = ends.template load_pack<2>(2 * i);
      const TimedSegment<T> other = {at[0], at[1], lengths.load(i)};
      const bool acts = kWithin ? i < lane_index() && suppresses(options, other, own)
                                : suppresses(options, own, other);
      bits |= acts ? 1u << i : 0u;
    }
    return bits;
  }

  TAL_FAST_DEVICE TimedSegment<T> load(int i) const {
    if (i >= n) {
      return {T(0), T(0), T(0)};
    }
    const Pack<T, 2> ends = read_pack<2>(segments + 2 * int64_t{i});
    return {ends[0], ends[1], (ends[1] - ends[0]) + options.length_eps};
  }
};

// One block, four threads per word: each gathers what of its word is out by eight segments of every
// word before. Words of pairs are asked for two turns ahead.
template <typename T>
struct NmsHardScan {
  static constexpr const char* kName = "nms hard, scan of the pairs";
  static constexpr int kParts = 4;
  static constexpr int kThreads = kParts * PairWords::kMostWords;
  static constexpr int kBlocks = 1;

  NmsOptions<T> options;
  int n;
  PairWords pairs;
  const int64_t* order;  // [N]
  const T* segments;     // [N, 2] in rank order
  const T* scores;       // [N] in rank order
  KeptList<T> list;
  NmsFacts* facts;

  static size_t shared_bytes() {
    return SharedSize()
        .take<uint32_t>(2 * kParts)
        .take<uint32_t>(PairWords::kMostWords)
        .take<int>(PairWords::kMostWords)
        .bytes();
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const Shared<uint32_t> next = memory.take<uint32_t>(2 * kParts);  // of a word: who is out
    const Shared<uint32_t> kept = memory.take<uint32_t>(PairWords::kMostWords);
    const Shared<int> kept_before = memory.take<int>(PairWords::kMostWords);
    const int thread = static_cast<int>(threadIdx.x);
    const int own = thread / kParts;  // word
    const int part = thread % kParts;
    if (part == 0 && own < pairs.count) {
      kept.store(own, 0);
    }
    if (own == 0) {
      next.store(part, 0);
    }
    Turn now = ask(0);
    Turn then = ask(1);
    uint32_t out = 0;
    int num_kept = 0;
    __syncthreads();
    const int words = pairs.count;
    for (int word = 0; word < words && num_kept < options.max_segments; ++word) {  // hot: word
      const Turn after = ask(word + 2);
      const Pack<uint32_t, kParts> parts = next.template load_pack<kParts>(word % 2 * kParts);
      const unsigned alive =
          __ballot_sync(kAllLanes, now.alive) & ~(parts[0] | parts[1] | parts[2] | parts[3]);
      // Whether a segment stays depends on those before it alone, so a bit more is right with every
      // turn, and what no longer changes is right.
      unsigned stay = alive;
      for (unsigned before = ~stay; stay != before;) {  // hot: settle
        before = stay;
        stay = alive & ~__ballot_sync(kAllLanes, (now.suppressed_by & before) != 0);
      }
      while (num_kept + __popc(stay) > options.max_segments) {
        stay &= ~(0x80000000u >> __clz(static_cast<int>(stay)));  // the last one is too many
      }
      if (thread == 0) {
        kept.store(word, stay);
        kept_before.store(word, num_kept);
      }
      num_kept += __popc(stay);
      if (own > word) {
        const unsigned mine = stay >> (kSide * part);
        for (int side = 0; side < 2; ++side) {
          for (int i = 0; i < kSide; ++i) {
            out |= ((mine >> (side * kWarp / 2 + i)) & 1u) != 0 ? now.suppresses[side][i] : 0u;
          }
        }
        if (own == word + 1) {
          next.store((word + 1) % 2 * kParts + part, out);
        }
      }
      __syncthreads();
      now = then;
      then = after;
    }
    const int lane = lane_index();
    for (int i = thread; i < n; i += static_cast<int>(blockDim.x)) {
      const unsigned bits = kept.load(i / kWarp);
      if (((bits >> lane) & 1u) != 0) {
        const int to = kept_before.load(i / kWarp) + __popc(bits & ((1u << lane) - 1u));
        list.rows[to] = order[i];
        list.scores[to] = scores[i];
        store_pack<2>(list.segments + 2 * int64_t{to}, read_pack<2>(segments + 2 * int64_t{i}));
      }
    }
    if (thread == 0) {
      int64_t count = num_kept;
      if (count == 0 && options.spare_first) {
        count = spare_first_place(list, 0, order, scores);
      }
      list.counts[0] = count;
      facts->solved = static_cast<int32_t>(count);
    }
  }

 private:
  static constexpr int kSide = kWarp / 2 / kParts;  // segments of a thread in each half of a word

  // What a turn needs of a word: whether this lane's segment has the score, by whom it is
  // suppressed, and whom of the thread's own word its eight segments suppress.
  struct Turn {
    bool alive;
    uint32_t suppressed_by;
    Pack<uint32_t, kSide> suppresses[2];
  };

  TAL_FAST_DEVICE Turn ask(int word) const {
    Turn turn = {};
    if (word >= pairs.count) {
      return turn;
    }
    const int segment = word * kWarp + lane_index();
    turn.alive = segment < n && read(scores + segment) >= options.min_score;
    turn.suppressed_by = read(pairs.at(word, segment));
    const int own = static_cast<int>(threadIdx.x) / kParts;
    const int part = static_cast<int>(threadIdx.x) % kParts;
    if (own > word && own < pairs.count) {
      for (int side = 0; side < 2; ++side) {
        turn.suppresses[side] =
            read_pack<kSide>(pairs.at(own, word * kWarp + side * kWarp / 2 + kSide * part));
      }
    }
    return turn;
  }
};

}  // namespace tal_fast
