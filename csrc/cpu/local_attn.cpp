// SPDX-License-Identifier: Apache-2.0
// A unit goes through its rows in steps: copies the rows that come into reach, and everything is
// then a product with a band (local_attn_band.h) or a softmax of one (local_attn_softmax.h).
// Meanwhile it asks for the memory of the next step.
//
// Products and softmax are compiled for the compute types alone: rows of 16 bits are widened as
// they are copied, and results of 16 bits are rounded from scratch.
#include "cpu/local_attn.h"

#include <type_traits>

#include "cpu/local_attn_softmax.h"

namespace tal_fast::cpu {
namespace TAL_FAST_ISA_NAMESPACE {
namespace {

// ---- units and steps ----------------------------------------------------------------------------

struct Unit {
  int64_t b;
  int64_t h;
  Range range;
};

inline Unit unit_at(const LocalAttnShape& shape, int64_t block, int64_t unit) {
  const int64_t blocks = (shape.rows + block - 1) / block;
  const int64_t first = unit / shape.heads % blocks * block;
  return {
      unit / shape.heads / blocks, unit % shape.heads, {first, least(first + block, shape.rows)}};
}

inline bool all_padding(const LocalAttnShape& shape, const bool* padding, const Unit& unit) {
  if (padding == nullptr) {
    return false;
  }
  for (int64_t t = unit.range.begin; t < unit.range.end; ++t) {
    if (!padding[unit.b * shape.rows + t]) {
      return false;
    }
  }
  return true;
}

// Rows of a step, a multiple of the tiles' rows: what it reads fits into the second-level cache
// beside what is on its way for the next one.
constexpr int64_t kStepRows = 24;
// Steps between two moves of rows in scratch.
constexpr int64_t kStepsPerMove = 3;

inline Range step_at(int64_t begin, Range span) {
  return {begin, least(begin + kStepRows, span.end)};
}

// Rows to keep where a step reaches `half` rows to both sides. Wide windows move as many as they
// keep, so that moves stay rare.
inline int64_t kept_rows(const LocalAttnShape& shape, int64_t most_rows) {
  const int64_t reach = 2 * shape.half;
  return least(reach + most(kStepsPerMove * kStepRows, reach), most_rows);
}

// The rows of others that a step reads first. `first`: it is the first step of its unit.
inline Range fresh_others(const LocalAttnShape& shape, Range step, bool first) {
  const Range others = step.widened(shape.half, shape.rows);
  return first ? others : Range{step.begin + shape.half, others.end};
}

// ---- results ------------------------------------------------------------------------------------

template <typename T>
Output<T> output(const LocalAttnShape& shape, const Unit& unit, T* tensor) {
  const int64_t row_stride = shape.heads * shape.channels;
  return {tensor + unit.b * shape.rows * row_stride + unit.h * shape.channels, row_stride,
          shape.channels};
}

template <typename T>
void put_zeros(const Output<T>& out, int64_t t) {
  T* row = out.data + t * out.row_stride;
  for (int64_t d = 0; d < out.channels; ++d) {
    row[d] = narrow<T>(0);
  }
}

template <typename T>
void put_zeros(const LocalAttnShape& shape, const Unit& unit, T* tensor) {
  for (int64_t t = unit.range.begin; tensor != nullptr && t < unit.range.end; ++t) {
    put_zeros(output(shape, unit, tensor), t);
  }
}

// Where sums that are rounded to 16 bits wait: rows of whole vectors.
template <typename T, typename C = ComputeType<T>>
C* take_sums(Carver& carver, const LocalAttnShape& shape) {
  return std::is_same_v<T, C> ? nullptr
                              : carver.take<C>(kStepRows * round_up(shape.channels, kFullLanes<C>));
}

// Writes the weighted sums, times `scale`, to rows of a result; rows of padding are zero. `sums`:
// what take_sums() took.
template <typename T, typename C = ComputeType<T>>
void put_sums(const LocalAttnShape& shape, const bool* padding, const Unit& unit, Range range,
              const Weights<C>& weights, const Rows<C>& source, C scale, T* tensor, C* sums,
              Ahead& ahead) {
  const Output<T> out = output(shape, unit, tensor);
  if constexpr (std::is_same_v<T, C>) {
    band_sums(weights, source, range, shape.rows, shape.half, scale, out, ahead);
  } else {
    const int64_t stride = source.stride;
    for (int64_t first = range.begin; first < range.end; first += kStepRows) {
      const Range some = step_at(first, range);
      band_sums(weights, source, some, shape.rows, shape.half, scale,
                Output<C>{sums - first * stride, stride, stride}, ahead);
      for (int64_t t = some.begin; t < some.end; ++t) {
        narrow_row(sums + (t - first) * stride, shape.channels, out.data + t * out.row_stride);
      }
    }
  }
  // A row of NaN among those that see it gives a NaN here too.
  for (int64_t t = range.begin; padding != nullptr && t < range.end; ++t) {
    if (padding[unit.b * shape.rows + t]) {
      put_zeros(out, t);
    }
  }
}

template <typename C>
C score_scale(const LocalAttnShape& shape) {
  return static_cast<C>(1.0 / __builtin_sqrt(static_cast<double>(shape.channels)));
}

// ---- what is asked for ahead --------------------------------------------------------------------

template <typename T>
void ask_for_input(const LocalAttnShape& shape, const LocalAttnInput<T>& input, const Unit& unit,
                   Range range, Ahead& ahead) {
  if (input.channel_stride == 1) {
    constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
    ahead.add(input.data + unit.b * input.batch_stride + unit.h * input.head_stride,
              input.row_stride * kBytes, shape.channels * kBytes, range);
  }
}

// A store that misses the caches waits for its line as well.
template <typename T>
void ask_for_output(const LocalAttnShape& shape, T* tensor, const Unit& unit, Range range,
                    Ahead& ahead) {
  if (tensor != nullptr) {
    constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
    const Output<T> out = output(shape, unit, tensor);
    ahead.add(out.data, out.row_stride * kBytes, out.channels * kBytes, range);
  }
}

// ---- forward ------------------------------------------------------------------------------------

template <typename T>
class Forward {
  using C = ComputeType<T>;

