// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "problem.h"

// What recall needs: how far down a video's list of detections one has to go for each instance.
namespace tal_fast::evaluation {

// Returns [ground truth, num_thresholds]: the rank, from 0, of the first detection of the
// instance's video whose tIoU reaches the threshold (>=; NaN does not), or `kNever`. A detection
// may serve many instances. by_class: only detections of the instance's class are ranked and looked
// at.
constexpr int64_t kNever = INT64_MAX;
std::vector<int64_t> first_hits(const Problem& problem, bool by_class, int num_threads = 0);

}  // namespace tal_fast::evaluation
