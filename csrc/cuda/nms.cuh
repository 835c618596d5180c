// SPDX-License-Identifier: Apache-2.0
// Kernels around those that suppress: ranks, problems, the merge of a video's problems, outputs.
//
// Rows are sorted by video, label and falling score, so that a problem is a range of *places* in
// rank order. Its solver (nms_hard.cuh, nms_soft.cuh) leaves what it keeps at the beginning of that
// range. How many problems and results there are is known on the GPU alone.
#pragma once

#include <limits>

#include "cuda/platform.cuh"
#include "cuda/row_order.cuh"
#include "math/nms.h"
#include "math/ordered_bits.h"

namespace tal_fast {

constexpr int64_t kNoGroup = INT64_MAX;

// Counted on the GPU; all 0 at first.
struct NmsFacts {
  int32_t problems;
  int32_t refused;  // a sum of NmsRefused
  int32_t solved;   // kept by the solvers
  int32_t kept;     // of these, among the first of their video
};

enum NmsRefused : int32_t {
  kRefusedSegments = 1,
  kRefusedRanks = 2,
  kRefusedVotes = 4,
  kRefusedVideos = 8,
};

template <typename T>
using KeyOf = decltype(rising_key(T(0)));

// Keys of rank, and whether the values are what an op takes.
template <typename T>
struct RankKeys {
  static constexpr const char* kName = "nms rank keys";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;
  static constexpr T kMax = std::numeric_limits<T>::max();

  const T* segments;      // [N, 2]
  const T* scores;        // [N]
  const int64_t* videos;  // [N] or null
  int64_t num_videos;     // videos are below it; negative: any numbers
  bool check_segments;
  bool check_votes;
  int64_t n;
  KeyOf<T>* keys;   // [N] out
  NmsFacts* facts;  // in, out

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    int refused = 0;
    if (i < n) {
      const T score = scores[i];
      const T start = segments[2 * i];
      const T end = segments[2 * i + 1];
      keys[i] = falling_key(score);
      refused |=
          check_segments && !(start <= end && start >= -kMax && end <= kMax) ? kRefusedSegments : 0;
      refused |= score != score ? kRefusedRanks : 0;
      refused |= check_votes && !(score >= -kMax && score <= kMax) ? kRefusedVotes : 0;
      refused |= videos != nullptr && num_videos >= 0 && (videos[i] < 0 || videos[i] >= num_videos)
                     ? kRefusedVideos
                     : 0;
    }
    if (__syncthreads_or(refused) != 0 && refused != 0) {
      atomicOr(&facts->refused, refused);
    }
  }
};

// Adds up packed numbers over a block of at most 1024 threads: the sum of those before this thread,
// and that of all. Every thread must call it, and pass a barrier before the next call.
struct BlockScan {
  Shared<int64_t> sums;  // [32]

  struct Sums {
    int64_t before;
    int64_t all;
  };

  TAL_FAST_DEVICE Sums operator()(int64_t value) const {
    int64_t inclusive = value;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int64_t other = __shfl_up_sync(kAllLanes, inclusive, static_cast<unsigned>(offset));
      inclusive += lane_index() >= offset ? other : 0;
    }
    if (lane_index() == kWarp - 1) {
      sums.store(warp_index(), inclusive);
    }
    __syncthreads();
    Sums result = {inclusive - value, 0};
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int warp = 0; warp < warps; ++warp) {
      const int64_t sum = sums.load(warp);
      result.before += warp < warp_index() ? sum : 0;
      result.all += sum;
    }
    return result;
  }
};

// Where places begin a new problem (counted in the low 32 bits) and a new video (in the high ones).
struct ProblemFlags {
  const int64_t* videos;  // [N] or null
  const int64_t* labels;  // [N] or null
  const int64_t* order;   // [N]
  int64_t n;

  TAL_FAST_DEVICE int64_t operator()(int64_t place) const {
    if (place >= n) {
      return 0;
    }
    const int64_t row = order[place];
    const int64_t before = place == 0 ? row : order[place - 1];
    const bool new_video = place == 0 || (videos != nullptr && videos[row] != videos[before]);
    const bool new_problem = new_video || (labels != nullptr && labels[row] != labels[before]);
    return (new_problem ? 1 : 0) + (new_video ? int64_t{1} << 32 : 0);
  }
};

// Places of the merged order whose rows are among the first `limit` kept ones of their video.
struct OutputFlags {
  const int64_t* groups;  // [N] by row: its video if it is kept, else kNoGroup
  const int64_t* order;   // [N] by video, falling score and row
  int64_t n;
  int64_t limit;

  TAL_FAST_DEVICE int64_t first_place(int64_t video) const {
    return places_below(groups, order, n, video);
  }

