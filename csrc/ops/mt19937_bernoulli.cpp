// SPDX-License-Identifier: Apache-2.0
// mt19937_bernoulli_: schema and CPU implementation. There is no CUDA kernel: MT19937 is the
// generator of torch's CPU.
#include "cpu/mt19937_bernoulli.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "ops/tensor_checks.h"

namespace tal_fast {
namespace {

constexpr const char* kOp = "mt19937_bernoulli_";

// The state of torch's CPU generator, its bytes as int64: the seed; how many words are left (and
// one more), with a flag in the upper half; the index of the next word; the words; and what the
// normal distribution keeps.
constexpr int64_t kLeft = 1;
constexpr int64_t kNext = 2;
constexpr int64_t kFirstWord = 3;
constexpr int64_t kNumbers = 632;

cpu::Mt19937 read_state(const int64_t* numbers) {
  const auto left = static_cast<uint32_t>(numbers[kLeft]);
  cpu::Mt19937 state;
  // A generator that was only seeded has words to begin with, and none to draw.
  state.next = left == 1 ? cpu::kMt19937Words : numbers[kNext];
  TAL_FAST_CHECK(state.next > 0 && state.next <= cpu::kMt19937Words &&
                     left + state.next == cpu::kMt19937Words + 1,
                 kOp, ": expected a state of MT19937, got one with ", left,
                 " words left and the next word ", numbers[kNext]);
  for (int64_t i = 0; i < cpu::kMt19937Words; ++i) {
    state.words[i] = static_cast<uint32_t>(numbers[kFirstWord + i]);
  }
  return state;
}

void write_state(const cpu::Mt19937& state, int64_t* numbers) {
  const auto flags = static_cast<uint64_t>(numbers[kLeft]) >> 32 << 32;
  const auto left = static_cast<uint64_t>(cpu::kMt19937Words + 1 - state.next);
  numbers[kLeft] = static_cast<int64_t>(flags | left);
  numbers[kNext] = state.next;
  for (int64_t i = 0; i < cpu::kMt19937Words; ++i) {
    numbers[kFirstWord + i] = state.words[i];
  }
}

void mt19937_bernoulli_cpu(const Tensor& values,  // any shape
                           const Tensor& state,   // [632]
                           double p) {
  TAL_FAST_CHECK(values.scalar_type() == ScalarType::Float, kOp,
                 ": expected values of dtype float32, got ", dtype_string(values.scalar_type()));
  TAL_FAST_CHECK(values.is_contiguous(), kOp, ": expected values to be contiguous");
  TAL_FAST_CHECK(state.scalar_type() == ScalarType::Long && state.is_contiguous() &&
                     state.dim() == 1 && state.size(0) == kNumbers,
                 kOp, ": expected state to be contiguous int64 of shape [632], got ",
                 dtype_string(state.scalar_type()), " of shape ", shape_string(state));
  TAL_FAST_CHECK(p >= 0 && p <= 1, kOp, ": expected p in [0, 1], got ", p);
  if (values.numel() == 0) {
    return;
  }
  auto* numbers = mutable_data<int64_t>(state);
  cpu::Mt19937 words = read_state(numbers);
  // Exact: a power of two only moves the exponent.
  const auto threshold = static_cast<uint64_t>(std::ceil(p * 0x1p53));
  TAL_FAST_ISA_CALL(mt19937_bernoulli)(words, threshold, values.numel(),
                                       mutable_data<float>(values));
  write_state(words, numbers);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tal_fast, m) {
  m.def("mt19937_bernoulli_(Tensor(a!) values, Tensor(b!) state, float p) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tal_fast, CPU, m) {
  m.impl("mt19937_bernoulli_", TORCH_BOX(&mt19937_bernoulli_cpu));
}

}  // namespace tal_fast
