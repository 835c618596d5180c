// SPDX-License-Identifier: Apache-2.0
// From bytes to an extent, windows and slots, against a reader of one element at a time.
//
// The target is libFuzzer's (cmake --preset fuzz, which needs clang). Without TAL_FAST_LIBFUZZER
// the program feeds it seeded random inputs itself: fuzz_reader [seconds [seed]], under the
// sanitizers of the asan preset as a test of two seconds; fuzz_reader COUNT SEED requests for so
// many requests (and those of the last input).
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "reader/convert.h"
#include "reader/reader.h"

namespace {

using namespace tal_fast::reader;

#define REQUIRE(condition)                                                         \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

// Numbers from the input; zeros when it is used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint32_t below(uint32_t bound) {
    uint32_t value = 0;
    for (int i = 0; i < 3; ++i) {
      value = value * 256 + (at_ < size_ ? data_[at_++] : 0U);
    }
    return bound == 0 ? 0 : value % bound;
  }
  // n bytes of file: what is left of the input, over and over.
  std::string rest(size_t n) const {
    std::string bytes(n, '\0');
    for (size_t i = 0; i < n && at_ < size_; ++i) {
      bytes[i] = static_cast<char>(data_[at_ + i % (size_ - at_)]);
    }
    return bytes;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

float as_float(const std::string& file, const Extent& e, int64_t row, int64_t column) {
  const int64_t element =
      e.layout == Layout::kTC ? row * e.columns + column : column * e.rows + row;
  float value = 0;
  to_float32(file.data() + e.offset + element * item_size(e.dtype), e.dtype, 1, &value);
  return value;
}

// The element of the slot as the slot's type holds it, widened again.
float rounded(float x, DType dtype) {
  return dtype == DType::kFloat16    ? half_to_float(float_to_half(x))
         : dtype == DType::kBFloat16 ? bfloat16_to_float(float_to_bfloat16(x))
                                     : x;
}

float expected(const std::string& file, const Extent& e, const WindowJob& job, int64_t row,
               int64_t column) {
  const int64_t at_row = job.start + row;
  if (job.resampled == 0 || job.resampled == e.rows) {
    return rounded(as_float(file, e, at_row, column), job.dtype);
  }
  const double scale = static_cast<double>(e.rows) / static_cast<double>(job.resampled);
  const double at = std::max(0.0, (static_cast<double>(at_row) + 0.5) * scale - 0.5);
  const auto low = std::min(static_cast<int64_t>(at), e.rows - 1);
  const auto weight = static_cast<float>(std::min(1.0, at - static_cast<double>(low)));
  const float a = as_float(file, e, low, column);
  const float b = as_float(file, e, std::min(low + 1, e.rows - 1), column);
  return rounded((1.0F - weight) * a + weight * b, job.dtype);
}

bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

// A slot between guard bytes, and the job that fills it.
struct Slot {
  static constexpr size_t kGuard = 64;
  WindowJob job;
  int64_t before = 0;  // channels of the slot before and after those of the extent
  int64_t total = 0;
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> mask;

  Slot(Input& input, const Extent& e) {
    job.resampled = input.below(3) == 0 ? 1 + input.below(400) : 0;
    const int64_t rows = job.resampled > 0 ? job.resampled : e.rows;
    job.start = input.below(static_cast<uint32_t>(rows));
    job.stop = job.start + 1 + input.below(static_cast<uint32_t>(rows - job.start));
    job.slot_rows = job.stop - job.start + input.below(5);
    const DType types[] = {DType::kFloat16, DType::kFloat32, DType::kBFloat16};
    job.dtype = types[input.below(3)];
    job.layout = static_cast<Layout>(input.below(2));
    before = input.below(4);
    total = before + e.columns + input.below(4);
    job.pitch = job.layout == Layout::kTC ? total : job.slot_rows;
    const int64_t size = item_size(job.dtype);
    bytes.assign(static_cast<size_t>(total * job.slot_rows * size) + 2 * kGuard, 0xa5);
    mask.assign(static_cast<size_t>(job.slot_rows) + 2 * kGuard, 0xa5);
    const int64_t first = job.layout == Layout::kTC ? before : before * job.slot_rows;
    job.features = bytes.data() + kGuard + first * size;
    job.mask = mask.data() + kGuard;
  }

  bool untouched(const uint8_t* from, size_t n) const {
    return std::all_of(from, from + n, [](uint8_t b) { return b == 0xa5; });
  }

  void require_guards() const {
    for (const auto* memory : {&bytes, &mask}) {
      REQUIRE(untouched(memory->data(), kGuard));
      REQUIRE(untouched(memory->data() + memory->size() - kGuard, kGuard));
    }
  }

  void require_content(const std::string& file, const Extent& e) const {
    const int64_t size = item_size(job.dtype);
    const int64_t rows = job.stop - job.start;
    for (int64_t r = 0; r < job.slot_rows; ++r) {
      REQUIRE(mask[kGuard + static_cast<size_t>(r)] == (r < rows ? 0 : 1));
      for (int64_t c = 0; c < total; ++c) {
        const int64_t element = job.layout == Layout::kTC ? r * total + c : c * job.slot_rows + r;
        const uint8_t* const place = bytes.data() + kGuard + element * size;
        if (c < before || c >= before + e.columns) {
          REQUIRE(untouched(place, static_cast<size_t>(size)));
          continue;
        }
        float got = 0;
        to_float32(reinterpret_cast<const char*>(place), job.dtype, 1, &got);
        REQUIRE(same(got, r < rows ? expected(file, e, job, r, c - before) : 0.0F));
      }
    }
  }

  // Row and channel of the first element that is not finite in the slot, by row.
  bool first_bad(const std::string& file, const Extent& e, int64_t* row, int64_t* column) const {
    for (*row = 0; *row < job.stop - job.start; ++*row) {
      for (*column = 0; *column < e.columns; ++*column) {
        if (!std::isfinite(expected(file, e, job, *row, *column))) {
          return true;
        }
      }
    }
    return false;
  }
};

// Requests of an input. Starting a reader's threads costs as much as a hundred small requests, so
// every fourth input has many.
uint32_t draw_count(Input& input) {
  return 1 + (input.below(4) == 0 ? input.below(64) : input.below(4));
}

// Few files are large: it takes a hundred times as long to look at their every element.
int64_t draw_size(Input& input, uint32_t small, uint32_t large) {
  return 1 + input.below(input.below(12) == 0 ? large : small);
}

int64_t one(const uint8_t* data, size_t size) {
  Input input(data, size);
  Extent e;
  e.dtype = static_cast<DType>(input.below(4));
  e.layout = static_cast<Layout>(input.below(2));
  e.rows = draw_size(input, 40, 3000);
  e.columns = draw_size(input, 20, 90);
  e.offset = input.below(200);
  const bool check = input.below(2) == 0;
  const int64_t whole = e.offset + e.rows * e.columns * item_size(e.dtype);
  const bool shortened = input.below(8) == 0;
  const int64_t length = shortened ? input.below(static_cast<uint32_t>(whole)) : whole;
  std::vector<Slot> slots;
  const uint32_t count = draw_count(input);
  for (uint32_t i = 0; i < count; ++i) {
    slots.emplace_back(input, e);
    const size_t place =
        static_cast<size_t>(static_cast<uint8_t*>(slots[i].job.features) - slots[i].bytes.data());
    REQUIRE(place >= Slot::kGuard);
  }
  const std::string file = input.rest(static_cast<size_t>(length));
  const int descriptor = ::memfd_create("fuzz", MFD_CLOEXEC);
  REQUIRE(descriptor >= 0);
  REQUIRE(::write(descriptor, file.data(), file.size()) == static_cast<ssize_t>(file.size()));
  e.path = "/proc/self/fd/" + std::to_string(descriptor);
  {
    Reader reader({e}, 1 + static_cast<int>(input.below(3)), 2, check);
    for (Slot& slot : slots) {
      ReadError error;
      const int64_t ticket = reader.submit({slot.job});
      while (!reader.wait_for(ticket, 1000, &error)) {
      }
      slot.require_guards();
      if (length < whole) {
        REQUIRE(error.fault == ReadFault::kTruncated);
        REQUIRE(error.value == length);
        continue;
      }
      int64_t row = 0;
      int64_t column = 0;
      const bool bad = check && slot.first_bad(file, e, &row, &column);
      REQUIRE((error.fault != ReadFault::kNone) == bad);
      if (!bad) {
        slot.require_content(file, e);
        continue;
      }
      REQUIRE(error.fault == ReadFault::kNotFinite || error.fault == ReadFault::kOutOfRange);
      REQUIRE(error.row >= 0 && error.row < e.rows);
      REQUIRE(error.column == column);
      // The element that is named explains the fault.
      const float found = as_float(file, e, error.row, error.column);
      if (slot.job.resampled == 0 || slot.job.resampled == e.rows) {
        REQUIRE(error.row == slot.job.start + row);
        REQUIRE(!std::isfinite(rounded(found, slot.job.dtype)));
      } else {
        const double scale = static_cast<double>(e.rows) / static_cast<double>(slot.job.resampled);
        const double at =
            std::max(0.0, (static_cast<double>(slot.job.start + row) + 0.5) * scale - 0.5);
        REQUIRE(std::fabs(static_cast<double>(error.row) - at) <= 1.001);
        REQUIRE(!std::isfinite(rounded(found, slot.job.dtype)));
      }
    }
  }
  ::close(descriptor);
  return count;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  one(data, size);
  return 0;
}

#ifndef TAL_FAST_LIBFUZZER
int main(int argc, char** argv) {
  const bool counted = argc > 3 && std::strcmp(argv[3], "requests") == 0;
  const double limit = argc > 1 ? std::atof(argv[1]) : 2.0;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const auto began = std::chrono::steady_clock::now();
  int64_t inputs = 0;
  int64_t requests = 0;
  const auto done = [&] {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - began;
    return counted ? static_cast<double>(requests) : passed.count();
  };
  while (done() < limit) {
    // Each input by a generator of its own: the number printed is enough to repeat it.
    std::mt19937_64 random(seed * 1000003 + static_cast<uint64_t>(inputs));
    std::vector<uint8_t> data(30 + random() % 2000);
    // Small numbers half of the time, so that not every file is full of NaN.
    const bool tame = random() % 2 == 0;
    for (uint8_t& byte : data) {
      byte = static_cast<uint8_t>(random());
      if (tame && &byte - data.data() > 150) {
        byte &= 0x3f;
      }
    }
    if (std::getenv("FUZZ_VERBOSE") != nullptr) {
      std::fprintf(stderr, "seed %llu, input %lld\n", static_cast<unsigned long long>(seed),
                   static_cast<long long>(inputs));
    }
    requests += one(data.data(), data.size());
    ++inputs;
  }
  std::printf("fuzz_reader: %lld inputs, %lld requests, seed %llu\n",
              static_cast<long long>(inputs), static_cast<long long>(requests),
              static_cast<unsigned long long>(seed));
  return 0;
}
#endif
