// SPDX-License-Identifier: Apache-2.0
// The formulas of non-maximum suppression, in the order of operations that all its kernels share.
// Compile with -ffp-contract=off (nvcc: -fmad=false): then CPU and GPU give the same bits.
//
// In an anonymous namespace because each instruction set compiles its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "math/host_device.h"

namespace tal_fast {

enum class NmsMethod : int { kHard = 0, kLinear = 1, kGaussian = 2, kLengthGaussian = 3 };

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// What one problem is solved by. Options come in as double; the kernels have them in the type that
// they compute in. A default does nothing, so that an op names the options that it has.
template <typename Real>
struct NmsOptions {
  NmsMethod method = NmsMethod::kHard;
  bool acts_on_threshold = false;  // whether an IoU that equals the threshold acts
  bool spare_first = false;        // the very first pick is kept whatever its score
  Real iou_threshold = 0;          // hard, linear
  Real length_eps = 0;             // added to every length, >= 0
  Real sigma = 1;                  // Gaussian
  Real t1 = 0;  // length-Gaussian: the threshold is t1 + t2 * length of the picked one
  Real t2 = 0;
  Real min_score = -std::numeric_limits<Real>::infinity();  // what is below it is dropped, at once
                                                            // or after a decay
  int64_t max_segments = kNoLimit;                          // at most so many are kept
};

namespace {

// IoU of the segment [s, e], of length `own`, with another one; lengths have the epsilon added. V
// is a floating-point type or a vector of one. The operands of the comparisons are ordered as those
// of std::min and std::max in the usual C++ implementations, so that NaN coordinates behave as they
// do there.
template <typename V>
TAL_FAST_HD V nms_iou(V s, V e, V own, V start, V end, V length) {
  const V zero = {};
  const V left = s < start ? start : s;
  const V right = end < e ? end : e;
  const V overlap = right - left;
  const V inter = zero < overlap ? overlap : zero;
  return inter / (own + length - inter);
}

// 2^k for -1022 <= k <= 1023.
[[maybe_unused]] TAL_FAST_HD double power_of_two(int64_t k) {
  const uint64_t bits = static_cast<uint64_t>(k + 1023) << 52;
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// exp(x) for x <= 0, correctly rounded as far as tried (30 million values; the polynomial's error
// leaves room for one in about 100,000 to be the other neighbour): computed in double, so that
// every machine has the same bits. (The functions of C libraries and of CUDA differ in the last
// bit.)
[[maybe_unused]] TAL_FAST_HD float decay_exp(float x) {
  // Anything below -104 rounds to 0.
  const double y = x < -150.0f ? -150.0 : static_cast<double>(x);
  // Adding 1.5 * 2^52 rounds to an integer, which then stands in the lowest bits.
  const double shifted = y * 1.4426950408889634 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  const double r = y - n * 0.69314718055994531;
  // Taylor's polynomial of degree 10 on [-ln(2) / 2, ln(2) / 2], its terms in pairs.
  const double r2 = r * r;
  const double r4 = r2 * r2;
  const double low = (1.0 + r) + r2 * (1.0 / 2 + r * (1.0 / 6));
  const double middle = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
  const double high = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800);
  const double exp_r = low + r4 * (middle + r4 * high);
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits + 1023u) << 52;  // 2^n: all but the lowest 12 bits are shifted out
  double scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return static_cast<float>(exp_r * scale);
}

// exp(x) for x <= 0, within 1 ulp, subnormal results included.
[[maybe_unused]] TAL_FAST_HD double decay_exp(double x) {
  const double y = x < -750.0 ? -750.0 : x;
  const double shifted = y * 1.4426950408889634 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  // ln 2 in two parts: the product with the first one is exact.
  const double r = (y - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 87178291200.0;
  p = p * r + 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 1.0 / 2.0;
  const double exp_r = (p * (r * r) + r) + 1.0;
  // In two factors, for 2^n itself may be no normal number.
  const auto exponent = static_cast<int64_t>(n);
  const int64_t half = exponent / 2;
  return exp_r * power_of_two(half) * power_of_two(exponent - half);
}

constexpr int kNmsDropped = -1;  // the score of a segment that is out; others are not negative

// The score of the segment [s, e] after a pick that overlaps it, both of positive length;
// kNmsDropped if it falls below the least score.
template <NmsMethod kMethod, typename T>
TAL_FAST_HD T decayed_score(const NmsOptions<T>& options, bool acts_on_threshold, T score,
                            T pick_start, T pick_end, T pick_length, T s, T e, T length) {
  const T left = pick_start < s ? s : pick_start;
  const T right = e < pick_end ? e : pick_end;
  const T inter = right - left;
  const T iou = inter / (pick_length + length - inter);
  // An IoU that is NaN acts in no case.
  bool acts = iou > T(0);
  if constexpr (kMethod != NmsMethod::kGaussian) {
    const T from = kMethod == NmsMethod::kLinear ? options.iou_threshold
                                                 : options.t1 + options.t2 * pick_length;
    acts = acts_on_threshold ? iou >= from : iou > from;
  }
  if (!acts) {
    return score;
  }
  const T after = score * (kMethod == NmsMethod::kLinear ? T(1) - iou
                                                         : decay_exp(-(iou * iou) / options.sigma));
  // "Not at least" instead of "below": an infinite score times zero is NaN and goes as well.
  return !(after >= options.min_score) ? T(kNmsDropped) : after;
}

}  // namespace
}  // namespace tal_fast
