// SPDX-License-Identifier: Apache-2.0
// The reader without Python: bytes, faults and threads. Made for AddressSanitizer and
// ThreadSanitizer (cmake --preset asan, tsan).
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "reader/convert.h"
#include "reader/reader.h"

// ---- a pread that misbehaves on request
// ----------------------------------------------------------- The program's own definition comes
// before that of libc, so the reader calls this one.

enum class Mischief { kNone, kShortAndInterrupted, kEio, kSlow };
static std::atomic<Mischief> mischief{Mischief::kNone};
static std::atomic<int64_t> calls{0};

extern "C" ssize_t pread(int fd, void* out, size_t n, off_t offset) {
  using Pread = ssize_t (*)(int, void*, size_t, off_t);
  static const auto real = reinterpret_cast<Pread>(dlsym(RTLD_NEXT, "pread"));
  const int64_t call = calls.fetch_add(1);
  switch (mischief.load()) {
    case Mischief::kShortAndInterrupted:
      if (call % 3 == 0) {
        errno = EINTR;
        return -1;
      }
      n = n > 7 ? n / 2 : n;
      break;
    case Mischief::kEio:
      errno = EIO;
      return -1;
    case Mischief::kSlow:
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      break;
    case Mischief::kNone:
      break;
  }
  return real(fd, out, n, offset);
}

namespace {

using namespace tal_fast::reader;

int checks = 0;

#define CHECK(condition)                                                           \
  do {                                                                             \
    ++checks;                                                                      \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

template <class Error, class Call>
void check_throws(Call call, const char* part) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find(part) != std::string::npos);
    return;
  }
  std::fprintf(stderr, "expected an error with '%s'\n", part);
  std::exit(1);
}

std::string folder;

float element(int64_t file, int64_t row, int64_t column) {
  // Small integers and quarters: exact in float16 too.
  return static_cast<float>((row * 31 + column * 7 + file * 3) % 1024) * 0.25F - 64.0F;
}

uint16_t to_half(float x) {  // exact for the values of element()
  if (x == 0.0F) {
    return 0;
  }
  int exponent = 0;
  const float fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  const auto mantissa = static_cast<uint16_t>(std::lround((fraction * 2 - 1) * 1024));
  return static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | ((exponent + 14) << 10) | mantissa);
}

void put(std::ofstream& out, DType dtype, float x) {
  if (dtype == DType::kFloat16) {
    const uint16_t h = to_half(x);
    out.write(reinterpret_cast<const char*>(&h), 2);
  } else if (dtype == DType::kBFloat16) {
    const uint16_t b = float_to_bfloat16(x);
    out.write(reinterpret_cast<const char*>(&b), 2);
  } else if (dtype == DType::kFloat32) {
    out.write(reinterpret_cast<const char*>(&x), 4);
  } else {
    const double d = x;
    out.write(reinterpret_cast<const char*>(&d), 8);
  }
}

Extent write_file(int64_t id, int64_t rows, int64_t columns, DType dtype, Layout layout,
                  int64_t nan_row = -1, int64_t nan_column = -1) {
  Extent e;
  e.path = folder + "/" + std::to_string(id) + ".bin";
  e.offset = 13;  // an odd offset: elements are not aligned in the file
  e.rows = rows;
  e.columns = columns;
  e.dtype = dtype;
  e.layout = layout;
  std::ofstream out(e.path, std::ios::binary | std::ios::trunc);
  out << std::string(13, 'h');
  const auto value = [&](int64_t r, int64_t c) {
    return r == nan_row && c == nan_column ? std::numeric_limits<float>::infinity()
                                           : element(id, r, c);
  };
  if (layout == Layout::kTC) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        put(out, dtype, value(r, c));
      }
    }
  } else {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = 0; r < rows; ++r) {
        put(out, dtype, value(r, c));
      }
    }
  }
  return e;
}

