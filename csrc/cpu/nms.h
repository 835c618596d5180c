// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression of segments: hard, and soft with a linear or Gaussian decay.
//
// A *problem* is a set of segments that may suppress each other: those of one video and class. The
// input is split into problems once (nms_problems.cpp), each problem is solved on its own by any
// thread (nms_hard.cpp, nms_soft.cpp), and the results of a video's problems are merged. Every step
// has one defined order (score falling, then row rising), so the result depends neither on threads
// nor on the sort nor on the instruction set: the kernels are compiled without fused multiply-add.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "math/nms.h"

namespace tal_fast::cpu {

// Segments that may suppress each other. T is float or double, and all is computed in T.
template <typename T>
struct NmsProblem {
  const T* segments;    // [N, 2]
  const T* scores;      // [N], none of them NaN
  const int32_t* rows;  // [count], rising
  int64_t count;
  T floor;  // what would be kept with a lower score is not wanted
};

// The scores of the best detections that the problems of a video have had so far: once there are as
// many as are wanted, the least of them is the floor of the problems to come. It is brought up to
// date from time to time, so that a score costs O(1).
template <typename T>
class BestScores {
 public:
  static int64_t block_size(int64_t wanted) { return 3 * wanted; }

  BestScores(int64_t wanted, T* block) : wanted_(wanted), scores_(block) {}

  void clear();

  // At most `wanted` of them.
  void add(const T* scores, int64_t count);

  T floor() const { return floor_; }

 private:
  int64_t wanted_;
  int64_t count_ = 0;
  int64_t fresh_ = 0;  // of these, how many came after the floor was found
  T* scores_;
  T floor_ = -std::numeric_limits<T>::infinity();
};

struct NmsGroups {
  std::vector<int32_t> rows;            // [N], problem by problem, rising in each
  std::vector<int64_t> problem_starts;  // [P + 1] into rows
  std::vector<int64_t> video_starts;    // [V + 1] into problem_starts, videos rising
};

// Splits n < 2^31 segments by video and label, each in rising order. Either may be null: all the
// same.
NmsGroups split_into_problems(const int64_t* videos,  // [N] or null
                              const int64_t* labels,  // [N] or null
                              int64_t n);

// Runs step(0) and step(1), which do not depend on each other, at once or one after the other.
using RunBoth = std::function<void(const std::function<void(int)>& step)>;

// Bytes of scratch that a problem of `count` segments needs.
template <typename T>
size_t nms_scratch_bytes(NmsMethod method, int64_t count);

// Solves one problem and returns how many segments are kept. Segments may be anything, NaN and
// negative lengths included: the IoU formula decides.
template <typename T>
int64_t solve_nms(const NmsProblem<T>& problem, const NmsOptions<T>& options, std::byte* scratch,
                  const RunBoth& run_both,
                  int32_t* kept,    // [count] out: rows of the input, best first
                  T* kept_scores);  // [count] out: their scores, decayed if the method is soft

template <typename T>
size_t merge_scratch_bytes(int64_t count);

// Orders the rows of a video's detections by falling score, equal scores by rising row; the first
// `limit` are what counts.
template <typename T>
void merge_by_score(const T* scores,  // [N], by row
                    int64_t count, int64_t limit, std::byte* scratch,
                    int32_t* rows);  // [count] in, [min(count, limit)] out

// clang-format off
TAL_FAST_FOR_EACH_ISA(

template <typename T>
size_t hard_nms_scratch_bytes(int64_t count);

// The three steps of the hard method: `index` and `rank` do not depend on each other, `select`
// needs both. All are given the same arguments.
template <typename T>
void hard_nms_rank(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                   std::byte* scratch);

template <typename T>
void hard_nms_index(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                    std::byte* scratch);

template <typename T>
int64_t hard_nms_select(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                        std::byte* scratch,
                        int32_t* kept,     // [count] out
                        T* kept_scores);   // [count] out

template <typename T>
size_t soft_nms_scratch_bytes(int64_t count);

// Requires scores that are not negative.
template <typename T>
int64_t soft_nms_solve(const NmsProblem<T>& problem, const NmsOptions<T>& options,
                       std::byte* scratch,
                       int32_t* kept,     // [count] out
                       T* kept_scores);   // [count] out
)
// clang-format on

}  // namespace tal_fast::cpu
