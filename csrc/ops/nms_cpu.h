// SPDX-License-Identifier: Apache-2.0
// All problems of a call, spread over threads: solve each, vote, merge those of a video, and put
// what is kept into tensors.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/carver.h"
#include "cpu/nms_problems.h"
#include "cpu/scratch.h"
#include "cpu/segment_voting.h"
#include "ops/detections.h"
#include "ops/nms.h"

namespace tal_fast {

// Segments per task: about 100 us of work, well above the cost of handing a range to a thread.
constexpr int64_t kNmsSegmentsPerTask = 4096;

// From this many segments on, the two halves of one problem's work go to two threads.
constexpr int64_t kNmsRunBothFrom = 16384;

inline void run_both(const std::function<void(int)>& step) {
  torch::stable::parallel_for(0, 2, 1, [&step](int64_t begin, int64_t end) {
    for (int64_t which = begin; which < end; ++which) {
      step(static_cast<int>(which));
    }
  });
}

// Runs body(begin, end) over the problems. One problem alone is not a parallel region: it may then
// use threads inside.
template <typename Body>
void for_problems(int64_t count, int64_t grain, const Body& body) {
  if (count == 1) {
    body(0, 1);
  } else {
    torch::stable::parallel_for(0, count, grain, body);
  }
}

// Which results are asked for besides the indices.
struct NmsWanted {
  bool scores;
  bool segments;
};

// What is known of every kept row, and which rows are kept: problem p has [starts[p], starts[p] +
// counts[p]) of `rows`.
template <typename T>
struct KeptRows {
  cpu::Scratch memory;
  int32_t* rows;                // [N]
  T* scores;                    // [N], by row
  T* segments;                  // [N, 2], by row; null without voting
  std::vector<int64_t> counts;  // [P], later [V]

  KeptRows(int64_t n, bool voting, int64_t problems)
      : memory(lay_out(nullptr, n, voting)), counts(static_cast<size_t>(problems)) {
    lay_out(memory.get(), n, voting);
  }

 private:
  size_t lay_out(std::byte* block, int64_t n, bool voting) {
    cpu::Carver carve(block);
    rows = carve.take<int32_t>(n);
    scores = carve.take<T>(n);
    segments = voting ? carve.take<T>(2 * n) : nullptr;
    return carve.used();
  }
};

template <typename T>
class NmsSolver {
 public:
  NmsSolver(const Detections& in, const cpu::NmsGroups& groups, const NmsRequest& request)
      : segments_(const_data<T>(in.segments)),
        scores_(const_data<T>(in.scores)),
        groups_(groups),
        starts_(groups.problem_starts),
        request_(request),
        options_(in_compute_type<T>(request.nms)),
        num_problems_(static_cast<int64_t>(starts_.size()) - 1),
        num_videos_(static_cast<int64_t>(groups.video_starts.size()) - 1),
        per_problem_(std::max<int64_t>(1, in.count / std::max<int64_t>(1, num_problems_))),
        kept_(in.count, request.voting.has_value(), num_problems_) {}

  void solve() {
    const int64_t grain = std::max<int64_t>(1, kNmsSegmentsPerTask / per_problem_);
    for_problems(num_problems_, grain,
                 [this](int64_t begin, int64_t end) { solve_range(begin, end); });
    const int64_t per_video =
        std::max<int64_t>(1, num_problems_ / std::max<int64_t>(1, num_videos_));
    for_problems(num_videos_, std::max<int64_t>(1, grain / per_video),
                 [this](int64_t begin, int64_t end) {
                   for (int64_t v = begin; v < end; ++v) {
                     merge_one(v);
                   }
                 });
  }

  // Indices [K], scores [K] and, with voting, refined segments [K, 2] of the kept detections. What
  // is not wanted is not allocated: an allocation costs as much as a small problem.
  std::tuple<Tensor, Tensor, Tensor> result(const Detections& in, ScalarType out_type,
                                            NmsWanted wanted) const {
    int64_t total = 0;
    for (int64_t v = 0; v < num_videos_; ++v) {
      total += kept_.counts[groups_.video_starts[v]];
    }
    Tensor indices = empty_beside(in.segments, {total}, ScalarType::Long);
    Tensor scores = wanted.scores ? empty_beside(in.scores, {total}) : in.scores;
    const bool voting = request_.voting.has_value();
    Tensor segments =
        wanted.segments ? empty_beside(in.segments, {voting ? total : 0, 2}) : in.segments;
    auto* out_indices = mutable_data<int64_t>(indices);
    T* out_scores = wanted.scores ? mutable_data<T>(scores) : nullptr;
    T* out_segments = wanted.segments && voting ? mutable_data<T>(segments) : nullptr;
    int64_t next = 0;
    for (int64_t v = 0; v < num_videos_; ++v) {
      const int64_t first = groups_.video_starts[v];
      const int32_t* rows = kept_.rows + starts_[first];
      for (int64_t i = 0; i < kept_.counts[first]; ++i, ++next) {
        const int64_t row = rows[i];
        out_indices[next] = row;
        if (out_scores != nullptr) {
          out_scores[next] = kept_.scores[row];
        }
        if (out_segments != nullptr) {
          out_segments[2 * next] = kept_.segments[2 * row];
          out_segments[2 * next + 1] = kept_.segments[2 * row + 1];
        }
      }
    }
    if (in.segments.scalar_type() != out_type) {
      scores = wanted.scores ? torch::stable::to(scores, out_type) : scores;
      segments = wanted.segments ? torch::stable::to(segments, out_type) : segments;
    }
    return {indices, scores, segments};
  }

