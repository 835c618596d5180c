// SPDX-License-Identifier: Apache-2.0
// Soft non-maximum suppression: a team of threads per problem, a warp or a block, repeats the
// definition, which is to find the highest score and to lower all others. Scores only fall, so
// those behind a frontier in rank order are not touched before the highest one of them may be the
// next pick; a candidate that joins late catches up with the decays of all picks in their order. So
// every score goes through the multiplications of the definition and has its bits.
//
// Candidates that have joined lie in shared memory, those of a problem too large for it in global
// memory. Scores are not negative, so floats and their bits as signed integers order alike.
#pragma once

#include "cuda/nms.cuh"

namespace tal_fast {

// A candidate by its place in the problem; without one the score is kNmsDropped.
template <typename T>
struct SoftCandidate {
  T score;
  int32_t place;
};

template <typename T>
TAL_FAST_DEVICE SoftCandidate<T> no_candidate() {
  return {T(kNmsDropped), -1};
}

// Whether a comes before b: the higher score or, of equal ones, the lower row. Rows are looked up
// only then.
template <typename T>
TAL_FAST_DEVICE bool precedes(const SoftCandidate<T>& a, const SoftCandidate<T>& b,
                              const int64_t* rows) {
  if (a.score == b.score && a.place >= 0 && b.place >= 0) {  // hot: equal candidates
    return read(rows + a.place) < read(rows + b.place);
  }
  return a.score > b.score;
}

// The greatest of a warp's numbers, in every lane.
TAL_FAST_DEVICE int warp_reduce_max(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return warp_max(value);
#else
  return __reduce_max_sync(kAllLanes, value);
#endif
}

// The greatest of a warp's scores, in every lane; 0 and -0 count as equal.
TAL_FAST_DEVICE float highest_of_warp(float score) {
  return __int_as_float(warp_reduce_max(__float_as_int(score + 0.0f)));
}

TAL_FAST_DEVICE double highest_of_warp(double score) {
  const long long bits = __double_as_longlong(score + 0.0);
  const int high = static_cast<int>(bits >> 32);
  const int highest = warp_reduce_max(high);
  // With the sign flipped the lower half orders as an unsigned number.
  const int low = static_cast<int>(static_cast<unsigned>(bits) ^ 0x80000000u);
  const int lowest = static_cast<int>(0x80000000u);
  const int best = warp_reduce_max(high == highest ? low : lowest);
  return __longlong_as_double((static_cast<long long>(highest) << 32) |
                              (static_cast<unsigned>(best) ^ 0x80000000u));
}

template <typename T>
TAL_FAST_DEVICE SoftCandidate<T> best_of_warp(const SoftCandidate<T>& own, const int64_t* rows) {
  const T highest = highest_of_warp(own.score);
  unsigned lanes = __ballot_sync(kAllLanes, own.score == highest);
  if ((lanes & (lanes - 1)) != 0 && highest >= T(0)) {  // hot: equal scores
    constexpr int kLast = 0x7fffffff;
    const int row = own.score == highest ? static_cast<int>(read(rows + own.place)) : kLast;
    const int first = -warp_reduce_max(-row);
    lanes = __ballot_sync(kAllLanes, row == first);
  }
  const int winner = __ffs(static_cast<int>(lanes)) - 1;
  return {highest, __shfl_sync(kAllLanes, own.place, winner)};
}

// Teams: best() is the best candidate of all members, who have also seen by then what each other
// wrote to memory before.
template <typename T>
struct WarpTeam {
  TAL_FAST_DEVICE int size() const { return kWarp; }
  TAL_FAST_DEVICE int rank() const { return lane_index(); }
  TAL_FAST_DEVICE SoftCandidate<T> best(const SoftCandidate<T>& own, const int64_t* rows) {
    __syncwarp();
    return best_of_warp(own, rows);
  }
};

template <typename T>
struct BlockTeam {
  static constexpr int kMostWarps = 9;

  Shared<T> scores;        // [2, kMostWarps]
  Shared<int32_t> places;  // [2, kMostWarps]
  int turn = 0;            // 0 and 1: so one barrier per call is enough