// Memory of a batch, filled with rubbish so that a forgotten element shows.
struct Slots {
  Slots(int64_t count, int64_t length, int64_t columns)
      : length(length),
        columns(columns),
        features(static_cast<size_t>(count * length * columns), -1e30F),
        mask(static_cast<size_t>(count * length), 77) {}
  WindowJob job(int64_t slot, int64_t extent, int64_t start, int64_t stop) {
    return {
        extent, start, stop, features.data() + slot * length * columns, mask.data() + slot * length,
        length};
  }
  void expect(int64_t slot, int64_t file, int64_t start, int64_t stop) const {
    for (int64_t r = 0; r < length; ++r) {
      const bool padding = r >= stop - start;
      CHECK(mask[static_cast<size_t>(slot * length + r)] == (padding ? 1 : 0));
      for (int64_t c = 0; c < columns; ++c) {
        const float got = features[static_cast<size_t>((slot * length + r) * columns + c)];
        CHECK(got == (padding ? 0.0F : element(file, start + r, c)));
      }
    }
  }
  int64_t length, columns;
  std::vector<float> features;
  std::vector<uint8_t> mask;
};

ReadError wait(Reader& reader, int64_t ticket) {
  ReadError error;
  while (!reader.wait_for(ticket, 50, &error)) {
  }
  return error;
}

int open_descriptors() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    static_cast<void>(entry);
    ++count;
  }
  return count;
}

int threads_of_this_process() {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    static_cast<void>(entry);
    ++count;
  }
  return count;
}

// A joined thread is listed until the kernel has let it go: soon, but not at once.
bool threads_fall_to(int count) {
  for (int i = 0; i < 60000 && threads_of_this_process() > count; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return threads_of_this_process() <= count;
}

// ---- numbers
// --------------------------------------------------------------------------------------

void test_half() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>((bits >> 10) & 31);
    const int mantissa = static_cast<int>(bits & 1023);
    const float got = half_to_float(static_cast<uint16_t>(bits));
    if (exponent == 31) {
      CHECK(mantissa == 0 ? std::isinf(got) : std::isnan(got));
    } else {
      const float size = exponent == 0
                             ? std::ldexp(static_cast<float>(mantissa), -24)
                             : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
      CHECK(std::fabs(got) == size);
    }
    CHECK(std::signbit(got) == ((bits & 0x8000) != 0));
  }
}

void test_first_not_finite() {
  std::vector<float> x(3000, std::numeric_limits<float>::max());
  x[1] = -std::numeric_limits<float>::max();
  x[2] = std::numeric_limits<float>::denorm_min();
  const auto n = static_cast<int64_t>(x.size());
  CHECK(first_not_finite(x.data(), DType::kFloat32, n) == -1);
  CHECK(first_not_finite(x.data(), DType::kFloat32, 0) == -1);
  for (const int64_t at : {int64_t{0}, int64_t{1023}, int64_t{1024}, n - 1}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
          std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      std::vector<float> y = x;
      y[static_cast<size_t>(at)] = bad;
      y.back() = bad;
      CHECK(first_not_finite(y.data(), DType::kFloat32, n) == at);
    }
  }
}

// Rounds by trying: the nearest of all 2^16 patterns' values, ties to the even pattern.
template <class ToFloat>
uint16_t nearest_pattern(float x, uint16_t largest_finite, ToFloat to_float) {
  uint16_t low = 0;
  uint16_t high = largest_finite;
  const float size = std::fabs(x);
  while (low < high) {  // the largest pattern whose value is at most |x|
    const auto middle = static_cast<uint16_t>((low + high + 1) / 2);
    if (to_float(middle) <= size) {
      low = middle;
    } else {
      high = static_cast<uint16_t>(middle - 1);
    }
  }
  // Beyond the last finite number the next step would be at that distance again.
  const double step = low == largest_finite
                          ? double{to_float(low)} - to_float(static_cast<uint16_t>(low - 1))
                          : double{to_float(static_cast<uint16_t>(low + 1))} - to_float(low);
  const double rest = double{size} - to_float(low);
  const bool up = rest > step / 2 || (rest == step / 2 && (low & 1) != 0);
  return static_cast<uint16_t>((std::signbit(x) ? 0x8000 : 0) | (up ? low + 1 : low));
}

