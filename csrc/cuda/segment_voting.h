// SPDX-License-Identifier: Apache-2.0
// The launchers of segment_voting.cuh, for segment_voting and for batched_nms.
#pragma once

#include "cuda/launch.h"
#include "cuda/row_order.h"
#include "cuda/segment_voting.cuh"

namespace tal_fast {

// Who has a vote: `problems` and `num_problems` null where all are of one problem.
template <typename T>
struct VotingCall {
  const T* segments;  // [N, 2]
  const T* scores;    // [N]
  int64_t n;
  const int64_t* problems;      // [N] by row, or null
  const int32_t* num_problems;  // [], or null
};

// The segments kept[K, 2], or, with kept null, those of `rows`, each replaced by the mean of its
// voters.
template <typename T>
void cast_votes(const DeviceScope& scope, const VotingCall<T>& call, const VotingOptions& options,
                const T* kept, const int64_t* rows, int64_t count, const Tensor& out) {
  if (count == 0) {
    return;
  }
  const int64_t n = call.n;
  const ScalarType type = out.scalar_type();
  const int64_t most_problems = call.problems != nullptr ? n : 1;
  const Tensor starts = allocate(out, {n}, type);
  const Tensor ends = allocate(out, {n}, type);
  const Tensor scores = allocate(out, {n}, type);
  const Tensor begins = allocate(out, {most_problems + 1}, ScalarType::Long);
  const Tensor longest = allocate(out, {std::max<int64_t>(most_problems, 1)}, ScalarType::Double);
  const Voters<T> voters = {mutable_data<T>(starts), mutable_data<T>(ends), mutable_data<T>(scores),
                            mutable_data<int64_t>(begins), mutable_data<double>(longest)};
  using Keys = VoterKeys<T>;
  using Key = decltype(rising_key(T(0)));
  const auto blocks = [](int64_t of, int threads) {
    return dim3(static_cast<unsigned>(ceil_div(std::max<int64_t>(of, 1), threads)));
  };
  const Tensor groups = allocate(out, {n}, ScalarType::Long);
  Tensor order = groups;
  if (n > 0) {
    const Tensor keys = allocate(out, {n}, sizeof(Key) == 4 ? ScalarType::Int : ScalarType::Long);
    launch(scope, blocks(n, Keys::kThreads), Keys::kThreads, 0,
           Keys{call.segments, call.problems, n, mutable_data<int64_t>(groups),
                mutable_data<Key>(keys)});
    // Who has no vote is of the group behind the last problem.
    order = sort_rows(scope, {const_data<int64_t>(groups), most_problems + 1}, keys);
    using Arrange = ArrangeVoters<T>;
    launch(scope, blocks(n, Arrange::kThreads), Arrange::kThreads, 0,
           Arrange{call.segments, call.scores, const_data<int64_t>(order), n, voters});
  }
  using Find = FindVoters<T>;
  const int64_t find_blocks = std::min<int64_t>(
      std::max<int64_t>(most_problems, 1), int64_t{scope.limits().multiprocessors} * Find::kBlocks);
  launch(
      scope, dim3(static_cast<unsigned>(find_blocks)), Find::kThreads,
      SharedSize().take<T>(Find::kThreads / kWarp).bytes(),
      Find{const_data<int64_t>(groups), const_data<int64_t>(order), n, call.num_problems, voters});
  const auto cast = [&](auto kernel) {
    using Cast = decltype(kernel);
    launch(scope, blocks(count, Cast::kPerBlock), Cast::kThreads, 0,
           Cast{kept, rows, call.segments, call.problems, voters,
                static_cast<T>(options.iou_threshold), count, mutable_data<T>(out)});
  };
  if (options.weight == VotingWeight::kScore) {
    cast(CastVotes<VotingWeight::kScore, T>{});
  } else {
    cast(CastVotes<VotingWeight::kScoreIou, T>{});
  }
}

}  // namespace tal_fast