  TAL_FAST_DEVICE explicit BlockTeam(SharedMemory& memory)
      : scores(memory.take<T>(2 * kMostWarps)), places(memory.take<int32_t>(2 * kMostWarps)) {}
  TAL_FAST_DEVICE int size() const { return static_cast<int>(blockDim.x); }
  TAL_FAST_DEVICE int rank() const { return static_cast<int>(threadIdx.x); }
  TAL_FAST_DEVICE SoftCandidate<T> best(const SoftCandidate<T>& own, const int64_t* rows) {
    SoftCandidate<T> best = best_of_warp(own, rows);
    if (lane_index() == 0) {
      scores.store(turn * kMostWarps + warp_index(), best.score);
      places.store(turn * kMostWarps + warp_index(), best.place);
    }
    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int warp = 0; warp < warps; ++warp) {
      const SoftCandidate<T> other = {scores.load(turn * kMostWarps + warp),
                                      places.load(turn * kMostWarps + warp)};
      best = precedes(other, best, rows) ? other : best;
    }
    turn ^= 1;
    return best;
  }
};

// Where the candidates of a problem are, by place.
template <typename T>
struct SharedCandidates {
  Shared<T> score, start, end;
  Shared<int32_t> row;  // no pick has to wait for global memory

  TAL_FAST_DEVICE T get(int place) const { return score.load(place); }
  TAL_FAST_DEVICE void set(int place, T value) const { score.store(place, value); }
  TAL_FAST_DEVICE T get_start(int place) const { return start.load(place); }
  TAL_FAST_DEVICE T get_end(int place) const { return end.load(place); }
  TAL_FAST_DEVICE int64_t get_row(int place) const { return row.load(place); }
  TAL_FAST_DEVICE void join(int place, T value, T s, T e, int64_t of_row) const {
    score.store(place, value);
    start.store(place, s);
    end.store(place, e);
    row.store(place, static_cast<int32_t>(of_row));
  }
  TAL_FAST_DEVICE SharedCandidates operator+(int places) const {
    return {score + places, start + places, end + places, row + places};
  }
};

template <typename T>
struct GlobalCandidates {
  T* score;             // [count]
  const T* segments;    // [count, 2]
  const int64_t* rows;  // [count]

  TAL_FAST_DEVICE T get(int place) const { return score[place]; }
  TAL_FAST_DEVICE void set(int place, T value) const { score[place] = value; }
  TAL_FAST_DEVICE T get_start(int place) const { return segments[2 * int64_t{place}]; }
  TAL_FAST_DEVICE T get_end(int place) const { return segments[2 * int64_t{place} + 1]; }
  TAL_FAST_DEVICE int64_t get_row(int place) const { return read(rows + place); }
  TAL_FAST_DEVICE void join(int place, T value, T, T, int64_t) const { score[place] = value; }
};

// `kByWarp`: problems that a warp solves alone; the others are for the blocks of another launch.
template <NmsMethod kMethod, typename T, bool kByWarp>
struct NmsSoft {
  static constexpr const char* kName =
      kByWarp ? "nms soft, a warp per problem" : "nms soft, a block per problem";
  // In float32 36 warps on a multiprocessor, which take the 33 problems of it that 213 videos of 20
  // classes are in one round; four blocks of 256 threads would not, and five have too few
  // registers.
  static constexpr int kThreads = sizeof(T) == 8 ? 256 : 288;
  static constexpr int kBlocks = sizeof(T) == 8 ? 3 : 4;
  static constexpr int kMostOfWarp = 256;  // candidates of a problem that one warp solves

  using Candidate = SoftCandidate<T>;

  NmsOptions<T> options;
  const int64_t* starts;  // [problems + 1]
  const int64_t* order;   // [N]
  const T* segments;      // [N, 2] in rank order
  const T* scores;        // [N] in rank order
  T* current;             // [N] in rank order: decayed scores of problems too large for `held`
  int32_t held;           // candidates that the shared memory has room for, per warp
  KeptList<T> list;
  NmsFacts* facts;

  static size_t shared_bytes(int warps, int held) {
    SharedSize size;
    for (int i = 0; i < 3; ++i) {
      size.take<T>(int64_t{warps} * held);
    }
    size.take<int32_t>(int64_t{warps} * held);
    constexpr int kSlots = kByWarp ? 0 : 2 * BlockTeam<T>::kMostWarps;
    return size.take<T>(kSlots).template take<int32_t>(kSlots).bytes();
  }

