// SPDX-License-Identifier: Apache-2.0
#include "resampling.h"

#include <algorithm>
#include <limits>

namespace tal_fast::evaluation {
namespace {

// Steele, Lea, Flood (2014): SplitMix64, one independent stream per replicate.
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t z = (state += 0x9E3779B97F4A7C15U);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }

  // In [0, limit): the high half of a product, taken from 32 random bits per draw of a limit that
  // is below 2^32 by far.
  int64_t below(uint64_t limit) { return static_cast<int64_t>((next() >> 32) * limit >> 32); }
};

// What one class contributes, by rank; made once for all replicates.
struct Contributions {
  struct Hit {
    int64_t rank;
    int64_t video;
    bool ambiguous;
  };
  std::vector<int64_t> video;          // of each detection
  std::vector<uint8_t> ambiguous;      // of each detection; empty without regions
  std::vector<int64_t> truth_video;    // of each instance
  std::vector<std::vector<Hit>> hits;  // [num_thresholds], by rank
};

struct Scratch {
  std::vector<int64_t> listed;  // detections up to each rank, without the ambiguous ones
};

// With weights of the videos: the area of average_precision.h over the copies.
double weighted_area(const std::vector<Contributions::Hit>& hits, const std::vector<int64_t>& drawn,
                     const std::vector<int64_t>& listed, int64_t num_truth, bool interpolate) {
  int64_t true_so_far = 0;
  int64_t extra = 0;  // ambiguous ones count where they hit
  for (const auto& hit : hits) {
    true_so_far += drawn[hit.video];
    extra += hit.ambiguous ? drawn[hit.video] : 0;
  }
  double best = 0.0;
  double sum = 0.0;
  for (size_t n = hits.size(); n-- > 0;) {
    const int64_t copies = drawn[hits[n].video];
    if (copies == 0)
      continue;
    const int64_t rank = listed[hits[n].rank] + extra;  // of the last copy, from 1
    if (interpolate) {
      // Precision rises over the copies of a hit, so the last copy decides for all of them.
      best = std::max(best, static_cast<double>(true_so_far) / static_cast<double>(rank));
      sum += best * static_cast<double>(copies);
    } else {
      for (int64_t back = 0; back < copies; ++back)
        sum += static_cast<double>(true_so_far - back) / static_cast<double>(rank - back);
    }
    true_so_far -= copies;
    extra -= hits[n].ambiguous ? copies : 0;
  }
  return sum / static_cast<double>(num_truth);
}

}  // namespace

std::vector<int64_t> draw_videos(int64_t num_videos, uint64_t seed, int64_t replicate) {
  std::vector<int64_t> drawn(static_cast<size_t>(num_videos), 0);
  Random random{seed * 0xD1342543DE82EF95U + static_cast<uint64_t>(replicate)};
  random.state = random.next();
  for (int64_t n = 0; n < num_videos; ++n)
    ++drawn[random.below(static_cast<uint64_t>(num_videos))];
  return drawn;
}

std::vector<double> resample(const Problem& p, const Result& result, int64_t replicates,
                             uint64_t seed, int num_threads) {
  const int64_t cells = p.num_classes * p.num_thresholds;
  std::vector<double> ap(static_cast<size_t>(replicates * cells),
                         std::numeric_limits<double>::quiet_NaN());
  const Groups truth = group_by(p.ground_truth.label, p.ground_truth.size, p.num_classes);
  std::vector<Contributions> classes(static_cast<size_t>(p.num_classes));
  for (int64_t c = 0; c < p.num_classes; ++c) {
    Contributions& own = classes[c];
    own.hits.resize(static_cast<size_t>(p.num_thresholds));
    for (int64_t n = 0; n < truth.size_of(c); ++n)
      own.truth_video.push_back(p.ground_truth.video[truth.of(c)[n]]);
    for (int64_t n = result.begin[c]; n < result.begin[c + 1]; ++n) {
      const int64_t i = result.ranked[n];
      const bool ambiguous = !result.ambiguous.empty() && result.ambiguous[i] != 0;
      own.video.push_back(p.detections.video[i]);
      if (!result.ambiguous.empty())
        own.ambiguous.push_back(result.ambiguous[i]);
      for (int64_t k = 0; k < p.num_thresholds; ++k) {
        if (result.hits[i] >> k & 1)
          own.hits[k].push_back({n - result.begin[c], p.detections.video[i], ambiguous});
      }
    }
  }
  const auto run = [&](int64_t replicate, Scratch& s) {
    const std::vector<int64_t> drawn = draw_videos(p.num_videos, seed, replicate);
    for (int64_t c = 0; c < p.num_classes; ++c) {
      const Contributions& own = classes[c];
      int64_t num_truth = 0;
      for (const int64_t video : own.truth_video)
        num_truth += drawn[video];
      if (num_truth == 0)
        continue;
      s.listed.resize(own.video.size());
      int64_t listed = 0;
      for (size_t n = 0; n < own.video.size(); ++n) {
        listed += own.ambiguous.empty() || own.ambiguous[n] == 0 ? drawn[own.video[n]] : 0;
        s.listed[n] = listed;
      }
      for (int64_t k = 0; k < p.num_thresholds; ++k)
        ap[replicate * cells + c * p.num_thresholds + k] =
            weighted_area(own.hits[k], drawn, s.listed, num_truth, p.rules.interpolate);
    }
  };
  for_each_part<Scratch>(
      replicates, choose_threads(num_threads, replicates * p.detections.size, replicates), run);
  return ap;
}

}  // namespace tal_fast::evaluation