void test_rounding() {
  uint32_t bits = 12345;
  for (int i = 0; i < 300000; ++i) {
    bits = bits * 1664525U + 1013904223U;
    // Every eighth one close to a tie, where rounding is decided.
    const uint32_t chosen = i % 8 == 0   ? (bits & 0xfffff000U) | ((bits >> 5) & 1U)
                            : i % 8 == 1 ? (bits & 0xffff0000U) | 0x8000U
                                         : bits;
    const float x = std::bit_cast<float>(chosen);
    if (!std::isfinite(x)) {
      continue;
    }
    CHECK(float_to_half(x) == nearest_pattern(x, 0x7bff, half_to_float));
    CHECK(float_to_bfloat16(x) == nearest_pattern(x, 0x7f7f, bfloat16_to_float));
  }
  for (const float x : {65504.0F, 65519.99F, 65520.0F, 0x1p-24F, 0x1p-25F, 0x1.8p-25F, 0x1p-14F,
                        0x1.ffcp-15F, -0.0F, 0.0F, 2049.0F, 2051.0F}) {
    CHECK(float_to_half(x) == nearest_pattern(x, 0x7bff, half_to_float));
    CHECK(float_to_half(-x) == nearest_pattern(-x, 0x7bff, half_to_float));
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const float odd_nan = std::bit_cast<float>(0x7f800001U);  // its mantissa is lost by truncation
  for (const float x : {nan, -nan, odd_nan}) {
    CHECK(std::isnan(half_to_float(float_to_half(x))));
    CHECK(std::isnan(bfloat16_to_float(float_to_bfloat16(x))));
  }
  for (const float x : {infinity, -infinity}) {
    CHECK(half_to_float(float_to_half(x)) == x);
    CHECK(bfloat16_to_float(float_to_bfloat16(x)) == x);
  }
  for (uint32_t pattern = 0; pattern < 0x10000; ++pattern) {  // there and back
    const auto h = static_cast<uint16_t>(pattern);
    if (!std::isnan(half_to_float(h))) {
      CHECK(float_to_half(half_to_float(h)) == h);
    }
    if (!std::isnan(bfloat16_to_float(h))) {
      CHECK(float_to_bfloat16(bfloat16_to_float(h)) == h);
    }
  }
}

template <typename T>
void check_transpose() {
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {3, 5}, {4, 4}, {16, 16}, {17, 33}, {64, 100}, {70, 7}, {8, 129}}) {
    const int64_t from_pitch = columns + 3;
    const int64_t to_pitch = rows + 2;
    std::vector<T> from(static_cast<size_t>(rows * from_pitch));
    for (size_t i = 0; i < from.size(); ++i) {
      from[i] = static_cast<T>(i + 1);
    }
    std::vector<T> to(static_cast<size_t>(columns * to_pitch), T{0});
    transpose(from.data(), from_pitch, rows, columns, to.data(), to_pitch);
    for (int64_t k = 0; k < columns; ++k) {
      for (int64_t i = 0; i < to_pitch; ++i) {
        const T expected = i < rows ? from[static_cast<size_t>(i * from_pitch + k)] : T{0};
        CHECK(to[static_cast<size_t>(k * to_pitch + i)] == expected);
      }
    }
  }
}

// ---- bytes
// ----------------------------------------------------------------------------------------

void test_every_dtype_and_layout() {
  for (const DType dtype : {DType::kFloat16, DType::kFloat32, DType::kFloat64}) {
    for (const Layout layout : {Layout::kTC, Layout::kCT}) {
      for (const auto& [rows, columns] :
           std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {37, 5}, {300, 70}, {9000, 67}}) {
        const Extent e = write_file(1, rows, columns, dtype, layout);
        Reader reader({e}, 2, 4, true);
        // Whole, a short window in the middle (one pread per channel in [C, T]), and the last row.
        const int64_t middle = rows / 2;
        const int64_t stop = std::min(rows, middle + 9);
        Slots slots(3, rows + 3, columns);
        const ReadError error =
            wait(reader, reader.submit({slots.job(0, 0, 0, rows), slots.job(1, 0, middle, stop),
                                        slots.job(2, 0, rows - 1, rows)}));
        CHECK(error.fault == ReadFault::kNone);
        slots.expect(0, 1, 0, rows);
        slots.expect(1, 1, middle, stop);
        slots.expect(2, 1, rows - 1, rows);
      }
    }
  }
}