  TAL_FAST_DEVICE int64_t operator()(int64_t place) const {
    if (place >= n) {
      return 0;
    }
    const int64_t video = groups[order[place]];
    if (video == kNoGroup) {
      return 0;
    }
    return limit >= n || place - first_place(video) < limit ? 1 : 0;
  }
};

constexpr int kScanTile = 1024;  // places per block

// The first of two passes of a scan: the sum of every tile's flags.
template <typename Flags>
struct CountFlags {
  static constexpr const char* kName = "nms count";
  static constexpr int kThreads = kScanTile;
  static constexpr int kBlocks = 2;

  Flags flags;
  int64_t* sums;   // [tiles] out
  int32_t* total;  // in, out: what it counts is added; or null

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const BlockScan scan{memory.take<int64_t>(32)};
    const int64_t sum = scan(flags(static_cast<int64_t>(blockIdx.x) * kScanTile + threadIdx.x)).all;
    if (threadIdx.x == 0) {
      sums[blockIdx.x] = sum;
      if (total != nullptr && sum != 0) {
        atomicAdd(total, static_cast<int32_t>(sum));
      }
    }
  }
};

// The second pass: the sum of all flags before this thread's place.
TAL_FAST_DEVICE int64_t flags_before(const int64_t* sums, const BlockScan& scan, int64_t flag) {
  int64_t tiles_before = 0;
  for (int64_t tile = threadIdx.x; tile < static_cast<int64_t>(blockIdx.x); tile += blockDim.x) {
    tiles_before += sums[tile];
  }
  const int64_t base = scan(tiles_before).all;
  __syncthreads();
  return base + scan(flag).before;
}

// Numbers the problems and puts the detections into rank order.
template <typename T>
struct FindProblems {
  static constexpr const char* kName = "nms problems";
  static constexpr int kThreads = kScanTile;
  static constexpr int kBlocks = 1;

  ProblemFlags flags;
  const int64_t* sums;  // [tiles] of CountFlags; null: there is one problem
  const T* segments;    // [N, 2]
  const T* scores;      // [N]
  bool plain_videos;    // videos keep their numbers; else they are numbered as they come
  int64_t* starts;      // [N + 1] out: [problems + 1] places
  T* ranked_segments;   // [N, 2] out
  T* ranked_scores;     // [N] out
  int64_t* problems;    // [N] out, by row; or null
  int64_t* videos;      // [N] out, by row; or null
  NmsFacts* facts;

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const BlockScan scan{memory.take<int64_t>(32)};
    const int64_t place = static_cast<int64_t>(blockIdx.x) * kScanTile + threadIdx.x;
    const int64_t flag = sums != nullptr ? flags(place) : (place == 0 ? 1 : 0);
    // Counted from 1 on, this place included.
    const int64_t counted =
        sums != nullptr ? flags_before(sums, scan, flag) + flag : (int64_t{1} << 32) + 1;
    if (place >= flags.n) {
      return;
    }
    const int64_t row = flags.order[place];
    const int64_t problem = (counted & 0xffffffff) - 1;
    if ((flag & 1) != 0) {
      starts[problem] = place;
    }
    if (place == flags.n - 1) {
      starts[problem + 1] = flags.n;
      facts->problems = static_cast<int32_t>(problem + 1);
    }
    ranked_segments[2 * place] = segments[2 * row];
    ranked_segments[2 * place + 1] = segments[2 * row + 1];
    ranked_scores[place] = scores[row];
    if (problems != nullptr) {
      problems[row] = problem;
    }
    if (videos != nullptr) {
      videos[row] = !plain_videos             ? (counted >> 32) - 1
                    : flags.videos != nullptr ? flags.videos[row]
                                              : 0;
    }
  }
};

// What a solver writes: problem p has its kept rows and their scores at places [starts[p],
// starts[p] + counts[p]), best first.
template <typename T>
struct KeptList {
  int64_t* rows;    // [N]
  T* scores;        // [N]
  T* segments;      // [N, 2]
  int64_t* counts;  // [N] by problem
};

// Where nothing has the least score and the first segment is to be spared: keeps the first place.
template <typename T>
TAL_FAST_DEVICE int64_t spare_first_place(const KeptList<T>& list, int64_t begin,
                                          const int64_t* order, const T* scores) {
  list.rows[begin] = order[begin];
  list.scores[begin] = scores[begin];
  return 1;
}

// Which rows are kept, and their keys in the merge of a video's problems.
template <typename T>
struct MergeKeys {
  static constexpr const char* kName = "nms merge keys";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;

