// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "average_precision.h"

// The bootstrap over videos. Matching happens within a video, so drawing videos again changes no
// hit: a replicate only counts the contributions of each video as often as it was drawn.
namespace tal_fast::evaluation {

// How often replicate `replicate` draws each video, [num_videos]; depends on nothing but its
// arguments, so two results over the same videos are resampled in the same way.
std::vector<int64_t> draw_videos(int64_t num_videos, uint64_t seed, int64_t replicate);

// Returns AP, [replicates, num_classes, num_thresholds], NaN where a replicate has no instance of
// the class. The copies of a video are videos of their own, listed one after the other at each of
// their detections. The same bits for every number of threads.
std::vector<double> resample(const Problem& problem, const Result& result, int64_t replicates,
                             uint64_t seed, int num_threads = 0);

}  // namespace tal_fast::evaluation
