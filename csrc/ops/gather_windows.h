// SPDX-License-Identifier: Apache-2.0
// What gather_windows checks on every device.
#pragma once

#include <type_traits>

#include "ops/tensor_checks.h"

namespace tal_fast {

// The same type, or one that holds every value of the other.
template <typename In, typename Out>
constexpr bool kWidens = std::is_same_v<In, Out> || (sizeof(Out) > sizeof(In));

template <typename In, typename Body>
void dispatch_widening_of(ScalarType in, ScalarType out, const Body& body) {
  dispatch_float(out, "gather_windows", "dtype", [&]<typename Out>(TypeTag<Out> tag) {
    if constexpr (kWidens<In, Out>) {
      body(TypeTag<In>{}, tag);
    } else {
      TAL_FAST_CHECK(false, "gather_windows: expected dtype to be that of store, ",
                     dtype_string(in), ", or one that holds all its values, got ",
                     dtype_string(out));
    }
  });
}

// Calls `body(TypeTag<In>{}, TypeTag<Out>{})` for the pairs of kWidens.
template <typename Body>
void dispatch_widening(ScalarType in, ScalarType out, const Body& body) {
  dispatch_float(in, "gather_windows", "store",
                 [&]<typename In>(TypeTag<In>) { dispatch_widening_of<In>(in, out, body); });
}

inline void check_gather_windows(const Tensor& store, const Tensor& first_row, const Tensor& rows,
                                 int64_t length, ScalarType dtype) {
  TAL_FAST_CHECK(store.dim() == 2, "gather_windows: expected store of shape [R, C], got ",
                 shape_string(store));
  dispatch_widening(store.scalar_type(), dtype, [](auto, auto) {});
  // A copy of the whole store in every call would be a surprise.
  TAL_FAST_CHECK(store.is_contiguous(), "gather_windows: expected a contiguous store, got ",
                 shape_string(store), " with strides [", store.stride(0), ", ", store.stride(1),
                 "]");
  TAL_FAST_CHECK(first_row.dim() == 1 && rows.dim() == 1 && rows.size(0) == first_row.size(0),
                 "gather_windows: expected first_row and rows of shape [B], got ",
                 shape_string(first_row), " and ", shape_string(rows));
  TAL_FAST_CHECK(
      first_row.scalar_type() == ScalarType::Long && rows.scalar_type() == ScalarType::Long,
      "gather_windows: expected first_row and rows of dtype int64, got ",
      dtype_string(first_row.scalar_type()), " and ", dtype_string(rows.scalar_type()));
  TAL_FAST_CHECK(length >= 0, "gather_windows: expected length >= 0, got ", length);
}

}  // namespace tal_fast
