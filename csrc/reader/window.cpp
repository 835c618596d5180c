// SPDX-License-Identifier: Apache-2.0
#include "reader/window.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/isa.h"
#include "reader/loops.h"

namespace tal_fast::reader {

TAL_FAST_FOR_EACH_ISA(const Loops& reader_loops();)

const Loops& loops() {
  static const Loops& chosen = TAL_FAST_ISA_CALL_IN(reader, reader_loops)();
  return chosen;
}

namespace {

// Bytes per pread. Small enough that conversion and the finiteness check find them in the L2 cache,
// large enough that the system call is noise.
constexpr int64_t kChunkBytes = 256 * 1024;

// Where rows become columns a chunk has at least this many rows: a cache line of the slot holds 16
// floats, and is better filled at once.
constexpr int64_t kLeastRows = 64;

// In a [C, T] file a window is one run of bytes per channel. Up to this many bytes between two runs
// are read along: a pread costs about 0.75 us, in which memory delivers some 4 to 12 KiB.
constexpr int64_t kBulkGapBytes = 4 * 1024;

// The same for rows that an interpolation leaves out.
constexpr int64_t kRowGapBytes = 8 * 1024;

// Where a resampled row comes from: (1 - weight) * row `first` + weight * row `second`.
struct Tap {
  int64_t first;
  int64_t second;
  float weight;
};

Tap tap_of(int64_t row, int64_t rows, int64_t resampled) {
  const double scale = static_cast<double>(rows) / static_cast<double>(resampled);
  const double at = std::max(0.0, (static_cast<double>(row) + 0.5) * scale - 0.5);
  const int64_t first = std::min(static_cast<int64_t>(at), rows - 1);
  const double weight = std::min(1.0, at - static_cast<double>(first));
  return {first, std::min(first + 1, rows - 1), static_cast<float>(weight)};
}

class Window {
 public:
  Window(const File& file, const Extent& extent, const WindowJob& job, bool check, Scratch& scratch)
      : file_(file),
        e_(extent),
        job_(job),
        check_(check),
        scratch_(scratch),
        in_size_(item_size(extent.dtype)),
        out_size_(item_size(job.dtype)),
        rows_(job.stop - job.start) {}

  void read() {
    if (job_.resampled > 0 && job_.resampled != e_.rows) {
      e_.layout == Layout::kTC ? interpolate_rows() : interpolate_channels();
    } else {
      e_.layout == Layout::kTC ? read_rows() : read_channels();
    }
    pad();
  }

 private:
  char* slot(int64_t element) const {
    return static_cast<char*>(job_.features) + element * out_size_;
  }
  int64_t offset_of(int64_t row, int64_t column) const {
    const int64_t element =
        e_.layout == Layout::kTC ? row * e_.columns + column : column * e_.rows + row;
    return e_.offset + element * in_size_;
  }

  // The element as the file has it, for a message.
  double element(int64_t row, int64_t column) const {
    char raw[8];
    file_.read(raw, in_size_, offset_of(row, column));
    if (e_.dtype == DType::kFloat64) {
      double value;
      std::memcpy(&value, raw, 8);
      return value;
    }
    float value;
    loops_.to_float32(raw, e_.dtype, 1, &value);
    return value;
  }

  [[noreturn]] void fail_at(int64_t row, int64_t column) const {
    const double value = element(row, column);
    Failure failure;
    failure.error.fault = std::isfinite(value) ? ReadFault::kOutOfRange : ReadFault::kNotFinite;
    failure.error.row = row;
    failure.error.column = column;
    failure.error.offset = offset_of(row, column);
    failure.error.number = value;
    throw failure;
  }

  // n elements at byte `at` of the file, in the slot's type, at `to`.
  void fetch(int64_t at, int64_t n, char* to) {
    if (e_.dtype == job_.dtype) {
      file_.read(to, n * in_size_, at);
      return;
    }
    const int64_t step = kChunkBytes / in_size_;
    for (int64_t done = 0; done < n; done += step) {
      const int64_t count = std::min(step, n - done);
      char* const raw = scratch_.raw.bytes(count * in_size_);
      file_.read(raw, count * in_size_, at + done * in_size_);
      loops_.convert(raw, e_.dtype, count, to + done * out_size_, job_.dtype);
    }
  }

  void transposed(const char* from, int64_t from_pitch, int64_t lines, int64_t length, char* to) {
    loops_.transpose(from, from_pitch, lines, length, to, job_.pitch, out_size_);
  }

  // block [n, columns], rows from `first` of the window on.
  void put_rows(const char* block, int64_t first, int64_t n) {
    if (job_.layout == Layout::kCT) {
      transposed(block, e_.columns, n, e_.columns, slot(first));
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(slot((first + i) * job_.pitch), block + i * e_.columns * out_size_,
                  static_cast<size_t>(e_.columns * out_size_));
    }
  }

