// SPDX-License-Identifier: Apache-2.0
// What dropout checks and derives on every device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>

#include "ops/tensor_checks.h"

namespace tal_fast {

inline void check_dropout_like(const Tensor& tensor, const char* name, const Tensor& x) {
  bool same = tensor.dim() == x.dim() && tensor.scalar_type() == x.scalar_type();
  for (int64_t i = 0; same && i < x.dim(); ++i) {
    same = tensor.size(i) == x.size(i);
  }
  TAL_FAST_CHECK(same, "dropout: expected ", name, " of shape ", shape_string(x), " and dtype ",
                 dtype_string(x.scalar_type()), ", got ", shape_string(tensor), " and ",
                 dtype_string(tensor.scalar_type()));
}

// `other` is the residual, or in the backward the forward's result.
inline void check_dropout(const Tensor& x, double p, const std::optional<Tensor>& other,
                          const char* other_name, const std::optional<Tensor>& device_seed) {
  TAL_FAST_CHECK(p >= 0 && p <= 1, "dropout: expected p in [0, 1], got ", p);
  if (other) {
    check_dropout_like(*other, other_name, x);
  }
  TAL_FAST_CHECK(
      !device_seed || (device_seed->numel() == 1 && device_seed->scalar_type() == ScalarType::Long),
      "dropout: expected device_seed to be one int64, got ", shape_string(*device_seed), " ",
      dtype_string(device_seed->scalar_type()));
}

// An element whose 32 random bits are below this is dropped; 2^32 drops all.
inline uint64_t dropout_threshold(double p) {
  return static_cast<uint64_t>(std::llround(p * 4294967296.0));
}

// What the kept ones are multiplied by.
template <typename T>
ComputeType<T> dropout_scale(double p) {
  return static_cast<ComputeType<T>>(p < 1 ? 1.0 / (1.0 - p) : 0.0);
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

template <typename T>
const T* const_data(const std::optional<Tensor>& tensor) {
  return tensor ? const_data<T>(*tensor) : nullptr;
}

}  // namespace tal_fast
