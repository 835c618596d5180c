// SPDX-License-Identifier: Apache-2.0
#include "cpu/soft_nms_literal.h"

#include "cpu/simd.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

constexpr int kLanes = kFullLanes<float>;
using V = Vector<float, kLanes>;

inline SoftNmsEntries lay_out(int64_t count, Carver& carve) {
  SoftNmsEntries at{};
  at.start = carve.take<float>(count);
  at.end = carve.take<float>(count);
  at.length = carve.take<float>(count);
  at.score = carve.take<float>(count);
  at.iou = carve.take<float>(count);
  return at;
}

inline void move(const SoftNmsEntries& at, int64_t from, int64_t to) {
  at.start[to] = at.start[from];
  at.end[to] = at.end[from];
  at.length[to] = at.length[from];
  at.score[to] = at.score[from];
  at.rows[to] = at.rows[from];
}

template <typename T>
inline void exchange(T* array, int64_t a, int64_t b) {
  const T kept = array[a];
  array[a] = array[b];
  array[b] = kept;
}

// Position of the first of the highest scores in [begin, end). A NaN is never higher than another
// score, and none is higher than a NaN in front.
inline int64_t first_of_the_highest(const float* score, int64_t begin, int64_t end) {
  float best = score[begin];
  int64_t i = begin + 1;
  V lanes = broadcast<float, kLanes>(best);
  for (; i + kLanes <= end; i += kLanes) {
    const V next = load<kLanes>(score + i);
    lanes = lanes < next ? next : lanes;
  }
  for (int l = 0; l < kLanes; ++l) {
    best = best < lanes[l] ? lanes[l] : best;
  }
  for (; i < end; ++i) {
    best = best < score[i] ? score[i] : best;
  }
  if (best != best) {
    return begin;
  }
  i = begin;
  while (score[i] != best) {
    ++i;
  }
  return i;
}

// Leaves the IoU with the pick at position i of those in [begin, end).
inline void overlaps(const SoftNmsEntries& at, int64_t pick, int64_t begin, int64_t end) {
  const float s = at.start[pick];
  const float e = at.end[pick];
  const float own = at.length[pick];
  const V s_lanes = broadcast<float, kLanes>(s);
  const V e_lanes = broadcast<float, kLanes>(e);
  const V own_lanes = broadcast<float, kLanes>(own);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    store<kLanes>(at.iou + i, nms_iou<V>(s_lanes, e_lanes, own_lanes, load<kLanes>(at.start + i),
                                         load<kLanes>(at.end + i), load<kLanes>(at.length + i)));
  }
  for (; i < end; ++i) {
    at.iou[i] = nms_iou<float>(s, e, own, at.start[i], at.end[i], at.length[i]);
  }
}

template <NmsMethod kMethod>
inline float weight(float iou, const NmsOptions<float>& options, float from) {
  if constexpr (kMethod == NmsMethod::kHard) {
    return iou >= from ? 0.0f : 1.0f;
  } else if constexpr (kMethod == NmsMethod::kLinear) {
    return iou >= from ? 1.0f - iou : 1.0f;
  } else if constexpr (kMethod == NmsMethod::kGaussian) {
    return __builtin_expf(-(iou * iou) / options.sigma);
  } else {
    return iou >= from ? __builtin_expf(-(iou * iou) / options.sigma) : 1.0f;
  }
}

// Whether a whole vector of IoUs is 0, or one of them is not (a NaN is not).
inline bool all_zero(const float* iou) {
  uint32_t bits = 0;
  for (int l = 0; l < kLanes; ++l) {
    uint32_t lane;
    std::memcpy(&lane, iou + l, sizeof(lane));
    bits |= lane << 1;  // without the sign
  }
  return bits == 0;
}

template <NmsMethod kMethod>
int64_t solve(const SoftNmsEntries& at, int64_t count, const NmsOptions<float>& options,
              float* kept) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t best = first_of_the_highest(at.score, i, count);
    exchange(at.start, i, best);
    exchange(at.end, i, best);
    exchange(at.length, i, best);
    exchange(at.score, i, best);
    exchange(at.rows, i, best);
    kept[3 * i] = at.start[i];
    kept[3 * i + 1] = at.end[i];
    kept[3 * i + 2] = at.score[i];

    overlaps(at, i, i + 1, count);
    const float from = kMethod == NmsMethod::kLengthGaussian
                           ? options.t1 + options.t2 * at.length[i]
                           : options.iou_threshold;
    // Most do not overlap, and a factor of 1 changes no score.
    const bool skip_zeros = weight<kMethod>(0.0f, options, from) == 1.0f;
    int64_t p = i + 1;
    for (; p + kLanes <= count; p += kLanes) {
      if (skip_zeros && all_zero(at.iou + p)) {
        continue;
      }
      for (int64_t q = p; q < p + kLanes; ++q) {
        if (!skip_zeros || at.iou[q] != 0.0f) {
          at.score[q] *= weight<kMethod>(at.iou[q], options, from);
        }
      }
    }
    for (; p < count; ++p) {
      at.score[p] *= weight<kMethod>(at.iou[p], options, from);
    }

    int low = 0;
    for (int64_t q = i + 1; q < count; ++q) {
      low |= at.score[q] < options.min_score ? 1 : 0;
    }
    if (low == 0) {
      continue;
    }
    // The last one takes the place of each that is dropped, and is looked at there.
    for (int64_t q = i + 1; q < count;) {
      if (at.score[q] < options.min_score) {
        --count;
        move(at, count, q);
      } else {
        ++q;
      }
    }
  }
  return count;
}

}  // namespace

size_t soft_nms_literal_scratch_bytes(int64_t count) {
  Carver carve(nullptr);
  lay_out(count, carve);
  return carve.used();
}

int64_t soft_nms_literal(const float* segments, const float* scores, int64_t count,
                         const NmsOptions<float>& options, std::byte* scratch, int64_t* rows,
                         float* kept) {
  Carver carve(scratch);
  SoftNmsEntries at = lay_out(count, carve);
  at.rows = rows;
  for (int64_t i = 0; i < count; ++i) {
    at.start[i] = segments[2 * i];
    at.end[i] = segments[2 * i + 1];
    at.length[i] = (at.end[i] - at.start[i]) + options.length_eps;
    at.score[i] = scores[i];
    rows[i] = i;
  }
  switch (options.method) {
    case NmsMethod::kHard:
      return solve<NmsMethod::kHard>(at, count, options, kept);
    case NmsMethod::kLinear:
      return solve<NmsMethod::kLinear>(at, count, options, kept);
    case NmsMethod::kGaussian:
      return solve<NmsMethod::kGaussian>(at, count, options, kept);
    default:
      return solve<NmsMethod::kLengthGaussian>(at, count, options, kept);
  }
}

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
