// SPDX-License-Identifier: Apache-2.0
// What the ops share: error messages that say what was expected and what came, the one dispatch
// over the floating-point types and over the types that are computed in, and new tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "math/half.h"

// Throws std::runtime_error (RuntimeError in Python) with the concatenated arguments. Unlike
// STD_TORCH_CHECK it does not put a function name and a source line in front: the message is for
// the caller of the op, whose mistake it names.
#define TAL_FAST_CHECK(condition, ...)                                         \
  if (C10_UNLIKELY_OR_CONST(!(condition))) {                                   \
    throw std::runtime_error(                                                  \
        torch::headeronly::detail::stdTorchCheckMsgImpl("", "", __VA_ARGS__)); \
  }

namespace tal_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// "[2, 7]"
inline std::string shape_string(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text << (i == 0 ? "" : ", ") << tensor.size(i);
  }
  text << ']';
  return text.str();
}

// "float32" and not "Float": the name that Python users know.
inline std::string dtype_string(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    default:
      return torch::headeronly::toString(type);
  }
}

inline bool is_float(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// The dtype of ComputeType<T>: what values of `type` are computed in.
inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor to_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// torch::stable::contiguous and torch::stable::new_empty look their op up by name in every call.
// The two that follow do not: one of each takes about a microsecond off a call (measured on
// deform_attn_fused), which is a fifth of a small problem.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A new tensor, contiguous and not initialised, on the device of `like`.
inline Tensor empty_beside(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 1 ? sizes[i] : 1;
  }
  int32_t device_type;
  int32_t device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type,
      device_index, &handle));
  return Tensor(handle);
}

inline Tensor empty_beside(const Tensor& like, const std::vector<int64_t>& sizes) {
  return empty_beside(like, sizes, like.scalar_type());
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

// Contiguous, in the type that is computed in.
inline Tensor to_compute_type(const Tensor& tensor) {
  return as_contiguous(to_type(tensor, compute_type(tensor.scalar_type())));
}

inline void check_segments(const char* op, const char* argument, const Tensor& segments) {
  TAL_FAST_CHECK(segments.dim() == 2 && segments.size(1) == 2, op, ": expected ", argument,
                 " of shape [N, 2], got ", shape_string(segments));
  TAL_FAST_CHECK(is_float(segments.scalar_type()), op, ": expected ", argument,
                 " of dtype float64, float32, float16 or bfloat16, got ",
                 dtype_string(segments.scalar_type()));
}

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls `body(TypeTag<T>{})` with T = double, float, Half or BFloat16 (csrc/math/half.h: the
// kernels know nothing of torch). `op` and `argument` are for the error message.
template <typename Body>
void dispatch_float(ScalarType type, const char* op, const char* argument, Body&& body) {
  switch (type) {
    case ScalarType::Double:
      return body(TypeTag<double>{});
    case ScalarType::Float:
      return body(TypeTag<float>{});
    case ScalarType::Half:
      return body(TypeTag<Half>{});
    case ScalarType::BFloat16:
      return body(TypeTag<BFloat16>{});
    default:
      TAL_FAST_CHECK(false, op, ": expected ", argument,
                     " of dtype float64, float32, float16 or bfloat16, got ", dtype_string(type));
  }
}

// Calls `body(TypeTag<T>{})` with T = double for float64 and float for all others.
template <typename Body>
auto dispatch_compute_type(ScalarType type, Body&& body) {
  return compute_type(type) == ScalarType::Double ? body(TypeTag<double>{})
                                                  : body(TypeTag<float>{});
}

template <typename T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace tal_fast