  // What a problem's team works on.
  struct Problem {
    const int64_t* rows;  // [count]
    const T* segments;    // [count, 2]
    const T* scores;      // [count]
    T* kept_segments;     // the part of KeptList
    int count;
  };

  struct Pick {
    T start, end, length;
  };

  TAL_FAST_DEVICE static bool overlaps(const Pick& pick, T s, T e) {
    return pick.start < pick.end && s < e && pick.start < e && pick.end > s;
  }

  // The score of the segment [s, e] after a pick that it overlaps.
  TAL_FAST_DEVICE T after(T score, const Pick& pick, T s, T e) const {
    return decayed_score<kMethod>(options, options.acts_on_threshold, score, pick.start, pick.end,
                                  pick.length, s, e, (e - s) + options.length_eps);
  }

  TAL_FAST_DEVICE Pick picked(T start, T end) const {
    return {start, end, (end - start) + options.length_eps};
  }

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    SharedCandidates<T> candidates;
    candidates.score = memory.take<T>(warps * held);
    candidates.start = memory.take<T>(warps * held);
    candidates.end = memory.take<T>(warps * held);
    candidates.row = memory.take<int32_t>(warps * held);
    const int64_t problems = facts->problems;
    if constexpr (kByWarp) {
      // Neighbouring problems go to neighbouring blocks: so multiprocessors get as many, give or
      // take one, where there are fewer problems than warps.
      WarpTeam<T> warp;
      const int64_t first = int64_t{warp_index()} * gridDim.x + blockIdx.x;
      const int64_t step = int64_t{warps} * gridDim.x;
      for (int64_t p = first; p < problems; p += step) {  // hot: problem of a warp
        if (starts[p + 1] - starts[p] <= held) {
          solve(warp, p, candidates + warp_index() * held);
        }
      }
    } else {
      BlockTeam<T> block(memory);
      for (int64_t p = blockIdx.x; p < problems; p += gridDim.x) {
        const int64_t begin = starts[p];
        const int64_t count = starts[p + 1] - begin;
        if (count > warps * held) {
          solve(block, p,
                GlobalCandidates<T>{current + begin, segments + 2 * begin, order + begin});
        } else if (count > held) {
          solve(block, p, candidates);
        }
      }
    }
  }

  // A member of the team owns every size()-th place of the problem.
  template <typename Team, typename Candidates>
  TAL_FAST_DEVICE void solve(Team& team, int64_t problem, const Candidates& candidates) const {
    const int64_t begin = starts[problem];
    const Problem of = {pinned(order + begin), segments + 2 * begin, scores + begin,
                        list.segments + 2 * begin, static_cast<int>(starts[problem + 1] - begin)};
    const int most =
        options.max_segments < of.count ? static_cast<int>(options.max_segments) : of.count;
    int64_t* kept_rows = pinned(list.rows + begin);
    T* kept_scores = pinned(list.scores + begin);
    T* kept_segments = pinned(list.segments + 2 * begin);
    Candidate own = no_candidate<T>();  // the best of this member's
    int frontier = 0;                   // places before it have joined
    Candidate fresh = candidate_at(of, 0);
    int picks = 0;
    while (picks < most) {  // hot: turn
      const Candidate best = team.best(own, of.rows);
      if (fresh.place >= 0 && precedes(fresh, best, of.rows)) {  // hot: join
        join(of, candidates, frontier + team.rank(), picks, own);
        frontier += team.size();
        fresh = candidate_at(of, frontier);
        continue;
      }
      if (best.place < 0) {
        break;
      }
      const Pick pick = picked(candidates.get_start(best.place), candidates.get_end(best.place));
      if (own.place == best.place) {
        store_pack<1>(kept_rows + picks, Pack<int64_t, 1>{{candidates.get_row(own.place)}});
        store_pack<1>(kept_scores + picks, Pack<T, 1>{{own.score}});
        store_pack<2>(kept_segments + 2 * picks, Pack<T, 2>{{pick.start, pick.end}});
        candidates.set(own.place, T(kNmsDropped));
      }
      ++picks;
      own = lower(of, candidates, pick, team.rank(), frontier < of.count ? frontier : of.count,
                  team.size());
    }
    if (team.rank() == 0) {
      int64_t kept = picks;
      if (picks == 0 && options.spare_first) {
        kept = spare_first_place(list, begin, order, scores);
      }
      list.counts[problem] = kept;
      atomicAdd(&facts->solved, static_cast<int32_t>(kept));
    }
  }

  TAL_FAST_DEVICE Pick pick_at(const Problem& of, int i) const {
    return picked(of.kept_segments[2 * i], of.kept_segments[2 * i + 1]);
  }

  // The best one that has not joined; none if nobody more may.
  TAL_FAST_DEVICE Candidate candidate_at(const Problem& of, int frontier) const {
    if (frontier < of.count) {
      const T score = of.scores[frontier];
      if (score >= options.min_score) {
        return {score, frontier};
      }
    }
    return no_candidate<T>();
  }

  // Lets a place join, its score lowered by all picks so far, in their order.
  template <typename Candidates>
  TAL_FAST_DEVICE void join(const Problem& of, const Candidates& candidates, int place, int picks,
                            Candidate& own) const {
    if (place >= of.count) {
      return;
    }
    const T s = of.segments[2 * int64_t{place}];
    const T e = of.segments[2 * int64_t{place} + 1];
    T score = of.scores[place];
    score = score >= options.min_score ? score : T(kNmsDropped);
    for (int base = 0; base < picks && score >= T(0); base += kWarp) {
      constexpr int kAtOnce = 4;
      unsigned noted = 0;                                             // as in lower()
      for (int i = 0; i < kWarp && base + i < picks; i += kAtOnce) {  // hot: earlier picks
        for (int j = 0; j < kAtOnce; ++j) {
          const int pick = base + i + j;
          noted |= pick < picks && overlaps(pick_at(of, pick), s, e) ? 1u << (i + j) : 0;
        }
      }
      for (; noted != 0 && score >= T(0); noted &= noted - 1) {  // hot: late decay
        score = after(score, pick_at(of, base + __ffs(static_cast<int>(noted)) - 1), s, e);
      }
    }
    candidates.join(place, score, s, e, read(of.rows + place));
    const Candidate joined = {score, place};
    own = score != T(kNmsDropped) && precedes(joined, own, of.rows) ? joined : own;
  }

  // Lowers the scores of the places from `first` on, `step` apart, and returns their best. Those
  // that a pick overlaps are few: they are noted down first, so that the lanes of a warp compute
  // the decays of different places at once.
  template <typename Candidates>
  TAL_FAST_DEVICE Candidate lower(const Problem& of, const Candidates& candidates, const Pick& pick,
                                  int first, int end, int step) const {
    Candidate own = no_candidate<T>();
    for (int base = first; base < end; base += kWarp * step) {
      const Candidate before = own;
      unsigned noted = 0;
      unsigned bit = 1;
      bool tie = false;
      // Without a branch: rows, which decide between equal scores, are looked at afterwards.
      for (int place = base; place < end && bit != 0; place += step, bit <<= 1) {  // hot: candidate
        const T score = candidates.get(place);
        const bool alive = score >= T(0);
        const bool lowered =
            overlaps(pick, candidates.get_start(place), candidates.get_end(place)) && alive;
        noted |= lowered ? bit : 0;
        const bool rests = alive && !lowered;
        const bool higher = rests && score > own.score;
        tie = tie || (rests && score == own.score);
        own.score = higher ? score : own.score;
        own.place = higher ? place : own.place;
      }
      if (tie) {  // hot: ties
        own = before;
        bit = 1;
        for (int place = base; place < end && bit != 0; place += step, bit <<= 1) {
          const Candidate candidate = {candidates.get(place), place};
          const bool rests = candidate.score >= T(0) && (noted & bit) == 0;
          own = rests && precedes(candidate, own, of.rows) ? candidate : own;
        }
      }
      while (noted != 0) {  // hot: decay
        const int place = base + (__ffs(static_cast<int>(noted)) - 1) * step;
        noted &= noted - 1;
        const T score = after(candidates.get(place), pick, candidates.get_start(place),
                              candidates.get_end(place));
        candidates.set(place, score);
        const Candidate candidate = {score, place};
        own = score >= T(0) && precedes(candidate, own, of.rows) ? candidate : own;
      }
    }
    return own;
  }
};

}  // namespace tal_fast
