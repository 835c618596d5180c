// SPDX-License-Identifier: Apache-2.0
#include "error_analysis.h"

#include <algorithm>
#include <array>
#include <limits>

namespace tal_fast::evaluation {
namespace {

struct Nothing {};

constexpr int64_t kBlock = 4096;  // detections per part of work
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Sum of the envelope (or of the precisions themselves) over hits in rank order.
double area_of(const std::vector<double>& precision, bool interpolate) {
  double best = 0.0;
  double sum = 0.0;
  for (size_t n = precision.size(); n-- > 0;) {
    best = interpolate ? std::max(best, precision[n]) : precision[n];
    sum += best;
  }
  return sum;
}

}  // namespace

Kinds error_kinds(const Problem& p, const Result& result, double floor, int num_threads) {
  const int64_t size = p.detections.size;
  Kinds out;
  out.kind.resize(static_cast<size_t>(size * p.num_thresholds));
  out.best_overlap.assign(static_cast<size_t>(size), 0.0);
  out.best_instance.assign(static_cast<size_t>(size), -1);
  const Groups truth = group_by(p.ground_truth.video, p.ground_truth.size, p.num_videos);
  const auto run = [&](int64_t block, Nothing&) {
    for (int64_t i = block * kBlock; i < std::min((block + 1) * kBlock, size); ++i) {
      double best = 0.0;
      int64_t at = -1;
      bool own = false;
      const int64_t video = p.detections.video[i];
      for (int64_t n = 0; n < truth.size_of(video); ++n) {
        const int64_t g = truth.of(video)[n];
        const double o = overlap(p.rules, p.detections.start[i], p.detections.end[i],
                                 p.ground_truth.start[g], p.ground_truth.end[g]);
        const bool same = p.ground_truth.label[g] == p.detections.label[i];
        if (o > best || (o == best && at >= 0 && same && !own)) {
          best = o;
          at = g;
          own = same;
        }
      }
      out.best_overlap[i] = best;
      out.best_instance[i] = at;
      const bool removed = !result.ambiguous.empty() && result.ambiguous[i] != 0;
      for (int64_t k = 0; k < p.num_thresholds; ++k) {
        Kind kind = Kind::kBackground;
        if (result.hits[i] >> k & 1)
          kind = Kind::kHit;
        else if (removed)
          kind = Kind::kRemoved;
        else if (best >= p.thresholds[k])
          kind = own ? Kind::kDouble : Kind::kWrongLabel;
        else if (best >= floor)
          kind = own ? Kind::kLocalization : Kind::kConfusion;
        out.kind[k * size + i] = static_cast<uint8_t>(kind);
      }
    }
  };
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  for_each_part<Nothing>(blocks, choose_threads(num_threads, size, blocks), run);
  return out;
}

std::vector<double> ap_without(const Problem& p, const Result& result,
                               const std::vector<uint8_t>& kind) {
  const int64_t cells = p.num_classes * p.num_thresholds;
  std::vector<double> ap(static_cast<size_t>(kNumErrors * cells), kNaN);
  std::array<std::vector<double>, kNumErrors> precision;
  for (int64_t c = 0; c < p.num_classes; ++c) {
    if (result.num_ground_truth[c] == 0)
      continue;
    for (int64_t k = 0; k < p.num_thresholds; ++k) {
      std::array<int64_t, kNumErrors + 2> seen{};  // by kind
      for (auto& values : precision)
        values.clear();
      const uint8_t* const kinds = kind.data() + k * p.detections.size;
      int64_t wrong = 0;
      for (int64_t n = result.begin[c]; n < result.begin[c + 1]; ++n) {
        const uint8_t what = kinds[result.ranked[n]];
        ++seen[what];
        if (what != static_cast<uint8_t>(Kind::kHit)) {
          wrong += what != static_cast<uint8_t>(Kind::kRemoved);
          continue;
        }
        const auto hits = static_cast<double>(seen[0]);
        for (int64_t e = 0; e < kNumErrors; ++e)
          precision[e].push_back(hits / (hits + static_cast<double>(wrong - seen[e + 1])));
      }
      for (int64_t e = 0; e < kNumErrors; ++e)
        ap[e * cells + c * p.num_thresholds + k] = area_of(precision[e], p.rules.interpolate) /
                                                   static_cast<double>(result.num_ground_truth[c]);
    }
  }
  return ap;
}

std::vector<double> ap_of_bins(const Problem& p, const Result& result, const int64_t* bin,
                               int64_t num_bins, double normalizer) {
  const int64_t cells = p.num_classes * p.num_thresholds;
  std::vector<double> ap(static_cast<size_t>(num_bins * cells), kNaN);
  const Groups truth = group_by(p.ground_truth.label, p.ground_truth.size, p.num_classes);
  std::vector<int64_t> in_bin(static_cast<size_t>(num_bins));
  std::vector<int64_t> hits(static_cast<size_t>(num_bins));
  std::vector<std::vector<double>> precision(static_cast<size_t>(num_bins));
  for (int64_t c = 0; c < p.num_classes; ++c) {
    std::fill(in_bin.begin(), in_bin.end(), 0);
    for (int64_t n = 0; n < truth.size_of(c); ++n) {
      const int64_t b = bin[truth.of(c)[n]];
      if (b >= 0)
        ++in_bin[b];
    }
    for (int64_t k = 0; k < p.num_thresholds; ++k) {
      std::fill(hits.begin(), hits.end(), 0);
      for (auto& values : precision)
        values.clear();
      const int64_t* const matched = result.matched.data() + k * p.detections.size;
      int64_t wrong = 0;
      for (int64_t n = result.begin[c]; n < result.begin[c + 1]; ++n) {
        const int64_t i = result.ranked[n];
        if (matched[i] < 0) {
          wrong += result.ambiguous.empty() || result.ambiguous[i] == 0;
          continue;
        }
        const int64_t b = bin[matched[i]];
        if (b < 0)
          continue;
        ++hits[b];
        const double scaled =
            static_cast<double>(hits[b]) / static_cast<double>(in_bin[b]) * normalizer;
        precision[b].push_back(scaled / (scaled + static_cast<double>(wrong)));
      }
      for (int64_t b = 0; b < num_bins; ++b) {
        if (in_bin[b] > 0)
          ap[b * cells + c * p.num_thresholds + k] =
              area_of(precision[b], p.rules.interpolate) / static_cast<double>(in_bin[b]);
      }
    }
  }
  return ap;
}

}  // namespace tal_fast::evaluation
