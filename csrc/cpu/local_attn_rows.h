// SPDX-License-Identifier: Apache-2.0
// The memory of banded self-attention: rows copied from tensors into scratch, and tensors asked for
// ahead of time. In an anonymous namespace because each instruction set compiles its own.
//
// The copies follow each other as whole vectors of the compute type, and padding is zero: models
// lay heads and rows at powers of two, which share few places of the first-level cache.
#pragma once

#include "cpu/carver.h"
#include "cpu/simd.h"
#include "math/local_attn.h"

namespace tal_fast::cpu {
namespace {

inline int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// Rows [begin, end) of a video.
struct Range {
  int64_t begin;
  int64_t end;
  int64_t size() const { return most(end - begin, 0); }
  Range widened(int64_t half, int64_t rows) const {
    return {most(begin - half, 0), least(end + half, rows)};
  }
  Range within(Range other) const { return {most(begin, other.begin), least(end, other.end)}; }
};

// Rows that follow each other in scratch: a part of the video that moves on over it, so that each
// row is written once, stays as long as it is in reach, and little scratch is in use.
template <typename C>
struct Rows {
  C* data;           // [capacity, stride]
  int64_t capacity;  // rows
  int64_t stride;
  int64_t first;  // row of the video that lies at `data`
  int64_t end;    // rows written

  C* operator[](int64_t row) const { return data + (row - first) * stride; }

  void restart(int64_t row) { first = end = row; }

  // Makes room for the rows before `until`, and forgets those before `reach` if need be. Returns
  // the rows that are to be written.
  Range extend(int64_t reach, int64_t until) {
    if (until - first > capacity) {
      __builtin_memmove(data, (*this)[reach],
                        sizeof(C) * static_cast<size_t>((end - reach) * stride));
      first = reach;
    }
    const Range fresh = {end, most(until, end)};
    end = fresh.end;
    return fresh;
  }
};

template <typename C, int kLanes>
inline void fill_zeros(C* target, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store<kLanes>(target + i, Vector<C, kLanes>{});
  }
}

// Copies rows of one head, times `scale`; rows of padding become zero.
template <typename T, typename C = ComputeType<T>>
[[gnu::noinline]] void copy_rows(const LocalAttnShape& shape, const LocalAttnInput<T>& input,
                                 int64_t b, int64_t h, const bool* padding, Range range, C scale,
                                 const Rows<C>& rows) {
  constexpr int kLanes = kFullLanes<C>;
  const T* source = input.data + b * input.batch_stride + h * input.head_stride;
  const int64_t channels = shape.channels;
  const int64_t whole = input.channel_stride == 1 ? channels / kLanes * kLanes : 0;
  for (int64_t t = range.begin; t < range.end; ++t) {
    C* target = rows[t];
    if (padding != nullptr && padding[b * shape.rows + t]) {
      fill_zeros<C, kLanes>(target, rows.stride);
      continue;
    }
    const T* row = source + t * input.row_stride;
    for (int64_t d = 0; d < whole; d += kLanes) {
      store<kLanes>(target + d, load<kLanes>(row + d) * scale);
    }
    for (int64_t d = whole; d < channels; ++d) {
      target[d] = widen(row[d * input.channel_stride]) * scale;
    }
    for (int64_t d = channels; d < rows.stride; ++d) {
      target[d] = 0;
    }
  }
}

// Memory that comes next, asked for while something else is computed: the rows of a head lie far
// from each other, so that no prefetcher of the hardware follows them. A few lines at a time,
// because a core waits when more are under way than it keeps track of.
class Ahead {
 public:
  // Rows of a tensor: `bytes` of each, `stride` bytes apart.
  void add(const void* data, int64_t stride, int64_t bytes, Range range) {
    if (range.size() > 0 && bytes > 0) {
      parts_[count_++] = {static_cast<const char*>(data) + range.begin * stride, stride, bytes,
                          range.size()};
      lines_ += range.size() * ((bytes + kLine - 1) / kLine);
    }
  }

  // Spreads the lines over most of `calls` calls of ask(): the last ones need time to arrive.
  void spread_over(int64_t calls) {
    const int64_t early = most(calls * 7 / 8, 1);
    lines_per_call_ = (lines_ + early - 1) / early;
    part_ = -1;
    next_row();
  }

  void ask() {
    for (int64_t i = 0; i < lines_per_call_ && line_ < row_end_; ++i) {
      __builtin_prefetch(line_, 0, 2);  // not into the first level: what is computed fills that
      line_ += kLine;
      if (line_ >= row_end_) {
        next_row();
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  struct Part {
    const char* data;
    int64_t stride;
    int64_t bytes;
    int64_t rows;
  };

  // The same row of the next part, or the next row of the first one.
  void next_row() {
    for (int tried = 0; tried < count_; ++tried) {
      if (++part_ == count_) {
        part_ = 0;
        ++row_;
      }
      const Part& part = parts_[part_];
      if (row_ < part.rows) {
        line_ = part.data + row_ * part.stride;
        row_end_ = line_ + part.bytes;
        return;
      }
    }
    line_ = row_end_ = nullptr;
  }

  Part parts_[7];  // the most that a step reads and writes: four inputs, three gradients
  int count_ = 0;
  int64_t lines_ = 0;
  int64_t lines_per_call_ = 0;
  int part_ = 0;
  int64_t row_ = 0;
  const char* line_ = nullptr;
  const char* row_end_ = nullptr;
};

}  // namespace
}  // namespace tal_fast::cpu
