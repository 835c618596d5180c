// SPDX-License-Identifier: Apache-2.0
// From detections to kept lists and outputs on a GPU: rank, find the problems, solve each, merge
// those of a video. The outputs of exact size are the only ones for which the host waits, once.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/launch.h"
#include "cuda/nms.cuh"
#include "cuda/nms_hard.cuh"
#include "cuda/nms_hard_pairs.cuh"
#include "cuda/nms_soft.cuh"
#include "cuda/row_order.h"
#include "cuda/segment_voting.h"
#include "ops/nms.h"

namespace tal_fast {

// One problem of up to so many segments is solved by one block, ...
constexpr int64_t kMostOfOneBlock = 256;
// ... of up to so many by the words of its pairs; of more, tile by tile.
constexpr int64_t kMostOfPairs = int64_t{PairWords::kMostWords} * kWarp;

inline dim3 blocks_for(int64_t count, int threads) {
  return dim3(static_cast<unsigned>(ceil_div(std::max<int64_t>(count, 1), threads)));
}

inline size_t scan_bytes() {
  return SharedSize().take<int64_t>(32).bytes();
}

// A call from the ranks to the kept lists and what is made of them. N > 0.
template <typename T>
class CudaNms {
 public:
  CudaNms(const DeviceScope& scope, const NmsCall& call)
      : op_(call.op),
        scope_(scope),
        in_(call.in),
        numbers_(call.groups),
        request_(call.request),
        options_(in_compute_type<T>(call.request.nms)),
        num_videos_(call.num_videos),
        n_(call.in.count) {}

  void solve() {
    facts_ = torch::stable::new_zeros(in_.segments, {4}, ScalarType::Int);
    static_assert(sizeof(NmsFacts) == 4 * sizeof(int32_t));
    rank();
    find_problems();
    kept_rows_ = numbers(n_);
    kept_scores_ = values({n_});
    kept_segments_ = values({n_, 2});
    counts_ = numbers(n_);
    if (options_.method == NmsMethod::kHard) {
      solve_hard();
    } else {
      solve_soft();
    }
  }

  // ---- one problem -----------------------------------------------------------------------------
  // Rows [K] and, if wanted, their scores [K].
  std::tuple<Tensor, Tensor> exact_one(bool with_scores) const {
    const int64_t size = read_facts().solved;
    const Tensor rows = numbers(size);
    const Tensor scores = with_scores ? values({size}) : in_.scores;
    write_one(rows, with_scores ? &scores : nullptr, nullptr);
    return {rows, scores};
  }

  // Rows [limit], scores [limit] if wanted, count [].
  std::tuple<Tensor, Tensor, Tensor> padded_one(bool with_scores) const {
    const int64_t size = request_.max_segments;
    const Tensor rows = numbers(size);
    const Tensor scores = with_scores ? values({size}) : in_.scores;
    const Tensor count = allocate(in_.segments, {}, ScalarType::Long);
    write_one(rows, with_scores ? &scores : nullptr, &count);
    return {rows, scores, count};
  }

