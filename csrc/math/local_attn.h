// SPDX-License-Identifier: Apache-2.0
// Banded self-attention: sizes and places, for the kernels of every device.
//
// B batch, T rows, H heads, D channels per head. Row t sees the rows s with |s - t| <= half that
// are inside the video and no padding: out[t] = sum over s of softmax_s(q[t] . k[s] / sqrt(D)) *
// v[s].
#pragma once

#include <cstdint>

namespace tal_fast {

struct LocalAttnShape {
  int64_t batch;
  int64_t rows;
  int64_t heads;
  int64_t channels;
  int64_t half;  // rows seen on each side, less than T

  int64_t window() const { return 2 * half + 1; }
};

// A strided tensor, such as one of the parts of a projection's output. Strides are in elements.
template <typename T>
struct LocalAttnInput {
  const T* data;  // [B, T, H, D]
  int64_t batch_stride;
  int64_t row_stride;
  int64_t head_stride;
  int64_t channel_stride;
};

}  // namespace tal_fast