// A slot of any type and layout, surrounded by a pattern that must survive.
struct AnySlot {
  AnySlot(DType dtype, Layout layout, int64_t length, int64_t columns, int64_t before,
          int64_t after)
      : dtype(dtype),
        layout(layout),
        length(length),
        columns(columns),
        before(before),
        total(before + columns + after),
        size(item_size(dtype)),
        bytes(static_cast<size_t>(length * total * size), 0x5a),
        mask(static_cast<size_t>(length), 77) {}
  WindowJob job(int64_t extent, int64_t start, int64_t stop, int64_t resampled = 0) {
    WindowJob j;
    j.extent = extent;
    j.start = start;
    j.stop = stop;
    j.features = bytes.data() + (layout == Layout::kTC ? before : before * length) * size;
    j.mask = mask.data();
    j.slot_rows = length;
    j.dtype = dtype;
    j.layout = layout;
    j.pitch = layout == Layout::kTC ? total : length;
    j.resampled = resampled;
    return j;
  }
  float at(int64_t row, int64_t column) const {
    const int64_t element = layout == Layout::kTC ? row * total + column : column * length + row;
    float value = 0;
    to_float32(bytes.data() + element * size, dtype, 1, &value);
    return value;
  }
  template <class Value>
  void expect(int64_t rows, Value value) const {
    const float pattern = AnySlot(dtype, layout, 1, 1, 0, 0).at(0, 0);
    for (int64_t r = 0; r < length; ++r) {
      CHECK(mask[static_cast<size_t>(r)] == (r < rows ? 0 : 1));
      for (int64_t c = 0; c < total; ++c) {
        if (c < before || c >= before + columns) {
          CHECK(at(r, c) == pattern);
        } else {
          CHECK(at(r, c) == (r < rows ? value(r, c - before) : 0.0F));
        }
      }
    }
  }
  DType dtype;
  Layout layout;
  int64_t length, columns, before, total, size;
  std::vector<char> bytes;
  std::vector<uint8_t> mask;
};

constexpr DType kFileTypes[] = {DType::kFloat16, DType::kFloat32, DType::kFloat64,
                                DType::kBFloat16};
constexpr DType kSlotTypes[] = {DType::kFloat16, DType::kFloat32, DType::kBFloat16};
constexpr Layout kLayouts[] = {Layout::kTC, Layout::kCT};

float rounded(float x, DType dtype) {
  return dtype == DType::kFloat16    ? half_to_float(float_to_half(x))
         : dtype == DType::kBFloat16 ? bfloat16_to_float(float_to_bfloat16(x))
                                     : x;
}

void test_every_slot() {
  for (const DType from : kFileTypes) {
    for (const Layout stored : kLayouts) {
      for (const auto& [rows, columns] :
           std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {37, 5}, {500, 70}, {6000, 19}}) {
        const Extent e = write_file(20, rows, columns, from, stored);
        Reader reader({e}, 2, 4, true);
        const int64_t middle = rows / 2;
        const std::pair<int64_t, int64_t> spans[] = {
            {0, rows}, {middle, std::min(rows, middle + 9)}, {rows - 1, rows}};
        for (const DType to : kSlotTypes) {
          for (const Layout layout : kLayouts) {
            for (const auto& [start, stop] : spans) {
              // Alone, and as the middle one of three streams side by side.
              for (const int64_t beside : {int64_t{0}, int64_t{3}}) {
                AnySlot slot(to, layout, stop - start + 4, columns, beside, beside);
                const ReadError error = wait(reader, reader.submit({slot.job(0, start, stop)}));
                CHECK(error.fault == ReadFault::kNone);
                slot.expect(stop - start, [&, first = start](int64_t r, int64_t c) {
                  return rounded(rounded(element(20, first + r, c), from), to);
                });
              }
            }
          }
        }
      }
    }
  }
}

