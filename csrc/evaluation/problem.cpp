// SPDX-License-Identifier: Apache-2.0
#include "problem.h"

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

namespace tal_fast::evaluation {
namespace {

// Below this many detections per thread, starting threads costs more than they save.
constexpr int64_t kDetectionsPerThread = 20'000;
// Fewer are sorted by comparison: the counters of a radix sort cost as much as these.
constexpr int64_t kRadixSize = 192;

[[noreturn]] void fail(const char* array, int64_t index, const std::string& why) {
  throw std::invalid_argument(std::string(array) + " " + std::to_string(index) + ": " + why);
}

void check_index(const char* array, int64_t i, const char* what, int64_t value, int64_t limit) {
  if (value < 0 || value >= limit) {
    fail(array, i,
         std::string("expected a ") + what + " in [0, " + std::to_string(limit) + "), got " +
             std::to_string(value));
  }
}

// Rises where the score falls; equal for equal scores.
uint64_t falling_key(double score) {
  const double same_zero = score + 0.0;  // -0.0 becomes 0.0
  uint64_t bits;
  std::memcpy(&bits, &same_zero, sizeof(bits));
  const uint64_t rising = bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
  return ~rising;
}

}  // namespace

void check(const Problem& p) {
  if (p.num_videos < 0 || p.num_classes < 0) {
    throw std::invalid_argument("expected num_videos and num_classes >= 0, got " +
                                std::to_string(p.num_videos) + " and " +
                                std::to_string(p.num_classes));
  }
  if (p.num_thresholds < 1 || p.num_thresholds > kMaxThresholds) {
    throw std::invalid_argument("expected 1 to " + std::to_string(kMaxThresholds) +
                                " thresholds, got " + std::to_string(p.num_thresholds));
  }
  for (int64_t k = 0; k < p.num_thresholds; ++k) {
    // Written so that NaN fails too.
    if (!(p.thresholds[k] > 0.0 && p.thresholds[k] <= 1.0)) {
      fail("threshold", k, "expected 0 < t <= 1, got " + std::to_string(p.thresholds[k]));
    }
  }
  const GroundTruth& g = p.ground_truth;
  for (int64_t i = 0; i < g.size; ++i) {
    check_index("ground truth", i, "video", g.video[i], p.num_videos);
    check_index("ground truth", i, "label", g.label[i], p.num_classes);
  }
  const Regions& a = p.ambiguous;
  for (int64_t i = 0; i < a.size; ++i) {
    check_index("ambiguous region", i, "video", a.video[i], p.num_videos);
  }
  const Detections& d = p.detections;
  for (int64_t i = 0; i < d.size; ++i) {
    check_index("detection", i, "video", d.video[i], p.num_videos);
    check_index("detection", i, "label", d.label[i], p.num_classes);
  }
  if (p.order != nullptr) {
    std::vector<bool> seen(static_cast<size_t>(d.size), false);
    for (int64_t i = 0; i < d.size; ++i) {
      check_index("order", i, "detection", p.order[i], d.size);
      if (seen[p.order[i]])
        fail("order", i, "expected each detection once, got " + std::to_string(p.order[i]));
      seen[p.order[i]] = true;
    }
  }
}

Groups group_by(const int64_t* key, int64_t size, int64_t num_groups, const int64_t* order) {
  Groups groups;
  groups.begin.assign(static_cast<size_t>(num_groups) + 1, 0);
  groups.index.resize(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i)
    ++groups.begin[key[i] + 1];
  for (int64_t g = 0; g < num_groups; ++g)
    groups.begin[g + 1] += groups.begin[g];
  std::vector<int64_t> next(groups.begin.begin(), groups.begin.end() - 1);
  for (int64_t n = 0; n < size; ++n) {
    const int64_t i = order == nullptr ? n : order[n];
    groups.index[next[key[i]]++] = i;
  }
  return groups;
}

const std::vector<Ranker::Entry>& Ranker::rank(const double* score, const int64_t* index,
                                               int64_t size) {
  entries_.resize(static_cast<size_t>(size));
  for (int64_t n = 0; n < size; ++n)
    entries_[n] = {falling_key(score[index[n]]), n};
  if (size < kRadixSize) {
    std::stable_sort(entries_.begin(), entries_.end(),
                     [](const Entry& a, const Entry& b) { return a.key < b.key; });
    return entries_;
  }
  // Stable radix sort by bytes, least significant first; bytes that never differ are skipped.
  constexpr int kBytes = 8;
  std::array<std::array<int64_t, 256>, kBytes> count{};
  for (const Entry& entry : entries_) {
    for (int byte = 0; byte < kBytes; ++byte)
      ++count[byte][entry.key >> (8 * byte) & 255];
  }
  spare_.resize(entries_.size());
  for (int byte = 0; byte < kBytes; ++byte) {
    if (count[byte][entries_[0].key >> (8 * byte) & 255] == size)
      continue;
    int64_t at = 0;
    for (int64_t& n : count[byte]) {
      const int64_t begin = at;
      at += n;
      n = begin;
    }
    for (const Entry& entry : entries_)
      spare_[count[byte][entry.key >> (8 * byte) & 255]++] = entry;
    entries_.swap(spare_);
  }
  return entries_;
}

int choose_threads(int wanted, int64_t work, int64_t parts) {
  int64_t threads = wanted;
  if (threads <= 0) {
    const int64_t available = std::max<int64_t>(std::thread::hardware_concurrency(), 1);
    threads = std::min(available, work / kDetectionsPerThread + 1);
  }
  return static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(parts, 1)));
}

}  // namespace tal_fast::evaluation
