// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set; cpu/isa.h says how.
#include "reader/loops.h"

#include "reader/convert.h"

namespace tal_fast::reader {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

void transpose_any(const char* from, int64_t from_pitch, int64_t rows, int64_t columns, char* to,
                   int64_t to_pitch, int64_t size) {
  if (size == 4) {
    transpose(reinterpret_cast<const uint32_t*>(from), from_pitch, rows, columns,
              reinterpret_cast<uint32_t*>(to), to_pitch);
  } else {
    transpose(reinterpret_cast<const uint16_t*>(from), from_pitch, rows, columns,
              reinterpret_cast<uint16_t*>(to), to_pitch);
  }
}

void interpolate(const float* __restrict__ a, const float* __restrict__ b, float left, float right,
                 int64_t n, float* __restrict__ to) {
  for (int64_t i = 0; i < n; ++i) {
    to[i] = left * a[i] + right * b[i];
  }
}

}  // namespace

const Loops& reader_loops() {
  static constexpr Loops kLoops = {&to_float32,       &from_float32,  &convert,
                                   &first_not_finite, &transpose_any, &interpolate};
  return kLoops;
}

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::reader