void test_resampling() {
  for (const DType from : kFileTypes) {
    for (const Layout stored : kLayouts) {
      const int64_t rows = 301;
      const int64_t columns = 37;
      const Extent e = write_file(21, rows, columns, from, stored);
      Reader reader({e}, 2, 4, true);
      for (const int64_t resampled :
           {int64_t{1}, int64_t{2}, int64_t{10}, int64_t{192}, int64_t{300}, rows, int64_t{1000}}) {
        const int64_t start = resampled / 3;
        for (const DType to : kSlotTypes) {
          for (const Layout layout : kLayouts) {
            AnySlot slot(to, layout, resampled - start + 2, columns, 1, 0);
            const ReadError error =
                wait(reader, reader.submit({slot.job(0, start, resampled, resampled)}));
            CHECK(error.fault == ReadFault::kNone);
            slot.expect(resampled - start, [&](int64_t r, int64_t c) {
              const double at =
                  std::max(0.0, (static_cast<double>(start + r) + 0.5) * rows / resampled - 0.5);
              const auto low = std::min(static_cast<int64_t>(at), rows - 1);
              const auto weight = static_cast<float>(at - static_cast<double>(low));
              const float a = rounded(element(21, low, c), from);
              const float b = rounded(element(21, std::min(low + 1, rows - 1), c), from);
              return rounded((1.0F - weight) * a + weight * b, to);
            });
          }
        }
      }
    }
  }
}

void test_out_of_range() {
  for (const Layout stored : kLayouts) {
    Extent e = write_file(22, 90, 7, DType::kFloat64, stored, 61, 5);
    std::fstream file(e.path, std::ios::binary | std::ios::in | std::ios::out);
    const int64_t place = stored == Layout::kTC ? 61 * 7 + 5 : 5 * 90 + 61;
    const auto put_number = [&](double value) {
      file.seekp(e.offset + place * 8);
      file.write(reinterpret_cast<const char*>(&value), 8);
      file.flush();
    };
    Reader reader({e}, 1, 4, true);
    for (const int64_t resampled : {int64_t{0}, int64_t{180}}) {
      const int64_t all = resampled > 0 ? resampled : 90;
      for (const auto& [to, value] : std::vector<std::pair<DType, double>>{
               {DType::kFloat16, 1e5}, {DType::kFloat32, -1e300}, {DType::kBFloat16, 1e39}}) {
        put_number(value);
        AnySlot slot(to, Layout::kTC, all, 7, 0, 0);
        const ReadError error = wait(reader, reader.submit({slot.job(0, 0, all, resampled)}));
        CHECK(error.fault == ReadFault::kOutOfRange);
        CHECK(error.row == 61);
        CHECK(error.column == 5);
        CHECK(error.number == value);
        CHECK(error.offset == e.offset + place * 8);
      }
      put_number(std::numeric_limits<double>::quiet_NaN());
      AnySlot slot(DType::kFloat16, Layout::kCT, all, 7, 0, 0);
      const ReadError error = wait(reader, reader.submit({slot.job(0, 0, all, resampled)}));
      CHECK(error.fault == ReadFault::kNotFinite);
      CHECK(error.row == 61);
      CHECK(error.column == 5);
    }
  }
}

void test_replaced_file() {
  const Extent e = write_file(23, 40, 4, DType::kFloat32, Layout::kTC);
  const Extent other = write_file(24, 40, 4, DType::kFloat32, Layout::kTC);
  Reader reader({e, other}, 1, 1, true);
  Slots slots(1, 40, 4);
  CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 40)})).fault == ReadFault::kNone);
  std::filesystem::rename(e.path, e.path + ".old");
  write_file(23, 40, 4, DType::kFloat32, Layout::kTC, 0, 0);
  // The open file is read as before.
  CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 40)})).fault == ReadFault::kNone);
  slots.expect(0, 23, 0, 40);
  // Only one file stays open here, so the next one closes it.
  CHECK(wait(reader, reader.submit({slots.job(0, 1, 0, 40)})).fault == ReadFault::kNone);
  CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 40)})).fault == ReadFault::kReplaced);
  // A new reader takes the data as they are now.
  Reader late({e}, 1, 1, false);
  CHECK(wait(late, late.submit({slots.job(0, 0, 0, 40)})).fault == ReadFault::kNone);
}

void test_short_reads_and_signals() {
  for (const Layout layout : {Layout::kTC, Layout::kCT}) {
    const Extent e = write_file(2, 400, 33, DType::kFloat32, layout);
    Slots slots(2, 64, 33);
    mischief = Mischief::kShortAndInterrupted;
    Reader reader({e}, 2, 4, true);
    const ReadError error =
        wait(reader, reader.submit({slots.job(0, 0, 0, 64), slots.job(1, 0, 350, 400)}));
    mischief = Mischief::kNone;
    CHECK(error.fault == ReadFault::kNone);
    slots.expect(0, 2, 0, 64);
    slots.expect(1, 2, 350, 400);
  }
}

