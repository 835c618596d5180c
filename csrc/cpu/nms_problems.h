// SPDX-License-Identifier: Apache-2.0
// What is around the kernels of non-maximum suppression (cpu/nms.h): the split into problems, the
// choice of kernel, the merge.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/nms.h"

namespace tal_fast::cpu {

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

}  // namespace tal_fast::cpu