  // block [n, rows of the window], channels from `first` on.
  void put_channels(const char* block, int64_t first, int64_t n) {
    if (job_.layout == Layout::kTC) {
      transposed(block, rows_, n, rows_, slot(first));
      return;
    }
    for (int64_t k = 0; k < n; ++k) {
      std::memcpy(slot((first + k) * job_.pitch), block + k * rows_ * out_size_,
                  static_cast<size_t>(rows_ * out_size_));
    }
  }

  // A window of a [T, C] file is one run of bytes.
  void read_rows() {
    if (job_.layout == Layout::kTC && job_.pitch == e_.columns) {
      const int64_t total = rows_ * e_.columns;
      const int64_t step = kChunkBytes / in_size_;
      for (int64_t done = 0; done < total; done += step) {
        const int64_t n = std::min(step, total - done);
        fetch(offset_of(job_.start, 0) + done * in_size_, n, slot(done));
        check_elements(slot(done), job_.start * e_.columns + done, n);
      }
      return;
    }
    const int64_t least = job_.layout == Layout::kCT ? kLeastRows : 1;
    const int64_t step = std::min(rows_, std::max(least, kChunkBytes / (e_.columns * in_size_)));
    char* const block = scratch_.converted.bytes(step * e_.columns * out_size_);
    for (int64_t done = 0; done < rows_; done += step) {
      const int64_t n = std::min(step, rows_ - done);
      fetch(offset_of(job_.start + done, 0), n * e_.columns, block);
      check_elements(block, (job_.start + done) * e_.columns, n * e_.columns);
      put_rows(block, done, n);
    }
  }

  void check_elements(const char* x, int64_t first, int64_t n) const {
    if (!check_) {
      return;
    }
    const int64_t bad = loops_.first_not_finite(x, job_.dtype, n);
    if (bad >= 0) {
      fail_at((first + bad) / e_.columns, (first + bad) % e_.columns);
    }
  }

  // Remembers the lowest faulty row, as [T, C] files report it; the slot is not used then, so the
  // rest may be read as usual.
  void check_channel(const char* x, DType dtype, int64_t column) {
    if (!check_) {
      return;
    }
    const int64_t bad = loops_.first_not_finite(x, dtype, rows_);
    if (bad >= 0 && (bad_row_ < 0 || bad < bad_row_)) {
      bad_row_ = bad;
      bad_column_ = column;
    }
  }

  // A window of a [C, T] file is one run per channel; a block of channels is read, converted and
  // put into the slot.
  void read_channels() {
    const bool bulk = (e_.rows - rows_) * in_size_ <= kBulkGapBytes;
    // Straight into the slot where that is one long run per channel.
    if (!bulk && job_.layout == Layout::kCT) {
      for (int64_t c = 0; c < e_.columns; ++c) {
        fetch(offset_of(job_.start, c), rows_, slot(c * job_.pitch));
        check_channel(slot(c * job_.pitch), job_.dtype, c);
      }
    } else {
      const int64_t length = bulk ? e_.rows : rows_;  // elements read per channel
      const int64_t skip = bulk ? job_.start : 0;
      const int64_t step = std::clamp<int64_t>(kChunkBytes / (length * in_size_), 1,
                                               std::min<int64_t>(64, e_.columns));
      char* const read = scratch_.source.bytes(bulk ? step * length * in_size_ : 0);
      char* const block = scratch_.converted.bytes(step * rows_ * out_size_);
      for (int64_t c = 0; c < e_.columns; c += step) {
        const int64_t n = std::min(step, e_.columns - c);
        if (bulk) {
          file_.read(read, n * length * in_size_, offset_of(0, c));
        }
        for (int64_t k = 0; k < n; ++k) {
          char* const channel = block + k * rows_ * out_size_;
          if (bulk) {
            loops_.convert(read + (k * length + skip) * in_size_, e_.dtype, rows_, channel,
                           job_.dtype);
          } else {
            fetch(offset_of(job_.start, c + k), rows_, channel);
          }
          check_channel(channel, job_.dtype, c + k);
        }
        put_channels(block, c, n);
      }
    }
    if (bad_row_ >= 0) {
      fail_at(job_.start + bad_row_, bad_column_);
    }
  }

  // Interpolated rows of a [T, C] file, in groups whose rows lie together in the file.
  void interpolate_rows() {
    const int64_t row_bytes = e_.columns * in_size_;
    const int64_t most = std::max<int64_t>(2, kChunkBytes / row_bytes);  // rows read at once
    const int64_t out_most = std::max(kLeastRows, kChunkBytes / (e_.columns * 4));
    int64_t row = job_.start;
    while (row < job_.stop) {
      const Tap first = tap_of(row, e_.rows, job_.resampled);
      int64_t last = first.second;
      int64_t end = row + 1;
      while (end < job_.stop && end - row < out_most) {
        const Tap next = tap_of(end, e_.rows, job_.resampled);
        if (next.second + 1 - first.first > most ||
            (next.first - last - 1) * row_bytes > kRowGapBytes) {
          break;
        }
        last = next.second;
        ++end;
      }
      const int64_t n = (last + 1 - first.first) * e_.columns;
      char* const raw = scratch_.raw.bytes(n * in_size_);
      file_.read(raw, n * in_size_, offset_of(first.first, 0));
      float* const source = scratch_.source.floats(n);
      loops_.to_float32(raw, e_.dtype, n, source);
      interpolate_group(row, end, first.first, source);
      row = end;
    }
  }