 public:
  Forward(const LocalAttnForward<T>& call, int64_t block, std::byte* memory)
      : call_(call), shape_(call.shape) {
    Carver carver(memory);
    const int64_t seen = kept_rows(shape_, block + 2 * shape_.half);
    query_ = take_rows<C>(carver, shape_, kStepRows);
    key_ = take_rows<C>(carver, shape_, seen);
    value_ = take_rows<C>(carver, shape_, seen);
    band_ = take_band<C>(carver, shape_, kStepRows);
    hidden_ = take_hidden<C>(carver, shape_, kStepRows);
    sums_ = take_sums<T>(carver, shape_);
    bytes_ = carver.used();
  }

  size_t bytes() const { return bytes_; }

  // `following`: the unit that comes next, or null.
  void run(const Unit& unit, const Unit* following) {
    const Range seen = unit.range.widened(shape_.half, shape_.rows);
    key_.restart(seen.begin);
    value_.restart(seen.begin);
    for (int64_t t = unit.range.begin; t < unit.range.end; t += kStepRows) {
      const Range step = step_at(t, unit.range);
      Ahead ahead;
      if (step.end < unit.range.end) {
        ask_for(unit, step_at(step.end, unit.range), false, ahead);
      } else if (following != nullptr) {
        ask_for(*following, step_at(following->range.begin, following->range), true, ahead);
      }
      ahead.spread_over(dot_tiles(step, shape_.half, kDotKeys<C>) +
                        sum_tiles(step, value_.stride, kFullLanes<C>));
      run_step(unit, step, ahead);
    }
  }

  void put_zeros_for(const Unit& unit) const {
    put_zeros(shape_, unit, call_.out);
    if (call_.weights != nullptr) {
      for (int64_t t = unit.range.begin; t < unit.range.end; ++t) {
        C* row = kept_row(shape_, call_.weights, unit.b, t, unit.h);
        for (int64_t j = 0; j < shape_.window(); ++j) {
          row[j] = 0;
        }
      }
    }
  }

 private:
  void ask_for(const Unit& unit, Range step, bool first, Ahead& ahead) const {
    const Range others = fresh_others(shape_, step, first);
    ask_for_input(shape_, call_.query, unit, step, ahead);
    ask_for_input(shape_, call_.key, unit, others, ahead);
    ask_for_input(shape_, call_.value, unit, others, ahead);
    ask_for_output(shape_, call_.out, unit, step, ahead);
  }

