// SPDX-License-Identifier: Apache-2.0
// The loops of convert.h for the instruction set in use. Part of the reader.
#pragma once

#include <cstdint>

#include "reader/reader.h"

namespace tal_fast::reader {

// See convert.h for what each does. A transpose moves elements of 2 or 4 bytes.
struct Loops {
  void (*to_float32)(const char* from, DType dtype, int64_t n, float* to);
  void (*from_float32)(const float* from, int64_t n, DType dtype, char* to);
  void (*convert)(const char* from, DType from_dtype, int64_t n, char* to, DType to_dtype);
  int64_t (*first_not_finite)(const void* x, DType dtype, int64_t n);
  void (*transpose)(const char* from, int64_t from_pitch, int64_t rows, int64_t columns, char* to,
                    int64_t to_pitch, int64_t size);
  // to [n] = left * a [n] + right * b [n], in float32 without fused multiply-add.
  void (*interpolate)(const float* a, const float* b, float left, float right, int64_t n,
                      float* to);
};

// Chosen once (cpu/isa.h).
const Loops& loops();

}  // namespace tal_fast::reader