  const int64_t* order;     // [N]
  const int64_t* problems;  // [N] by row
  const int64_t* videos;    // [N] by row
  const int64_t* starts;    // [problems + 1]
  KeptList<T> kept;
  int64_t n;
  int64_t* groups;  // [N] by row, kNoGroup at first; out: the video of a kept one
  KeyOf<T>* keys;   // [N] by row, 0 at first
  T* scores;        // [N] out, by row

  TAL_FAST_DEVICE void operator()() const {
    const int64_t place = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (place >= n) {
      return;
    }
    const int64_t problem = problems[order[place]];
    if (place - starts[problem] < kept.counts[problem]) {
      const int64_t row = kept.rows[place];
      groups[row] = videos[row];
      keys[row] = falling_key(kept.scores[place]);
      scores[row] = kept.scores[place];
    }
  }
};

template <typename T>
struct ClearMergeKeys {
  static constexpr const char* kName = "nms merge keys, clear";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;

  int64_t n;
  int64_t* groups;  // [N] out
  KeyOf<T>* keys;   // [N] out

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
      groups[i] = kNoGroup;
      keys[i] = 0;
    }
  }
};

// Results of exact size.
template <typename T>
struct WriteOutputs {
  static constexpr const char* kName = "nms outputs";
  static constexpr int kThreads = kScanTile;
  static constexpr int kBlocks = 1;

  OutputFlags flags;
  const int64_t* sums;  // [tiles] of CountFlags
  const T* scores;      // [N] by row
  int64_t* out_rows;    // [K] out
  T* out_scores;        // [K] out

  TAL_FAST_DEVICE void operator()() const {
    SharedMemory memory;
    const BlockScan scan{memory.take<int64_t>(32)};
    const int64_t place = static_cast<int64_t>(blockIdx.x) * kScanTile + threadIdx.x;
    const int64_t flag = flags(place);
    const int64_t to = flags_before(sums, scan, flag);
    if (flag != 0) {
      const int64_t row = flags.order[place];
      out_rows[to] = row;
      out_scores[to] = scores[row];
    }
  }
};

// Results of fixed size, `limit` per video: rows -1 and zeros behind the last one. If the values
// were refused, there is none and the counts are -1.
template <typename T>
struct WritePadded {
  static constexpr const char* kName = "nms outputs, padded";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;

  OutputFlags flags;
  const T* scores;    // [N] by row
  const T* segments;  // [N, 2]
  const NmsFacts* facts;
  int64_t num_videos;
  int64_t* out_rows;    // [V, limit] out
  T* out_scores;        // [V, limit] out
  T* out_segments;      // [V, limit, 2] out
  int64_t* out_counts;  // [V] out

  TAL_FAST_DEVICE void operator()() const {
    const int64_t slots = num_videos * flags.limit;
    const bool refused = facts->refused != 0;
    for (int64_t slot = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; slot < slots;
         slot += static_cast<int64_t>(gridDim.x) * blockDim.x) {
      const int64_t video = slot / flags.limit;
      const int64_t rank = slot - video * flags.limit;
      const int64_t begin = flags.first_place(video);
      const int64_t count = refused ? 0 : flags.first_place(video + 1) - begin;
      if (rank == 0) {
        out_counts[video] = refused ? -1 : count < flags.limit ? count : flags.limit;
      }
      const bool has = rank < count;
      const int64_t row = has ? flags.order[begin + rank] : -1;
      out_rows[slot] = row;
      out_scores[slot] = has ? scores[row] : T(0);
      out_segments[2 * slot] = has ? segments[2 * row] : T(0);
      out_segments[2 * slot + 1] = has ? segments[2 * row + 1] : T(0);
    }
  }
};

// The results of one problem, which need no merge, in outputs of exact (`padded` false) or fixed
// size; without `scores` and `out_scores`, rows alone.
template <typename T>
struct WriteOne {
  static constexpr const char* kName = "nms outputs, one problem";
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 8;

  const int64_t* rows;    // [N]
  const T* scores;        // [N]
  const int64_t* counts;  // [1]
  const NmsFacts* facts;
  int64_t size;
  int64_t* out_rows;   // [size] out
  T* out_scores;       // [size] out, or null
  int64_t* out_count;  // [] out, or null: all are kept

  TAL_FAST_DEVICE void operator()() const {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool refused = out_count != nullptr && facts->refused != 0;
    const int64_t count = refused ? 0 : counts[0];
    if (i == 0 && out_count != nullptr) {
      *out_count = refused ? -1 : count;
    }
    if (i < size) {
      out_rows[i] = i < count ? rows[i] : -1;
      if (out_scores != nullptr) {
        out_scores[i] = i < count ? scores[i] : T(0);
      }
    }
  }
};

}  // namespace tal_fast