void test_empty_ticket_and_no_mask() {
  const Extent e = write_file(3, 20, 4, DType::kFloat32, Layout::kTC);
  Reader reader({e}, 1, 1, false);
  CHECK(wait(reader, reader.submit({})).fault == ReadFault::kNone);
  Slots slots(1, 20, 4);
  WindowJob job = slots.job(0, 0, 0, 20);
  job.mask = nullptr;
  CHECK(wait(reader, reader.submit({job})).fault == ReadFault::kNone);
  CHECK(slots.mask[0] == 77);
}

// ---- faults
// ---------------------------------------------------------------------------------------

void test_missing_file() {
  Extent gone = write_file(4, 20, 4, DType::kFloat32, Layout::kTC);
  const Extent there = write_file(5, 20, 4, DType::kFloat32, Layout::kTC);
  std::filesystem::remove(gone.path);
  for (int threads = 1; threads <= 4; ++threads) {
    Reader reader({there, gone}, threads, 4, true);
    Slots slots(4, 20, 4);
    const ReadError error =
        wait(reader, reader.submit({slots.job(0, 0, 0, 20), slots.job(1, 1, 0, 20),
                                    slots.job(2, 0, 5, 20), slots.job(3, 1, 3, 20)}));
    CHECK(error.fault == ReadFault::kOpen);
    CHECK(error.job == 1);  // the lowest, however many threads there are
    CHECK(error.extent == 1);
    CHECK(!error.reason.empty());
    slots.expect(0, 5, 0, 20);
    slots.expect(2, 5, 5, 20);
    // The reader goes on after an error.
    CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 20)})).fault == ReadFault::kNone);
  }
}

void test_truncated() {
  const Extent e = write_file(6, 200, 8, DType::kFloat32, Layout::kTC);
  Slots slots(1, 200, 8);
  Reader reader({e}, 1, 4, true);
  CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 10)})).fault == ReadFault::kNone);
  // The descriptor is open now; the file shrinks under it.
  const int64_t size = e.offset + 100 * 8 * 4 + 3;
  std::filesystem::resize_file(e.path, static_cast<uintmax_t>(size));
  CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 100)})).fault == ReadFault::kNone);
  ReadError error = wait(reader, reader.submit({slots.job(0, 0, 50, 200)}));
  CHECK(error.fault == ReadFault::kTruncated);
  CHECK(error.offset == size);
  CHECK(error.value == size);
  // A reader that opens it now notices at once.
  Reader late({e}, 1, 4, true);
  error = wait(late, late.submit({slots.job(0, 0, 0, 1)}));
  CHECK(error.fault == ReadFault::kTruncated);
  CHECK(error.value == size);
}

void test_io_error() {
  const Extent e = write_file(7, 20, 4, DType::kFloat32, Layout::kCT);
  Reader reader({e}, 1, 4, true);
  Slots slots(1, 20, 4);
  mischief = Mischief::kEio;
  const ReadError error = wait(reader, reader.submit({slots.job(0, 0, 0, 20)}));
  mischief = Mischief::kNone;
  CHECK(error.fault == ReadFault::kRead);
  CHECK(error.offset == e.offset);
}

void test_not_finite() {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    for (const Layout layout : {Layout::kTC, Layout::kCT}) {
      const Extent e = write_file(8, 90, 7, dtype, layout, 61, 5);
      Slots slots(1, 90, 7);
      Reader reader({e}, 1, 4, true);
      CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 61)})).fault == ReadFault::kNone);
      const ReadError error = wait(reader, reader.submit({slots.job(0, 0, 60, 90)}));
      CHECK(error.fault == ReadFault::kNotFinite);
      CHECK(error.row == 61);
      CHECK(error.column == 5);
      Reader careless({e}, 1, 4, false);
      CHECK(wait(careless, careless.submit({slots.job(0, 0, 60, 90)})).fault == ReadFault::kNone);
      CHECK(std::isinf(slots.features[1 * 7 + 5]));
    }
  }
}