  void run_step(const Unit& unit, Range step, Ahead& ahead) {
    const Range seen = step.widened(shape_.half, shape_.rows);
    query_.restart(step.begin);
    band_.rows.restart(step.begin);
    copy_rows(shape_, call_.query, unit.b, unit.h, call_.padding, step, score_scale<C>(shape_),
              query_);
    copy_rows(shape_, call_.key, unit.b, unit.h, call_.padding, key_.extend(seen.begin, seen.end),
              C(1), key_);
    copy_rows(shape_, call_.value, unit.b, unit.h, call_.padding,
              value_.extend(seen.begin, seen.end), C(1), value_);
    mark_hidden(shape_, call_.padding, unit.b, step, hidden_);
    band_dots(query_, key_, step, shape_.rows, band_, ahead);
    band_softmax(shape_, hidden_, step, band_);
    if (call_.weights != nullptr) {
      keep_weights(shape_, unit.b, unit.h, step, band_, call_.weights);
    }
    put_sums(shape_, call_.padding, unit, step, along(band_), value_, C(1), call_.out, sums_,
             ahead);
  }

  const LocalAttnForward<T>& call_;
  const LocalAttnShape shape_;
  Rows<C> query_, key_, value_;
  Band<C> band_;
  C* hidden_;
  C* sums_;
  size_t bytes_;
};

// ---- backward -----------------------------------------------------------------------------------

// Goes through the rows that see a row of the unit. The gradient of a query is known at once, those
// of a key and a value when all rows that see it have passed.
template <typename T>
class Backward {
  using C = ComputeType<T>;

 public:
  Backward(const LocalAttnBackward<T>& call, int64_t block, std::byte* memory)
      : call_(call), shape_(call.shape) {
    Carver carver(memory);
    const int64_t rows = kept_rows(shape_, block + 4 * shape_.half);
    query_ = take_rows<C>(carver, shape_, rows);
    grad_ = take_rows<C>(carver, shape_, rows);
    key_ = take_rows<C>(carver, shape_, rows);
    value_ = take_rows<C>(carver, shape_, rows);
    weights_ = take_band<C>(carver, shape_, rows);
    scores_ = take_band<C>(carver, shape_, rows);
    hidden_ = take_hidden<C>(carver, shape_, kStepRows);
    sums_ = take_sums<T>(carver, shape_);
    bytes_ = carver.used();
  }

  size_t bytes() const { return bytes_; }

  // `following`: the unit that comes next, or null.
  void run(const Unit& unit, const Unit* following) {
    const Range span = unit.range.widened(shape_.half, shape_.rows);
    for (Rows<C>* rows : {&query_, &grad_, &weights_.rows, &scores_.rows}) {
      rows->restart(span.begin);
    }
    for (Rows<C>* rows : {&key_, &value_}) {
      rows->restart(span.widened(shape_.half, shape_.rows).begin);
    }
    for (int64_t t = span.begin; t < span.end; t += kStepRows) {
      const Range step = step_at(t, span);
      Ahead ahead;
      if (step.end < span.end) {
        ask_for(unit, step_at(step.end, span), false, ahead);
      } else if (following != nullptr) {
        const Range wide = following->range.widened(shape_.half, shape_.rows);
        ask_for(*following, step_at(wide.begin, wide), true, ahead);
      }
      ahead.spread_over(dot_tiles(step, shape_.half, kDotKeys<C>) * (recomputes() ? 2 : 1) +
                        sum_tiles(step, key_.stride, kFullLanes<C>) * 3);
      run_step(unit, step, ahead);
    }
  }

  void put_zeros_for(const Unit& unit) const {
    put_zeros(shape_, unit, call_.grad_query);
    put_zeros(shape_, unit, call_.grad_key);
    put_zeros(shape_, unit, call_.grad_value);
  }

 private:
  bool recomputes() const { return call_.weights == nullptr; }

  // Of the unit's rows, those that no row behind the step sees and some row before did.
  Range finished(const Unit& unit, Range step) const {
    const int64_t end = step.end == shape_.rows ? shape_.rows : step.end - shape_.half;
    return Range{step.begin - shape_.half, end}.within(unit.range);
  }

  void ask_for(const Unit& unit, Range step, bool first, Ahead& ahead) const {
    const Range others = fresh_others(shape_, step, first);
    ask_for_input(shape_, call_.query, unit, step, ahead);
    ask_for_input(shape_, call_.grad, unit, step, ahead);
    ask_for_input(shape_, call_.key, unit, others, ahead);
    ask_for_input(shape_, call_.value, unit, others, ahead);
    ask_for_output(shape_, call_.grad_query, unit, step.within(unit.range), ahead);
    ask_for_output(shape_, call_.grad_key, unit, finished(unit, step), ahead);
    ask_for_output(shape_, call_.grad_value, unit, finished(unit, step), ahead);
  }