  // Rows [row, end) from source, which begins at row `base` of the file.
  void interpolate_group(int64_t row, int64_t end, int64_t base, const float* source) {
    const int64_t columns = e_.columns;
    const int64_t count = (end - row) * columns;
    float* const result = scratch_.result.floats(count);
    for (int64_t r = row; r < end; ++r) {
      const Tap tap = tap_of(r, e_.rows, job_.resampled);
      loops_.interpolate(source + (tap.first - base) * columns,
                         source + (tap.second - base) * columns, 1.0F - tap.weight, tap.weight,
                         columns, result + (r - row) * columns);
    }
    char* const block = scratch_.converted.bytes(count * out_size_);
    loops_.from_float32(result, count, job_.dtype, block);
    if (check_) {
      const int64_t bad = loops_.first_not_finite(block, job_.dtype, count);
      if (bad >= 0) {
        fail_interpolated(row + bad / columns, bad % columns);
      }
    }
    put_rows(block, row - job_.start, end - row);
  }

  // The first of the two rows behind a faulty element that explains it.
  [[noreturn]] void fail_interpolated(int64_t row, int64_t column) const {
    const Tap tap = tap_of(row, e_.rows, job_.resampled);
    const double a = element(tap.first, column);
    const double b = element(tap.second, column);
    const bool second = std::isfinite(a) && (!std::isfinite(b) || std::fabs(b) > std::fabs(a));
    fail_at(second ? tap.second : tap.first, column);
  }

  // Interpolated rows of a [C, T] file: of every channel the run of rows that the window needs.
  void interpolate_channels() {
    std::vector<Tap> taps;
    taps.reserve(static_cast<size_t>(rows_));
    for (int64_t r = job_.start; r < job_.stop; ++r) {
      taps.push_back(tap_of(r, e_.rows, job_.resampled));
    }
    const int64_t base = taps.front().first;
    const int64_t length = taps.back().second + 1 - base;
    const int64_t step = std::clamp<int64_t>(kChunkBytes / (std::max(length, rows_) * 4), 1,
                                             std::min<int64_t>(64, e_.columns));
    char* const raw = scratch_.raw.bytes(length * in_size_);
    float* const source = scratch_.source.floats(length);
    float* const result = scratch_.result.floats(rows_);
    char* const block = scratch_.converted.bytes(step * rows_ * out_size_);
    for (int64_t c = 0; c < e_.columns; c += step) {
      const int64_t n = std::min(step, e_.columns - c);
      for (int64_t k = 0; k < n; ++k) {
        file_.read(raw, length * in_size_, offset_of(base, c + k));
        loops_.to_float32(raw, e_.dtype, length, source);
        for (int64_t r = 0; r < rows_; ++r) {
          const Tap& tap = taps[static_cast<size_t>(r)];
          result[r] = (1.0F - tap.weight) * source[tap.first - base] +
                      tap.weight * source[tap.second - base];
        }
        char* const channel = block + k * rows_ * out_size_;
        loops_.from_float32(result, rows_, job_.dtype, channel);
        check_channel(channel, job_.dtype, c + k);
      }
      put_channels(block, c, n);
    }
    if (bad_row_ >= 0) {
      fail_interpolated(job_.start + bad_row_, bad_column_);
    }
  }

  // Zeros after the window, and the mask. All bits zero is 0 in every type.
  void pad() {
    const int64_t rest = job_.slot_rows - rows_;
    if (job_.layout == Layout::kCT) {
      for (int64_t c = 0; c < e_.columns && rest > 0; ++c) {
        std::memset(slot(c * job_.pitch + rows_), 0, static_cast<size_t>(rest * out_size_));
      }
    } else if (job_.pitch == e_.columns) {
      std::memset(slot(rows_ * job_.pitch), 0, static_cast<size_t>(rest * e_.columns * out_size_));
    } else {
      for (int64_t r = rows_; r < job_.slot_rows; ++r) {
        std::memset(slot(r * job_.pitch), 0, static_cast<size_t>(e_.columns * out_size_));
      }
    }
    if (job_.mask != nullptr) {
      std::memset(job_.mask, 0, static_cast<size_t>(rows_));
      std::memset(job_.mask + rows_, 1, static_cast<size_t>(rest));
    }
  }

  const Loops& loops_ = loops();
  const File& file_;
  const Extent& e_;
  const WindowJob& job_;
  const bool check_;
  Scratch& scratch_;
  const int64_t in_size_;
  const int64_t out_size_;
  const int64_t rows_;
  int64_t bad_row_ = -1;  // of the window
  int64_t bad_column_ = -1;
};

}  // namespace

void read_window(const File& file, const Extent& extent, const WindowJob& job, bool check_finite,
                 Scratch& scratch) {
  Window(file, extent, job, check_finite, scratch).read();
}

}  // namespace tal_fast::reader