void test_bad_arguments() {
  const Extent e = write_file(9, 20, 4, DType::kFloat32, Layout::kTC);
  check_throws<std::invalid_argument>([&] { Reader r({e}, 0, 4, true); }, "threads >= 1");
  check_throws<std::invalid_argument>([&] { Reader r({e}, 1, 0, true); }, "max_open_files >= 1");
  Extent huge = e;
  huge.rows = int64_t{1} << 60;
  check_throws<std::invalid_argument>([&] { Reader r({huge}, 1, 1, true); }, "rows >= 1");
  Reader reader({e}, 1, 4, true);
  Slots slots(1, 10, 4);
  check_throws<std::invalid_argument>([&] { reader.submit({slots.job(0, 1, 0, 5)}); },
                                      "no extent 1 among 1");
  check_throws<std::invalid_argument>([&] { reader.submit({slots.job(0, 0, 15, 21)}); },
                                      "rows [15, 21)");
  check_throws<std::invalid_argument>([&] { reader.submit({slots.job(0, 0, 5, 5)}); },
                                      "rows [5, 5)");
  check_throws<std::invalid_argument>([&] { reader.submit({slots.job(0, 0, 0, 11)}); },
                                      "a slot of 10");
  WindowJob job = slots.job(0, 0, 0, 5);
  job.dtype = DType::kFloat64;
  check_throws<std::invalid_argument>([&] { reader.submit({job}); }, "slots of float16, float32");
  job = slots.job(0, 0, 0, 5);
  job.pitch = 3;
  check_throws<std::invalid_argument>([&] { reader.submit({job}); },
                                      "a pitch of at least 4, got 3");
  job.layout = Layout::kCT;
  check_throws<std::invalid_argument>([&] { reader.submit({job}); }, "a pitch of at least 10");
  job.pitch = int64_t{1} << 60;
  check_throws<std::invalid_argument>([&] { reader.submit({job}); }, "a pitch of");
  job = slots.job(0, 0, 0, 7);
  job.resampled = 6;
  check_throws<std::invalid_argument>([&] { reader.submit({job}); }, "(6 rows)");
  job.resampled = -1;
  check_throws<std::invalid_argument>([&] { reader.submit({job}); }, "rows [0, 7)");
  ReadError error;
  check_throws<std::invalid_argument>([&] { reader.wait_for(99, 1, &error); }, "no ticket 99");
  reader.close();
  check_throws<std::runtime_error>([&] { reader.submit({slots.job(0, 0, 0, 5)}); }, "closed");
}

// ---- threads and files
// ----------------------------------------------------------------------------

void test_many_tickets() {
  std::vector<Extent> extents;
  for (int64_t id = 100; id < 106; ++id) {
    extents.push_back(write_file(id, 150, 6, DType::kFloat32, Layout::kTC));
  }
  for (const int threads : {1, 4}) {
    const int before = open_descriptors();
    Reader reader(extents, threads, 2, true);
    std::vector<Slots> all;
    std::vector<int64_t> tickets;
    all.reserve(40);
    for (int64_t b = 0; b < 40; ++b) {
      all.emplace_back(6, 32, 6);
      std::vector<WindowJob> jobs;
      for (int64_t i = 0; i < 6; ++i) {
        jobs.push_back(all.back().job(i, (b + i) % 6, b, b + 20 + i));
      }
      tickets.push_back(reader.submit(jobs));
    }
    for (int64_t b = 39; b >= 0; --b) {  // in another order than submitted
      CHECK(wait(reader, tickets[static_cast<size_t>(b)]).fault == ReadFault::kNone);
      for (int64_t i = 0; i < 6; ++i) {
        all[static_cast<size_t>(b)].expect(i, 100 + (b + i) % 6, b, b + 20 + i);
      }
    }
    CHECK(reader.open_files() == 2);
    CHECK(open_descriptors() <= before + 2);
    reader.close();
    CHECK(open_descriptors() == before);
  }
}