  // ---- videos ----------------------------------------------------------------------------------
  std::tuple<Tensor, Tensor, Tensor> exact() {
    const OutputFlags flags = merge();
    const int64_t tiles = ceil_div(n_, kScanTile);
    const Tensor sums = numbers(tiles);
    using Count = CountFlags<OutputFlags>;
    launch(scope_, dim3(static_cast<unsigned>(tiles)), Count::kThreads, scan_bytes(),
           Count{flags, mutable_data<int64_t>(sums), &facts()->kept});
    const int64_t size = read_facts().kept;
    const Tensor rows = numbers(size);
    const Tensor scores = values({size});
    if (size > 0) {
      using Write = WriteOutputs<T>;
      launch(scope_, dim3(static_cast<unsigned>(tiles)), Write::kThreads, scan_bytes(),
             Write{flags, const_data<int64_t>(sums), const_data<T>(merged_scores_),
                   mutable_data<int64_t>(rows), mutable_data<T>(scores)});
    }
    const bool voting = request_.voting.has_value();
    const Tensor segments = values({voting ? size : 0, 2});
    if (voting) {
      vote(rows, size, segments);
    }
    return {rows, scores, segments};
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> padded() {
    const OutputFlags flags = merge();
    const int64_t videos = *num_videos_;
    const Tensor rows = allocate(in_.segments, {videos, flags.limit}, ScalarType::Long);
    const Tensor scores = values({videos, flags.limit});
    const Tensor segments = values({videos, flags.limit, 2});
    const Tensor counts = numbers(videos);
    using Write = WritePadded<T>;
    const int64_t slots = videos * flags.limit;
    launch(scope_,
           dim3(static_cast<unsigned>(
               std::min<int64_t>(ceil_div(slots, Write::kThreads), int64_t{1} << 20))),
           Write::kThreads, 0,
           Write{flags, const_data<T>(merged_scores_), const_data<T>(in_.segments), facts(), videos,
                 mutable_data<int64_t>(rows), mutable_data<T>(scores), mutable_data<T>(segments),
                 mutable_data<int64_t>(counts)});
    if (request_.voting.has_value()) {
      vote(rows, slots, segments);
    }
    return {rows, scores, segments, counts};
  }

 private:
  using Key = KeyOf<T>;

  Tensor numbers(int64_t count) const { return allocate(in_.segments, {count}, ScalarType::Long); }
  Tensor keys() const {
    return allocate(in_.segments, {n_}, sizeof(Key) == 4 ? ScalarType::Int : ScalarType::Long);
  }
  Tensor values(const std::vector<int64_t>& sizes) const { return allocate(in_.segments, sizes); }
  NmsFacts* facts() const { return static_cast<NmsFacts*>(facts_.mutable_data_ptr()); }

  void rank() {
    const Tensor rank_keys = keys();
    using Kernel = RankKeys<T>;
    launch(scope_, blocks_for(n_, Kernel::kThreads), Kernel::kThreads, 0,
           Kernel{const_data<T>(in_.segments), const_data<T>(in_.scores), numbers_.video_data(),
                  num_videos_.value_or(-1), request_.validate, request_.voting.has_value(), n_,
                  mutable_data<Key>(rank_keys), facts()});
    order_ = sort_rows(
        scope_, {numbers_.video_data(), num_videos_.value_or(0), numbers_.label_data()}, rank_keys);
  }

  bool grouped() const { return numbers_.videos.has_value() || numbers_.labels.has_value(); }

  void find_problems() {
    const ProblemFlags flags = {numbers_.video_data(), numbers_.label_data(),
                                const_data<int64_t>(order_), n_};
    const int64_t tiles = ceil_div(n_, kScanTile);
    Tensor sums = order_;
    if (grouped()) {
      sums = numbers(tiles);
      using Count = CountFlags<ProblemFlags>;
      launch(scope_, dim3(static_cast<unsigned>(tiles)), Count::kThreads, scan_bytes(),
             Count{flags, mutable_data<int64_t>(sums), nullptr});
    }
    starts_ = numbers(n_ + 1);
    ranked_segments_ = values({n_, 2});
    ranked_scores_ = values({n_});
    problems_ = numbers(n_);
    videos_ = numbers(n_);
    using Kernel = FindProblems<T>;
    launch(
        scope_, dim3(static_cast<unsigned>(tiles)), Kernel::kThreads, scan_bytes(),
        Kernel{flags, grouped() ? const_data<int64_t>(sums) : nullptr, const_data<T>(in_.segments),
               const_data<T>(in_.scores), num_videos_.has_value(), mutable_data<int64_t>(starts_),
               mutable_data<T>(ranked_segments_), mutable_data<T>(ranked_scores_),
               mutable_data<int64_t>(problems_), mutable_data<int64_t>(videos_), facts()});
  }

  KeptList<T> kept() const {
    return {mutable_data<int64_t>(kept_rows_), mutable_data<T>(kept_scores_),
            mutable_data<T>(kept_segments_), mutable_data<int64_t>(counts_)};
  }

  // Blocks that go through the problems, of which there are at most n_.
  dim3 blocks_of_problems(int per_multiprocessor) const {
    const int64_t most = int64_t{scope_.limits().multiprocessors} * per_multiprocessor;
    return dim3(static_cast<unsigned>(grouped() ? std::min(n_, most) : 1));
  }

  void solve_hard() {
    if (grouped() || n_ <= kMostOfOneBlock) {
      using Kernel = NmsHard<T>;
      launch(
          scope_, blocks_of_problems(Kernel::kBlocks), Kernel::kThreads,
          Kernel::Tile::shared_bytes(),
          Kernel{options_, const_data<int64_t>(starts_), const_data<int64_t>(order_),
                 const_data<T>(ranked_segments_), const_data<T>(ranked_scores_), kept(), facts()});
    } else if (n_ <= kMostOfPairs) {
      solve_hard_by_pairs();
    } else {
      solve_hard_tile_by_tile();
    }
  }

  void solve_hard_by_pairs() {
    const int n = static_cast<int>(n_);
    const int words = static_cast<int>(ceil_div(n_, kWarp));
    const Tensor bits = allocate(in_.segments, {int64_t{words} * words * kWarp}, ScalarType::Int);
    const PairWords pairs = {reinterpret_cast<uint32_t*>(mutable_data<int32_t>(bits)), words};
    using Pairs = NmsHardPairs<T>;
    launch(
        scope_,
        dim3(static_cast<unsigned>(ceil_div(words, Pairs::kWarps)), static_cast<unsigned>(words)),
        Pairs::kThreads, Pairs::shared_bytes(),
        Pairs{options_, const_data<T>(ranked_segments_), n, pairs});
    using Scan = NmsHardScan<T>;
    launch(scope_, dim3(1), static_cast<int>(ceil_div(words * Scan::kParts, kWarp)) * kWarp,
           Scan::shared_bytes(),
           Scan{options_, n, pairs, const_data<int64_t>(order_), const_data<T>(ranked_segments_),
                const_data<T>(ranked_scores_), kept(), facts()});
  }

  void solve_hard_tile_by_tile() {
    using Tile = HardTile<T>;
    const int64_t tiles = ceil_div(n_, Tile::kSize);
    const Tensor dead = allocate(in_.segments, {tiles * Tile::kWords}, ScalarType::Int);
    const Tensor ends = numbers(tiles);
    using Kernel = NmsHardStep<T>;
    for (int64_t step = 0; step < tiles; ++step) {
      launch(scope_, dim3(static_cast<unsigned>(tiles - step)), Kernel::kThreads,
             Tile::shared_bytes(),
             Kernel{options_, step, n_, const_data<int64_t>(order_),
                    const_data<T>(ranked_segments_), const_data<T>(ranked_scores_),
                    reinterpret_cast<uint32_t*>(mutable_data<int32_t>(dead)),
                    mutable_data<int64_t>(ends), kept(), facts()});
    }
  }

  // What a warp has no room for waits for blocks.
  template <NmsMethod kMethod>
  void solve_soft_by() {
    const Tensor current = values({n_});
    launch_soft<NmsSoft<kMethod, T, true>>(current);
    launch_soft<NmsSoft<kMethod, T, false>>(current);
  }

  template <typename Kernel>
  void launch_soft(const Tensor& current) {
    // One problem for a warp needs no more than that.
    const int threads = !grouped() && n_ <= Kernel::kMostOfWarp ? kWarp : Kernel::kThreads;
    const int warps = threads / kWarp;
    int held = Kernel::kMostOfWarp;
    while (held > 0 && Kernel::shared_bytes(warps, held) > scope_.limits().shared_per_block) {
      held -= kWarp;
    }
    launch(scope_, blocks_of_problems(Kernel::kBlocks), threads, Kernel::shared_bytes(warps, held),
           Kernel{options_, const_data<int64_t>(starts_), const_data<int64_t>(order_),
                  const_data<T>(ranked_segments_), const_data<T>(ranked_scores_),
                  mutable_data<T>(current), held, kept(), facts()});
  }

  void solve_soft() {
    switch (options_.method) {
      case NmsMethod::kLinear:
        return solve_soft_by<NmsMethod::kLinear>();
      case NmsMethod::kLengthGaussian:
        return solve_soft_by<NmsMethod::kLengthGaussian>();
      default:
        return solve_soft_by<NmsMethod::kGaussian>();
    }
  }

  // All kept rows by video, falling score and rising row.
  OutputFlags merge() {
    groups_ = numbers(n_);
    const Tensor merge_keys = keys();
    merged_scores_ = values({n_});
    using Clear = ClearMergeKeys<T>;
    launch(scope_, blocks_for(n_, Clear::kThreads), Clear::kThreads, 0,
           Clear{n_, mutable_data<int64_t>(groups_), mutable_data<Key>(merge_keys)});
    using Kernel = MergeKeys<T>;
    launch(scope_, blocks_for(n_, Kernel::kThreads), Kernel::kThreads, 0,
           Kernel{const_data<int64_t>(order_), const_data<int64_t>(problems_),
                  const_data<int64_t>(videos_), const_data<int64_t>(starts_), kept(), n_,
                  mutable_data<int64_t>(groups_), mutable_data<Key>(merge_keys),
                  mutable_data<T>(merged_scores_)});
    // Rows that are not kept are of the group behind the last video.
    merged_ =
        sort_rows(scope_, {const_data<int64_t>(groups_), num_videos_.value_or(n_) + 1}, merge_keys);
    return {const_data<int64_t>(groups_), const_data<int64_t>(merged_), n_, request_.max_segments};
  }

  void vote(const Tensor& rows, int64_t count, const Tensor& out) const {
    cast_votes<T>(scope_,
                  {const_data<T>(in_.segments), const_data<T>(in_.scores), n_,
                   const_data<int64_t>(problems_), &facts()->problems},
                  *request_.voting, nullptr, const_data<int64_t>(rows), count, out);
  }

  void write_one(const Tensor& rows, const Tensor* scores, const Tensor* count) const {
    const int64_t size = rows.size(0);
    if (size == 0 && count == nullptr) {
      return;
    }
    using Kernel = WriteOne<T>;
    launch(scope_, blocks_for(size, Kernel::kThreads), Kernel::kThreads, 0,
           Kernel{const_data<int64_t>(kept_rows_), const_data<T>(kept_scores_),
                  const_data<int64_t>(counts_), facts(), size, mutable_data<int64_t>(rows),
                  scores != nullptr ? mutable_data<T>(*scores) : nullptr,
                  count != nullptr ? mutable_data<int64_t>(*count) : nullptr});
  }

  // What was counted. If values were refused, the error that the CPU would have raised.
  NmsFacts read_facts() const {
    NmsFacts found;
    read_back(scope_, op_, facts(), sizeof(found), &found);
    if (found.refused != 0) {
      std::vector<T> segments(static_cast<size_t>(2 * n_));
      std::vector<T> scores(static_cast<size_t>(n_));
      read_back(scope_, op_, const_data<T>(in_.segments), segments.size() * sizeof(T),
                segments.data());
      read_back(scope_, op_, const_data<T>(in_.scores), scores.size() * sizeof(T), scores.data());
      if (request_.validate) {
        check_values(op_, "segments", segments.data(), n_);
      }
      check_ranks(op_, scores.data(), n_);
      check_finite_scores(op_, scores.data(), n_);
    }
    return found;
  }

  const char* op_;
  const DeviceScope& scope_;
  const Detections& in_;
  const GroupNumbers& numbers_;
  const NmsRequest& request_;
  NmsOptions<T> options_;
  // Videos have numbers below it, which are kept; without it they may be any.
  std::optional<int64_t> num_videos_;
  int64_t n_;
  Tensor facts_;            // NmsFacts
  Tensor order_;            // [N] rows by video, label, rank: the places
  Tensor starts_;           // [N + 1] places where problems begin
  Tensor ranked_segments_;  // [N, 2] by place
  Tensor ranked_scores_;    // [N] by place
  Tensor problems_;         // [N] by row
  Tensor videos_;           // [N] by row
  Tensor kept_rows_, kept_scores_, kept_segments_, counts_;  // a KeptList
  Tensor groups_, merged_, merged_scores_;                   // of merge()
};

}  // namespace tal_fast
