// SPDX-License-Identifier: Apache-2.0
// What the kernels of deformable attention read: tensors of any dtype, levels, and samples (given
// as locations and weights, or as the outputs of a projection).
//
// Compiled with -fmad=false, so that a position has the CPU's bits; where rounding once is welcome
// multiply_add says so.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/quotient.cuh"
#include "math/deform_attn.h"
#include "math/elementary.h"
#include "math/half.h"

namespace tal_fast {

TAL_FAST_DEVICE float multiply_add(float a, float b, float c) {
#if defined(__CUDACC__)
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}
TAL_FAST_DEVICE double multiply_add(double a, double b, double c) {
#if defined(__CUDACC__)
  return __fma_rn(a, b, c);
#else
  return a * b + c;
#endif
}

// locate() in fewer instructions, with its bits: there is one that rounds down, and a product with
// zero is NaN where the location is not finite.
TAL_FAST_DEVICE Position<float> position_at(float location, float length) {
#if defined(__CUDACC__)
  const float x = location * length - 0.5f;
  const float bounded = fminf(x > -1.0f ? x : -2.0f, length);
  const int tap = __float2int_rd(bounded);
  return {tap, __fmaf_rn(x, 0.0f, bounded - static_cast<float>(tap))};
#else
  return locate(location, length);
#endif
}
TAL_FAST_DEVICE Position<double> position_at(double location, double length) {
  return locate(location, length);
}

// e^x for x <= 0 or NaN, within 1 ulp. CUDA's own has a third of the instructions of the one that
// CPUs share, which is zero here below -87.
TAL_FAST_DEVICE float softmax_exp(float x) {
#if defined(__CUDACC__)
  return expf(x);
#else
  return x < -87.0f ? 0.0f : exp_of_nonpositive(x);
#endif
}
TAL_FAST_DEVICE double softmax_exp(double x) {
  return exp_of_nonpositive(x);
}

// x / y for a softmax (y is a sum of at least 1) and for offsets (y is the length of a level): the
// bits of `/` for normal quotients, without its tests; an infinity may become a NaN.
TAL_FAST_DEVICE float ratio(float x, float y) {
  return quotient(x, y, approximate_reciprocal(y));
}
TAL_FAST_DEVICE double ratio(double x, double y) {
  return x / y;
}

// ---- tensors of any dtype -----------------------------------------------------------------------

// Samples come in every combination of dtypes: a branch that all threads take alike costs less than
// a kernel for each, and a kernel that converts beforehand.
enum class Dtype : int { kFloat64, kFloat32, kFloat16, kBFloat16 };

template <typename C>
struct AnyInput {
  const void* data;
  Dtype dtype;

  TAL_FAST_DEVICE C load(int64_t i) const {
    switch (dtype) {
      case Dtype::kFloat64:
        return static_cast<C>(static_cast<const double*>(data)[i]);
      case Dtype::kFloat16:
        return static_cast<C>(widen(static_cast<const Half*>(data)[i]));
      case Dtype::kBFloat16:
        return static_cast<C>(widen(static_cast<const BFloat16*>(data)[i]));
      default:
        return static_cast<C>(static_cast<const float*>(data)[i]);
    }
  }
};

template <typename C>
struct AnyOutput {
  void* data;  // null: not wanted
  Dtype dtype;

  TAL_FAST_DEVICE void store(int64_t i, C value) const {
    switch (dtype) {
      case Dtype::kFloat64:
        static_cast<double*>(data)[i] = static_cast<double>(value);
        break;
      case Dtype::kFloat16:
        static_cast<Half*>(data)[i] = narrow<Half>(static_cast<float>(value));
        break;
      case Dtype::kBFloat16:
        static_cast<BFloat16*>(data)[i] = narrow<BFloat16>(static_cast<float>(value));
        break;
      default:
        static_cast<float*>(data)[i] = static_cast<float>(value);
    }
  }
};

// ---- levels -------------------------------------------------------------------------------------

struct Level {
  int64_t start;  // its first row among all rows
  int32_t length;
};

// Within the kernel's parameters, or in global memory where there are more than fit.
constexpr int kLevelsInside = 64;

struct Levels {
  const Level* table;  // [L] or null
  Level inside[kLevelsInside];

  TAL_FAST_DEVICE Level get(int l) const { return table != nullptr ? table[l] : inside[l]; }
};

// Brings a part of many levels from the host into a table, by way of the parameters.
struct DeformAttnLevelTable {
  static constexpr const char* kName = "deform_attn level table";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 8;

  Level part[kThreads];
  int count;
  Level* table;

  TAL_FAST_DEVICE void operator()() const {
    const int i = static_cast<int>(threadIdx.x);
    if (i < count) {
      table[i] = part[i];
    }
  }
};

// ---- sizes --------------------------------------------------------------------------------------

struct DeformAttnSizes {
  int64_t batch, rows, heads, channels, queries;
  int levels, points;
  int samples;  // levels * points, of one query and head

  // Of (b, q, h) among all of them.
  TAL_FAST_DEVICE int64_t unit(int64_t b, int64_t q, int64_t h) const {
    return (b * queries + q) * heads + h;
  }
};

// ---- samples ------------------------------------------------------------------------------------

// Of the logits of one query and head.
template <typename C>
struct Softmax {
  C highest;
  C sum;  // of exp(logit - highest)
};

// Where the samples of one query and head lie.
struct QuerySamples {
  int64_t offsets;    // of its first sample; of locations as well
  int64_t logits;     // of weights as well
  int64_t reference;  // of its first level
};

// Locations and weights.
template <typename C>
struct GivenSamples {
  static constexpr bool kFused = false;
  static constexpr bool kTyped = false;  // whether dtypes are known when compiled