void test_close_early() {
  const Extent e = write_file(10, 150, 6, DType::kFloat32, Layout::kTC);
  const int before = open_descriptors();
  const int threads_before = threads_of_this_process();
  mischief = Mischief::kSlow;
  for (int round = 0; round < 50; ++round) {
    Slots slots(8, 150, 6);
    Reader reader({e}, 3, 4, true);
    std::vector<WindowJob> jobs;
    for (int64_t i = 0; i < 8; ++i) {
      jobs.push_back(slots.job(i, 0, 0, 150));
    }
    for (int b = 0; b < 10; ++b) {
      reader.submit(jobs);
    }
    if (round % 2 == 0) {
      reader.close();
      reader.close();
    }
  }  // the slots end after the reader
  mischief = Mischief::kNone;
  CHECK(open_descriptors() == before);
  CHECK(threads_fall_to(threads_before));
}

void test_close_wakes_a_waiter() {
  const Extent e = write_file(11, 150, 6, DType::kFloat32, Layout::kTC);
  Slots slots(64, 150, 6);
  Reader reader({e}, 1, 4, true);
  mischief = Mischief::kSlow;
  std::vector<WindowJob> jobs;
  for (int64_t i = 0; i < 64; ++i) {
    jobs.push_back(slots.job(i, 0, 0, 150));
  }
  const int64_t ticket = reader.submit(jobs);
  std::atomic<bool> woken{false};
  std::thread waiter([&] {
    ReadError error;
    check_throws<std::runtime_error>(
        [&] {
          while (!reader.wait_for(ticket, 10000, &error)) {
          }
        },
        "closed");
    woken = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  reader.close();
  waiter.join();
  mischief = Mischief::kNone;
  CHECK(woken);
}

void test_cancel() {
  const Extent e = write_file(12, 150, 6, DType::kFloat32, Layout::kTC);
  Reader reader({e}, 2, 4, true);
  Slots kept(2, 150, 6);
  for (int round = 0; round < 20; ++round) {
    mischief = Mischief::kSlow;
    Slots dropped(8, 150, 6);
    std::vector<WindowJob> jobs;
    for (int64_t i = 0; i < 8; ++i) {
      jobs.push_back(dropped.job(i, 0, 0, 150));
    }
    const int64_t first = reader.submit(jobs);
    const int64_t second = reader.submit({kept.job(0, 0, 0, 100), kept.job(1, 0, 7, 150)});
    reader.cancel(first);
    reader.cancel(first);  // unknown by now
    mischief = Mischief::kNone;
    CHECK(wait(reader, second).fault == ReadFault::kNone);
    kept.expect(0, 12, 0, 100);
    kept.expect(1, 12, 7, 150);
    ReadError error;
    check_throws<std::invalid_argument>([&] { reader.wait_for(first, 1, &error); }, "no ticket");
  }  // nothing writes to `dropped` any more
}

void test_fork() {
  const Extent e = write_file(13, 150, 6, DType::kFloat32, Layout::kTC);
  Slots slots(1, 150, 6);
  Reader reader({e}, 2, 4, true);
  CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 150)})).fault == ReadFault::kNone);
  const pid_t child = ::fork();
  if (child == 0) {
    bool refused = false;
    try {
      reader.submit({slots.job(0, 0, 0, 150)});
    } catch (const std::runtime_error&) {
      refused = true;
    }
    reader.close();  // must not hang: its threads are not here
    ::_exit(refused ? 0 : 1);
  }
  int status = -1;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(wait(reader, reader.submit({slots.job(0, 0, 0, 150)})).fault == ReadFault::kNone);
}

}  // namespace

int main() {
  std::string pattern =
      (std::filesystem::temp_directory_path() / "tal_fast_reader_XXXXXX").string();
  folder = ::mkdtemp(pattern.data());
  test_half();
  test_rounding();
  test_first_not_finite();
  check_transpose<uint32_t>();
  check_transpose<uint16_t>();
  test_every_slot();
  test_resampling();
  test_out_of_range();
  test_replaced_file();
  test_every_dtype_and_layout();
  test_short_reads_and_signals();
  test_empty_ticket_and_no_mask();
  test_missing_file();
  test_truncated();
  test_io_error();
  test_not_finite();
  test_bad_arguments();
  test_many_tickets();
  test_close_early();
  test_close_wakes_a_waiter();
  test_cancel();
  test_fork();
  std::filesystem::remove_all(folder);
  std::printf("reader: %d checks passed\n", checks);
  return 0;
}