 private:
  // What falls below the best of a video's earlier problems cannot be among its best, so it is left
  // out. How the problems are divided into ranges changes the work and not the result.
  void solve_range(int64_t begin, int64_t end) {
    int64_t largest = 0;
    for (int64_t p = begin; p < end; ++p) {
      largest = std::max(largest, starts_[p + 1] - starts_[p]);
    }
    const int64_t wanted = std::min(request_.max_segments, starts_[end] - starts_[begin]);
    cpu::Carver sizes(nullptr);
    sizes.take<T>(cpu::BestScores<T>::block_size(wanted));
    const cpu::Scratch scratch(sizes.used() + lay_out(nullptr, largest).bytes);
    cpu::BestScores<T> best(wanted, reinterpret_cast<T*>(scratch.get()));
    const std::vector<int64_t>& videos = groups_.video_starts;
    auto next_video = std::upper_bound(videos.begin(), videos.end(), begin);
    for (int64_t p = begin; p < end; ++p) {
      if (p == *next_video) {
        best.clear();
        ++next_video;
      }
      const Layout at = lay_out(scratch.get() + sizes.used(), starts_[p + 1] - starts_[p]);
      solve_one(p, best.floor(), at);
      // A video with no more segments than are wanted loses none.
      if (starts_[*next_video] - starts_[next_video[-1]] > request_.max_segments) {
        best.add(at.kept_scores, kept_.counts[p]);
      }
    }
  }

  struct Layout {
    T* kept_scores;
    T* kept_segments;  // [count, 2], as all below for voting only
    T* refined;        // [count, 2]
    std::byte* voting;
    std::byte* nms;
    size_t bytes;
  };

  Layout lay_out(std::byte* block, int64_t count) const {
    Layout at{};
    cpu::Carver carve(block);
    at.kept_scores = carve.take<T>(count);
    if (request_.voting.has_value()) {
      at.kept_segments = carve.take<T>(2 * count);
      at.refined = carve.take<T>(2 * count);
      at.voting = carve.take<std::byte>(
          static_cast<int64_t>(TAL_FAST_ISA_CALL(voting_scratch_bytes<T>)(count)));
    }
    at.nms = carve.take<std::byte>(
        static_cast<int64_t>(cpu::nms_scratch_bytes<T>(options_.method, count)));
    at.bytes = carve.used();
    return at;
  }

  void solve_one(int64_t p, T floor, const Layout& at) {
    const int64_t count = starts_[p + 1] - starts_[p];
    const cpu::NmsProblem<T> problem{segments_, scores_, groups_.rows.data() + starts_[p], count,
                                     floor};
    int32_t* rows = kept_.rows + starts_[p];
    int64_t num_kept = 0;
    const auto step = [&](int which) {
      if (which == 0) {
        num_kept = cpu::solve_nms(problem, options_, at.nms, run_both, rows, at.kept_scores);
      } else {
        TAL_FAST_ISA_CALL(voting_prepare<T>)(segments_, scores_, problem.rows, count, at.voting);
      }
    };
    if (!request_.voting.has_value()) {
      step(0);
    } else if (num_problems_ == 1 && count >= kNmsRunBothFrom) {
      run_both(step);
    } else {
      step(0);
      step(1);
    }
    kept_.counts[p] = num_kept;
    for (int64_t i = 0; i < num_kept; ++i) {
      kept_.scores[rows[i]] = at.kept_scores[i];
    }
    if (!request_.voting.has_value()) {
      return;
    }
    for (int64_t i = 0; i < num_kept; ++i) {
      at.kept_segments[2 * i] = segments_[2 * int64_t{rows[i]}];
      at.kept_segments[2 * i + 1] = segments_[2 * int64_t{rows[i]} + 1];
    }
    TAL_FAST_ISA_CALL(voting_apply<T>)(count, at.voting, *request_.voting, at.kept_segments, 0,
                                       num_kept, at.refined);
    for (int64_t i = 0; i < num_kept; ++i) {
      kept_.segments[2 * int64_t{rows[i]}] = at.refined[2 * i];
      kept_.segments[2 * int64_t{rows[i]} + 1] = at.refined[2 * i + 1];
    }
  }

  // Leaves a video's detections where its first problem begins.
  void merge_one(int64_t v) {
    const int64_t first = groups_.video_starts[v];
    const int64_t last = groups_.video_starts[v + 1];
    int32_t* rows = kept_.rows + starts_[first];
    int64_t filled = kept_.counts[first];
    for (int64_t p = first + 1; p < last; ++p) {
      std::copy_n(kept_.rows + starts_[p], kept_.counts[p], rows + filled);
      filled += kept_.counts[p];
    }
    if (last - first > 1) {  // one problem alone is in order already
      const cpu::Scratch scratch(cpu::merge_scratch_bytes<T>(filled));
      cpu::merge_by_score(kept_.scores, filled, request_.max_segments, scratch.get(), rows);
    }
    kept_.counts[first] = std::min(filled, request_.max_segments);
  }

  const T* segments_;
  const T* scores_;
  const cpu::NmsGroups& groups_;
  const std::vector<int64_t>& starts_;
  const NmsRequest& request_;
  NmsOptions<T> options_;
  int64_t num_problems_;
  int64_t num_videos_;
  int64_t per_problem_;
  KeptRows<T> kept_;
};

}  // namespace tal_fast