  AnyInput<C> locations;  // [B, Q, H, L, P]
  AnyInput<C> weights;    // [B, Q, H, L, P]

  // What is read for a sample. A source first reads, all at once, and then computes: the latencies
  // of global memory do not add up.
  struct Raw {
    C location;
    C weight;
  };

  TAL_FAST_DEVICE QuerySamples query(const DeformAttnSizes& sizes, int64_t b, int64_t q,
                                     int64_t h) const {
    const int64_t first = sizes.unit(b, q, h) * sizes.samples;
    return {first, first, 0};
  }
  TAL_FAST_DEVICE Raw fetch(const QuerySamples& query, int k, int) const {
    return {locations.load(query.offsets + k), weights.load(query.logits + k)};
  }
  TAL_FAST_DEVICE Softmax<C> softmax(const DeformAttnSizes&, const QuerySamples&, const Raw&, int,
                                     int) const {
    return {};
  }
  TAL_FAST_DEVICE C location(const Raw& raw, C) const { return raw.location; }
  TAL_FAST_DEVICE C scale(const Raw&, C) const { return C(1); }
  TAL_FAST_DEVICE C weight(const Raw& raw, const Softmax<C>&) const { return raw.weight; }
};

// Offsets, logits and reference points. Strides are in elements; the dimensions after the query are
// contiguous, so that offsets and logits may be two halves of one matrix product.
template <typename C>
struct ProjectedSamples {
  static constexpr bool kFused = true;
  static constexpr bool kTyped = false;

  AnyInput<C> offsets;  // [B, Q, H, L, P]
  int64_t offsets_batch_stride, offsets_query_stride;
  AnyInput<C> logits;  // [B, Q, H, L, P]
  int64_t logits_batch_stride, logits_query_stride;
  AnyInput<C> reference;  // [B, Q, L, components]
  int64_t reference_batch_stride, reference_query_stride;
  int components;  // 1: centre; 2: centre and width
  C part;          // 0.5 / P

  struct Raw {
    C offset;
    C centre;
    C width;
    C logit;
  };

  TAL_FAST_DEVICE QuerySamples query(const DeformAttnSizes& sizes, int64_t b, int64_t q,
                                     int64_t h) const {
    const int64_t head = h * sizes.samples;
    return {b * offsets_batch_stride + q * offsets_query_stride + head,
            b * logits_batch_stride + q * logits_query_stride + head,
            b * reference_batch_stride + q * reference_query_stride};
  }

  TAL_FAST_DEVICE Raw fetch(const QuerySamples& query, int k, int l) const {
    const int64_t at = query.reference + int64_t{components} * l;
    return {offsets.load(query.offsets + k), reference.load(at),
            components == 2 ? reference.load(at + 1) : C(0), logits.load(query.logits + k)};
  }

  // `lanes` neighbours (a power of two) share the work; each has fetched the sample of its number.
  // Every lane of the warp takes part, and the order of the sum depends on `lanes` alone.
  TAL_FAST_DEVICE Softmax<C> softmax(const DeformAttnSizes& sizes, const QuerySamples& query,
                                     const Raw& own, int lane, int lanes) const {
    C highest = lane < sizes.samples ? own.logit : -static_cast<C>(INFINITY);
    for (int k = lane + lanes; k < sizes.samples; k += lanes) {
      const C x = logits.load(query.logits + k);
      // A NaN may get lost here: it comes back with the sum.
      highest = x > highest ? x : highest;
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      const C other = __shfl_xor_sync(kAllLanes, highest, offset);
      highest = other > highest ? other : highest;
    }
    C sum = lane < sizes.samples ? softmax_exp(own.logit - highest) : C(0);
    for (int k = lane + lanes; k < sizes.samples; k += lanes) {
      sum += softmax_exp(logits.load(query.logits + k) - highest);
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    return {highest, sum};
  }

  // By one thread.
  TAL_FAST_DEVICE Softmax<C> serial_softmax(const DeformAttnSizes& sizes,
                                            const QuerySamples& query) const {
    constexpr int kAhead = 4;  // loads in flight
    const C nothing = -static_cast<C>(INFINITY);
    C highest = nothing;
    C sum = C(0);
    C x[kAhead];
    const auto read = [&](int first) {
      for (int j = 0; j < kAhead; ++j) {
        x[j] = first + j < sizes.samples ? logits.load(query.logits + first + j) : nothing;
      }
    };
    for (int k = 0; k < sizes.samples; k += kAhead) {
      read(k);
      for (int j = 0; j < kAhead; ++j) {
        highest = x[j] > highest ? x[j] : highest;
      }
    }
    for (int k = 0; k < sizes.samples; k += kAhead) {
      read(k);
      for (int j = 0; j < kAhead; ++j) {
        sum += k + j < sizes.samples ? softmax_exp(x[j] - highest) : C(0);
      }
    }
    return {highest, sum};
  }

  TAL_FAST_DEVICE C location(const Raw& raw, C length) const {
    return components == 1 ? raw.centre + ratio(raw.offset, length)
                           : raw.centre + raw.offset * (raw.width * part);
  }

  // d location / d offset
  TAL_FAST_DEVICE C scale(const Raw& raw, C length) const {
    return components == 1 ? C(1) / length : raw.width * part;
  }

  TAL_FAST_DEVICE C weight(C logit, const Softmax<C>& softmax) const {
    return ratio(softmax_exp(logit - softmax.highest), softmax.sum);
  }
  TAL_FAST_DEVICE C weight(const Raw& raw, const Softmax<C>& softmax) const {
    return weight(raw.logit, softmax);
  }
};

}  // namespace tal_fast
