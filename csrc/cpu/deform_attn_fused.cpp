// SPDX-License-Identifier: Apache-2.0
#include "cpu/deform_attn_fused.h"

#include "cpu/simd.h"
#include "cpu/simd_exp.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// ---- softmax over groups of lanes ---------------------------------------------------------------

// Softmax of `count` logits in groups of kGroup.
template <typename T, int kGroup, typename C = ComputeType<T>>
void softmax_lanes(const T* logits, int64_t count, C* weights) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const auto softmax = [](V x) {
    const V highest = over_group<C, kLanes, kGroup>(x, [](V a, V b) { return a > b ? a : b; });
    const V e = exp_nonpositive<kLanes>(x - highest);
    return e / group_sum<C, kLanes, kGroup>(e);
  };
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    store<kLanes>(weights + k, softmax(load<kLanes>(logits + k)));
  }
  if (k < count) {
    store_partial<kLanes>(weights + k, softmax(load_partial<kLanes>(logits + k, count - k)),
                          count - k);
  }
}

// The same for groups of any size.
template <typename T, typename C = ComputeType<T>>
void softmax_loop(const T* logits, int64_t count, int64_t group, C* weights) {
  constexpr int kLanes = kFullLanes<C>;
  for (int64_t first = 0; first < count; first += group) {
    C highest = widen(logits[first]);
    for (int64_t k = first + 1; k < first + group; ++k) {
      const C x = widen(logits[k]);
      highest = x > highest ? x : highest;
    }
    C sum = 0;
    for (int64_t k = first; k < first + group; k += kLanes) {
      const int64_t rest = first + group - k;
      if (rest >= kLanes) {
        store<kLanes>(weights + k, exp_nonpositive<kLanes>(load<kLanes>(logits + k) - highest));
      } else {
        const auto x = load_partial<kLanes>(logits + k, rest) - highest;
        store_partial<kLanes>(weights + k, exp_nonpositive<kLanes>(x), rest);
      }
    }
    for (int64_t k = first; k < first + group; ++k) {
      sum += weights[k];
    }
    for (int64_t k = first; k < first + group; ++k) {
      weights[k] /= sum;
    }
  }
}

template <typename T, typename C = ComputeType<T>>
void softmax(const T* logits, int64_t count, int64_t group, C* weights) {
  if (group == 4 && kFullLanes<C> >= 4) {
    softmax_lanes<T, kFullLanes<C> >= 4 ? 4 : 1>(logits, count, weights);
  } else {
    softmax_loop(logits, count, group, weights);
  }
}

// logit = weight * (grad - sum over the group of weight * grad)
template <typename T, int kGroup, typename C = ComputeType<T>>
void softmax_backward_lanes(const C* weights, const C* grad, int64_t count, T* grad_logits) {
  constexpr int kLanes = kFullLanes<C>;
  using V = Vector<C, kLanes>;
  const auto backward = [](V w, V g) { return w * (g - group_sum<C, kLanes, kGroup>(w * g)); };
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    store<kLanes>(grad_logits + k, backward(load<kLanes>(weights + k), load<kLanes>(grad + k)));
  }
  if (k < count) {
    store_partial<kLanes>(grad_logits + k,
                          backward(load_partial<kLanes>(weights + k, count - k),
                                   load_partial<kLanes>(grad + k, count - k)),
                          count - k);
  }
}

template <typename T, typename C = ComputeType<T>>
void softmax_backward(const C* weights, const C* grad, int64_t count, int64_t group,
                      T* grad_logits) {
  if (group == 4 && kFullLanes<C> >= 4) {
    softmax_backward_lanes<T, kFullLanes<C> >= 4 ? 4 : 1>(weights, grad, count, grad_logits);
    return;
  }
  for (int64_t first = 0; first < count; first += group) {
    C dot = 0;
    for (int64_t k = first; k < first + group; ++k) {
      dot += weights[k] * grad[k];
    }
    for (int64_t k = first; k < first + group; ++k) {
      grad_logits[k] = narrow<T>(weights[k] * (grad[k] - dot));
    }
  }
}

// ---- locations ----------------------------------------------------------------------------------

// Calls body(k, level) for the first sample k of each run of P samples of a query.
template <typename Body>
inline void for_each_run(const DeformAttnShape& shape, Body&& body) {
  int64_t k = 0;
  for (int64_t h = 0; h < shape.heads; ++h) {
    for (int64_t l = 0; l < shape.levels; ++l, k += shape.points) {
      body(k, l);
    }
  }
}