  void copy_step(const Unit& unit, Range step) {
    const Range seen = step.widened(shape_.half, shape_.rows);
    const int64_t reach = most(step.begin - 2 * shape_.half, query_.first);
    const auto copy = [&](const LocalAttnInput<T>& input, Range range, C scale, Rows<C>& rows) {
      copy_rows(shape_, input, unit.b, unit.h, call_.padding, range, scale, rows);
    };
    copy(call_.query, query_.extend(reach, step.end), score_scale<C>(shape_), query_);
    copy(call_.grad, grad_.extend(reach, step.end), C(1), grad_);
    copy(call_.key, key_.extend(seen.begin, seen.end), C(1), key_);
    copy(call_.value, value_.extend(seen.begin, seen.end), C(1), value_);
    weights_.rows.extend(reach, step.end);
    scores_.rows.extend(reach, step.end);
    mark_hidden(shape_, call_.padding, unit.b, step, hidden_);
  }

  void run_step(const Unit& unit, Range step, Ahead& ahead) {
    const auto put = [&](Range range, const Weights<C>& weights, const Rows<C>& source, C scale,
                         T* tensor) {
      if (tensor != nullptr) {
        put_sums(shape_, call_.padding, unit, range, weights, source, scale, tensor, sums_, ahead);
      }
    };
    copy_step(unit, step);
    if (recomputes()) {
      band_dots(query_, key_, step, shape_.rows, weights_, ahead);
      band_softmax(shape_, hidden_, step, weights_);
    } else {
      read_weights(shape_, unit.b, unit.h, step, call_.weights, weights_);
    }
    put(finished(unit, step), across(weights_), grad_, C(1), call_.grad_value);
    if (call_.grad_query == nullptr && call_.grad_key == nullptr) {
      return;
    }
    band_dots(grad_, value_, step, shape_.rows, scores_, ahead);
    band_softmax_backward(shape_, hidden_, step, weights_, scores_);
    put(step.within(unit.range), along(scores_), key_, score_scale<C>(shape_), call_.grad_query);
    // The copied queries are scaled already.
    put(finished(unit, step), across(scores_), query_, C(1), call_.grad_key);
  }

  const LocalAttnBackward<T>& call_;
  const LocalAttnShape shape_;
  Rows<C> query_, grad_, key_, value_;
  Band<C> weights_, scores_;
  C* hidden_;
  C* sums_;
  size_t bytes_;
};

template <typename Pass, typename Call>
void run_units(const Call& call, int64_t begin, int64_t end, std::byte* scratch) {
  Pass pass(call, call.block, scratch);
  for (int64_t number = begin; number < end; ++number) {
    const Unit unit = unit_at(call.shape, call.block, number);
    if (all_padding(call.shape, call.padding, unit)) {
      pass.put_zeros_for(unit);
      continue;
    }
    const Unit following = unit_at(call.shape, call.block, number + 1);
    pass.run(unit, number + 1 < end ? &following : nullptr);
  }
}

}  // namespace

template <typename T>
size_t local_attn_scratch(const LocalAttnShape& shape, int64_t block, bool backward) {
  if (backward) {
    LocalAttnBackward<T> call = {};
    call.shape = shape;
    return Backward<T>(call, block, nullptr).bytes();
  }
  LocalAttnForward<T> call = {};
  call.shape = shape;
  return Forward<T>(call, block, nullptr).bytes();
}

template <typename T>
void local_attn_forward(const LocalAttnForward<T>& call, int64_t unit_begin, int64_t unit_end,
                        std::byte* scratch) {
  run_units<Forward<T>>(call, unit_begin, unit_end, scratch);
}

template <typename T>
void local_attn_backward(const LocalAttnBackward<T>& call, int64_t unit_begin, int64_t unit_end,
                         std::byte* scratch) {
  run_units<Backward<T>>(call, unit_begin, unit_end, scratch);
}

#define TAL_FAST_INSTANTIATE(T)                                                                  \
  template size_t local_attn_scratch<T>(const LocalAttnShape&, int64_t, bool);                   \
  template void local_attn_forward<T>(const LocalAttnForward<T>&, int64_t, int64_t, std::byte*); \
  template void local_attn_backward<T>(const LocalAttnBackward<T>&, int64_t, int64_t, std::byte*);
TAL_FAST_INSTANTIATE(double)
TAL_FAST_INSTANTIATE(float)
TAL_FAST_INSTANTIATE(Half)
TAL_FAST_INSTANTIATE(BFloat16)

}  // namespace TAL_FAST_ISA_NAMESPACE
}  // namespace tal_fast::cpu