template <typename T, typename C = ComputeType<T>>
void locate_query(const DeformAttnShape& shape, const T* offsets, const C* reference,
                  int64_t components, C* locations) {
  const int64_t points = shape.points;
  if (components == 1) {
    for_each_run(shape, [&](int64_t k, int64_t l) {
      const C rows = static_cast<C>(shape.level_lengths[l]);
      for (int64_t p = k; p < k + points; ++p) {
        locations[p] = reference[l] + widen(offsets[p]) / rows;
      }
    });
  } else {
    const C part = static_cast<C>(0.5 / static_cast<double>(points));
    for_each_run(shape, [&](int64_t k, int64_t l) {
      const C scale = reference[2 * l + 1] * part;
      for (int64_t p = k; p < k + points; ++p) {
        locations[p] = reference[2 * l] + widen(offsets[p]) * scale;
      }
    });
  }
}

template <typename T, typename C = ComputeType<T>>
void reference_gradient(const DeformAttnShape& shape, const T* offsets, const C* grad_locations,
                        int64_t components, C* grad_reference) {
  const C part = static_cast<C>(0.5 / static_cast<double>(shape.points));
  for (int64_t i = 0; i < shape.levels * components; ++i) {
    grad_reference[i] = 0;
  }
  for_each_run(shape, [&](int64_t k, int64_t l) {
    C by_centre = 0;
    C by_width = 0;
    for (int64_t p = k; p < k + shape.points; ++p) {
      by_centre += grad_locations[p];
      by_width += grad_locations[p] * (widen(offsets[p]) * part);
    }
    grad_reference[l * components] += by_centre;
    if (components == 2) {
      grad_reference[l * 2 + 1] += by_width;
    }
  });
}

template <typename T, typename C = ComputeType<T>>
void offset_gradient(const DeformAttnShape& shape, const C* reference, const C* grad_locations,
                     int64_t components, T* grad_offsets) {
  const C part = static_cast<C>(0.5 / static_cast<double>(shape.points));
  for_each_run(shape, [&](int64_t k, int64_t l) {
    const C rows = static_cast<C>(shape.level_lengths[l]);
    const C scale = components == 1 ? C(1) / rows : reference[2 * l + 1] * part;
    for (int64_t p = k; p < k + shape.points; ++p) {
      grad_offsets[p] = narrow<T>(grad_locations[p] * scale);
    }
  });
}

}  // namespace

template <typename T>
void deform_attn_prepare(const DeformAttnShape& shape, const DeformAttnProjection<T>& projection,
                         int64_t unit_begin, int64_t unit_end, ComputeType<T>* locations,
                         ComputeType<T>* weights) {
  const int64_t samples = shape.samples_per_query();
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t b = unit / shape.queries;
    const int64_t q = unit % shape.queries;
    locate_query(shape,
                 projection.offsets + b * projection.offsets_batch_stride +
                     q * projection.offsets_query_stride,
                 projection.reference + b * projection.reference_batch_stride +
                     q * projection.reference_query_stride,
                 projection.components, locations);
    softmax(
        projection.logits + b * projection.logits_batch_stride + q * projection.logits_query_stride,
        samples, shape.levels * shape.points, weights);
    locations += samples;
    weights += samples;
  }
}

template <typename T>
void deform_attn_finish(const DeformAttnShape& shape, const DeformAttnProjection<T>& projection,
                        int64_t unit_begin, int64_t unit_end, const ComputeType<T>* weights,
                        const ComputeType<T>* grad_locations, const ComputeType<T>* grad_weights,
                        T* grad_offsets, T* grad_logits, ComputeType<T>* grad_reference) {
  const int64_t samples = shape.samples_per_query();
  for (int64_t unit = unit_begin; unit < unit_end; ++unit) {
    const int64_t b = unit / shape.queries;
    const int64_t q = unit % shape.queries;
    const int64_t first = unit * samples;
    if (grad_reference != nullptr) {
      reference_gradient(shape,
                         projection.offsets + b * projection.offsets_batch_stride +
                             q * projection.offsets_query_stride,
                         grad_locations + first, projection.components,
                         grad_reference + unit * shape.levels * projection.components);
    }
    if (grad_offsets != nullptr) {
      offset_gradient(shape,
                      projection.reference + b * projection.reference_batch_stride +
                          q * projection.reference_query_stride,
                      grad_locations + first, projection.components, grad_offsets + first);
      softmax_backward(weights + first, grad_weights + first, samples, shape.levels * shape.points,
                       grad_logits + first);
    }
  }
}

#define TAL_FAST_INSTANTIATE(T)                                                                \
  template void deform_attn_prepare<T>(const DeformAttnShape&, const DeformAttnProjection<T>&, \
                                       int64_t, int64_t, ComputeType<T>*, ComputeType<T>*);    \
  template void deform_attn_finish<T>(const DeformAttnShape&, const DeformAttnProjection<T>&,  \
                                      int64_t, int64_t, const ComputeType<T>*,                 \
                                      const ComputeType<T>*, const ComputeType<T>*, T*, T*,    \
                                      ComputeType<T>*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
