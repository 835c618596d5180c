// SPDX-License-Identifier: Apache-2.0
// Kernels of local_attn. A block owns some rows of one head, a warp four of them: rows of the
// output or, in the backward, of a gradient, so that no two threads add to one number. The rows
// that they meet pass through shared memory in chunks; most windows fit into one. For dots a lane
// takes one of these rows, for weighted sums some of the channels.
#pragma once

#include "cuda/platform.cuh"
#include "math/elementary.h"
#include "math/local_attn.h"

namespace tal_fast {

enum class LocalAttnPass {
  kForward,  // out
  kQuery,    // grad_query, and what kKeys needs to know of each row
  kKeys,     // grad_key and grad_value
};

// What a row's softmax divides by, and its mean gradient: each [B, H, T].
template <typename C>
struct LocalAttnRowSums {
  C* highest;
  C* inverse;
  C* mean;
};

template <typename T, LocalAttnPass kPass>
struct LocalAttnKernel {
  using C = ComputeType<T>;

  static constexpr const char* kName = kPass == LocalAttnPass::kForward ? "local_attn forward"
                                       : kPass == LocalAttnPass::kQuery
                                           ? "local_attn backward, rows"
                                           : "local_attn backward, keys";
  static constexpr int kThreads = 128;
  static constexpr int kBlocks = 3;
  static constexpr int kMostWarps = kThreads / kWarp;
  static constexpr int kRows = 4;                                      // of a warp
  static constexpr bool kTwo = kPass == LocalAttnPass::kKeys;          // results
  static constexpr bool kGradient = kPass != LocalAttnPass::kForward;  // second dots
  static constexpr int kPack = kPackSize<C> < kRows ? kPackSize<C> : kRows;
  // Channels of a lane at a time: what registers are enough for.
  static constexpr int kParts = sizeof(C) == sizeof(double) ? 2 : 4;

  LocalAttnShape shape;
  // The rows that are owned: their dots with the others give scores, and gradients of weights.
  LocalAttnInput<T> owned;           // q; q; k
  LocalAttnInput<T> owned_gradient;  // -; grad; v
  LocalAttnInput<T> others;          // k; k; q
  LocalAttnInput<T> others_second;   // v; v; grad
  const bool* padding;               // [B, T], or null
  int warps;                         // of a block: fewer if there are many channels
  int chunk;                         // rows in shared memory at a time
  LocalAttnRowSums<C> row_sums;
  T* out;         // [B, T, H, D]: out; grad_query; grad_key. Null: not wanted ...
  T* out_second;  // ... but for out; grad_value in kKeys

  // Channels in shared memory: owned rows in packs; an odd stride spreads the others over the
  // banks.
  static int64_t padded(int64_t channels) {
    return (channels + kPackSize<C> - 1) / kPackSize<C> * kPackSize<C>;
  }

  static SharedSize shared_size(int64_t channels, int64_t warps, int64_t chunk) {
    const int64_t owned = warps * kRows;
    const int64_t width = padded(channels);
    SharedSize size;
    size.take<C>(owned * width);
    size.take<C>(kGradient ? owned * width : 0);
    size.take<C>(owned * channels);
    size.take<C>(kTwo ? owned * channels : 0);
    size.take<C>(warps * kWarp * kRows);
    size.take<C>(kTwo ? warps * kWarp * kRows : 0);
    size.take<C>(chunk * (width | 1));
    return size.take<C>(chunk * (width | 1));
  }

  // What a warp knows of its rows, the same in all lanes.
  struct State {
    int64_t first;       // row
    bool hidden[kRows];  // padding, or behind the video
    C highest[kRows];
    C sum[kRows];
    C mean[kRows];  // of the weights' gradients; times `sum` until all are known
  };

  TAL_FAST_DEVICE void operator()() const {
    const auto channels = static_cast<int>(shape.channels);
    const int width = (channels + kPackSize<C> - 1) / kPackSize<C> * kPackSize<C>;
    const int stride = width | 1;
    const int owned_rows = warps * kRows;
    SharedMemory memory;
    const Shared<C> own = memory.take<C>(owned_rows * width);
    const Shared<C> own_gradient = memory.take<C>(kGradient ? owned_rows * width : 0);
    const Shared<C> sums = memory.take<C>(owned_rows * channels);
    const Shared<C> sums_second = memory.take<C>(kTwo ? owned_rows * channels : 0);
    const Shared<C> weights = memory.take<C>(warps * kWarp * kRows) + warp_index() * kWarp * kRows;
    const Shared<C> weights_second = memory.take<C>(kTwo ? warps * kWarp * kRows : 0) +
                                     (kTwo ? warp_index() * kWarp * kRows : 0);
    const Shared<C> other = memory.take<C>(chunk * stride);
    const Shared<C> other_second = memory.take<C>(chunk * stride);

    const int64_t blocks = (shape.rows + owned_rows - 1) / owned_rows;
    const int64_t h = blockIdx.x % shape.heads;
    const int64_t b = blockIdx.x / shape.heads / blocks;
    const int64_t first = blockIdx.x / shape.heads % blocks * owned_rows;
    const C scale = C(1) / TAL_FAST_C_FUNCTION(sqrt)(static_cast<double>(channels));
    const int64_t own_end = first + owned_rows < shape.rows ? first + owned_rows : shape.rows;
    stage(owned, b, h, first, own_end, owned_rows, kPass == LocalAttnPass::kKeys ? C(1) : scale,
          width, width, own);
    if constexpr (kGradient) {
      stage(owned_gradient, b, h, first, own_end, owned_rows, C(1), width, width, own_gradient);
    }
    State state;
    begin(state, b, first + warp_index() * kRows, channels, sums, sums_second);

    const int64_t others_begin = first - shape.half > 0 ? first - shape.half : 0;
    const int64_t others_end =
        own_end + shape.half < shape.rows ? own_end + shape.half : shape.rows;
    constexpr int kRounds = kPass == LocalAttnPass::kQuery ? 2 : 1;
    for (int round = 0; round < kRounds && (round == 0 || out != nullptr); ++round) {
      for (int64_t c0 = others_begin; c0 < others_end; c0 += chunk) {
        const int64_t c1 = c0 + chunk < others_end ? c0 + chunk : others_end;
        if (round == 0 || others_end - others_begin > chunk) {
          __syncthreads();  // the chunk before has been read
          stage(others, b, h, c0, c1, static_cast<int>(c1 - c0),
                kPass == LocalAttnPass::kKeys ? scale : C(1), width, stride, other);
          stage(others_second, b, h, c0, c1, static_cast<int>(c1 - c0), C(1), width, stride,
                other_second);
          __syncthreads();
        }
        const int64_t least = state.first - shape.half;
        const int64_t most = state.first + kRows + shape.half;
        const int64_t begin = least > c0 ? least : c0;
        const int64_t end = most < c1 ? most : c1;
        for (int64_t column = begin; column < end; column += kWarp) {
          const int count = static_cast<int>(end - column < kWarp ? end - column : kWarp);
          const int from = static_cast<int>(column - c0);
          C scores[kRows] = {};
          C gradients[kRows] = {};
          dots(own, other, width, stride, from, count, scores);
          if constexpr (kGradient) {
            dots(own_gradient, other_second, width, stride, from, count, gradients);
          }
          const bool seen = lane_index() < count && !is_hidden(b, column + lane_index());
          if constexpr (kPass == LocalAttnPass::kForward) {
            C kept[kRows];
            first_weights(state, column, seen, scores, gradients, kept);
            store_weights(weights, scores);
            add_rows(state, column, count, channels, weights, other_second + from * stride, stride,
                     kept, sums);
          } else if constexpr (kPass == LocalAttnPass::kQuery) {
            if (round == 0) {
              C kept[kRows];
              first_weights(state, column, seen, scores, gradients, kept);
            } else {
              second_weights(state, column, seen, scores, gradients);
              store_weights(weights, scores);
              add_rows(state, column, count, channels, weights, other + from * stride, stride,
                       nullptr, sums);
            }
          } else {
            column_weights(state, b, h, column, seen, scores, gradients);
            store_weights(weights, scores);
            store_weights(weights_second, gradients);
            if (out_second != nullptr) {
              add_rows(state, column, count, channels, weights, other_second + from * stride,
                       stride, nullptr, sums_second);
            }
            if (out != nullptr) {
              add_rows(state, column, count, channels, weights_second, other + from * stride,
                       stride, nullptr, sums);
            }
          }
        }
      }
      if (kPass == LocalAttnPass::kQuery && round == 0) {
        finish_row_sums(state, b, h);
      }
    }
    write(state, b, h, channels, kPass == LocalAttnPass::kQuery ? scale : C(1), sums, out);
    if constexpr (kTwo) {
      write(state, b, h, channels, C(1), sums_second, out_second);
    }
  }

  TAL_FAST_DEVICE bool is_hidden(int64_t b, int64_t row) const {
    return row >= shape.rows || (padding != nullptr && padding[b * shape.rows + row]);
  }

  TAL_FAST_DEVICE bool in_band(int64_t a, int64_t b) const {
    return a - b <= shape.half && b - a <= shape.half;
  }

  TAL_FAST_DEVICE static C exp_of(C x) {
    if constexpr (sizeof(C) == sizeof(float)) {
      return TAL_FAST_C_FUNCTION(expf)(x);
    } else {
      return TAL_FAST_C_FUNCTION(exp)(x);
    }
  }

  // Rows [begin, end), times `scale`, and zeros up to `count` rows of `width` channels. Rows of
  // padding are zero.
  TAL_FAST_DEVICE void stage(const LocalAttnInput<T>& input, int64_t b, int64_t h, int64_t begin,
                             int64_t end, int count, C scale, int width, int stride,
                             Shared<C> target) const {
    const T* source = input.data + b * input.batch_stride + h * input.head_stride;
    for (int r = warp_index(); r < count; r += warps) {
      const int64_t row = begin + r;
      const bool zero = row >= end || is_hidden(b, row);
      for (int d = lane_index(); d < width; d += kWarp) {
        C value = 0;
        if (!zero && d < shape.channels) {
          value = widen(source[row * input.row_stride + d * input.channel_stride]) * scale;
        }
        target.store(r * stride + d, value);
      }
    }
  }

  TAL_FAST_DEVICE void begin(State& state, int64_t b, int64_t first, int channels, Shared<C> sums,
                             Shared<C> sums_second) const {
    state.first = first;
    for (int r = 0; r < kRows; ++r) {
      state.hidden[r] = is_hidden(b, first + r);
      state.highest[r] = -infinity();
      state.sum[r] = state.mean[r] = C(0);
      for (int d = lane_index(); d < channels; d += kWarp) {
        const int i = (warp_index() * kRows + r) * channels + d;
        sums.store(i, C(0));
        if constexpr (kTwo) {
          sums_second.store(i, C(0));
        }
      }
    }
  }

  TAL_FAST_DEVICE static C infinity() { return static_cast<C>(bits_to_float(0x7f800000u)); }

  // result[r] = row r of the warp . row `from` + lane of the chunk
  TAL_FAST_DEVICE void dots(Shared<C> own, Shared<C> other, int width, int stride, int from,
                            int count, C (&result)[kRows]) const {
    constexpr int kWidth = kPackSize<C>;
    const int place = (from + (lane_index() < count ? lane_index() : 0)) * stride;
    const int own_row = warp_index() * kRows * width;
    for (int d = 0; d < width; d += kWidth) {
      C values[kWidth];
      for (int j = 0; j < kWidth; ++j) {
        values[j] = other.load(place + d + j);
      }
      for (int r = 0; r < kRows; ++r) {
        const Pack<C, kWidth> pack = own.template load_pack<kWidth>(own_row + r * width + d);
        for (int j = 0; j < kWidth; ++j) {
          result[r] += pack[j] * values[j];
        }
      }
    }
  }

  // Replaces scores by weights that are still to be divided by the sum of all; `kept` is what sums
  // of before must be multiplied by.
  TAL_FAST_DEVICE void first_weights(State& state, int64_t column, bool seen, C (&scores)[kRows],
                                     const C (&gradients)[kRows], C (&kept)[kRows]) const {
    for (int r = 0; r < kRows; ++r) {
      const bool sees = seen && !state.hidden[r] && in_band(state.first + r, column + lane_index());
      // A NaN is no maximum, but it is a weight.
      const C candidate = sees && scores[r] == scores[r] ? scores[r] : static_cast<C>(-infinity());
      const C before = state.highest[r];
      const C here = warp_max(candidate);
      const C highest = before > here ? before : here;
      const C shift = highest > -infinity() ? highest : C(0);
      const C weight = sees ? exp_of(scores[r] - shift) : C(0);
      kept[r] = before > -infinity() ? exp_of(before - highest) : C(1);
      state.highest[r] = highest;
      state.sum[r] = state.sum[r] * kept[r] + warp_sum(weight);
      if constexpr (kPass == LocalAttnPass::kQuery) {
        state.mean[r] = state.mean[r] * kept[r] + warp_sum(sees ? weight * gradients[r] : C(0));
      }
      scores[r] = weight;
    }
  }

  TAL_FAST_DEVICE void finish_row_sums(State& state, int64_t b, int64_t h) const {
    for (int r = 0; r < kRows; ++r) {
      state.sum[r] = C(1) / state.sum[r];
      state.mean[r] *= state.sum[r];
      state.highest[r] = state.highest[r] > -infinity() ? state.highest[r] : C(0);
      if (lane_index() == 0 && state.first + r < shape.rows) {
        const int64_t i = (b * shape.heads + h) * shape.rows + state.first + r;
        row_sums.highest[i] = state.highest[r];
        row_sums.inverse[i] = state.sum[r];
        row_sums.mean[i] = state.mean[r];
      }
    }
  }

  // Replaces scores by their gradients.
  TAL_FAST_DEVICE void second_weights(const State& state, int64_t column, bool seen,
                                      C (&scores)[kRows], const C (&gradients)[kRows]) const {
    for (int r = 0; r < kRows; ++r) {
      const bool sees = seen && !state.hidden[r] && in_band(state.first + r, column + lane_index());
      const C weight = exp_of(scores[r] - state.highest[r]) * state.sum[r];
      scores[r] = sees ? weight * (gradients[r] - state.mean[r]) : C(0);
    }
  }

  // The same for owned keys: replaces scores by weights and gradients of weights by those of
  // scores.
  TAL_FAST_DEVICE void column_weights(const State& state, int64_t b, int64_t h, int64_t column,
                                      bool seen, C (&scores)[kRows], C (&gradients)[kRows]) const {
    const int64_t i = (b * shape.heads + h) * shape.rows + column + (seen ? lane_index() : 0);
    const C highest = row_sums.highest[i];
    const C inverse = row_sums.inverse[i];
    const C mean = row_sums.mean[i];
    for (int r = 0; r < kRows; ++r) {
      const bool sees = seen && !state.hidden[r] && in_band(state.first + r, column + lane_index());
      scores[r] = sees ? exp_of(scores[r] - highest) * inverse : C(0);
      gradients[r] = sees ? scores[r] * (gradients[r] - mean) : C(0);
    }
  }

  TAL_FAST_DEVICE void store_weights(Shared<C> weights, const C (&values)[kRows]) const {
    __syncwarp();  // those of before have been read
    for (int r = 0; r < kRows; ++r) {
      weights.store(lane_index() * kRows + r, values[r]);
    }
    __syncwarp();
  }

  // sums[r] = sums[r] * kept[r] + sum over `count` rows of weight * row. A row that is not in the
  // band is left out: a weight of zero would not keep out a NaN.
  TAL_FAST_DEVICE void add_rows(const State& state, int64_t column, int count, int channels,
                                Shared<C> weights, Shared<C> rows, int stride, const C* kept,
                                Shared<C> sums) const {
    // Columns of all four rows.
    const int64_t full_begin = state.first + kRows - 1 - shape.half - column;
    const int64_t full_end = state.first + shape.half + 1 - column;
    for (int d0 = lane_index(); d0 < channels; d0 += kParts * kWarp) {
      C total[kRows][kParts] = {};
      for (int j = 0; j < count; ++j) {
        C weight[kRows];
        for (int r = 0; r < kRows; r += kPack) {
          const Pack<C, kPack> pack = weights.template load_pack<kPack>(j * kRows + r);
          for (int i = 0; i < kPack; ++i) {
            weight[r + i] = pack[i];
          }
        }
        const bool full = j >= full_begin && j < full_end;
        for (int p = 0; p < kParts; ++p) {
          if (d0 + p * kWarp < channels) {
            const C value = rows.load(j * stride + d0 + p * kWarp);
            for (int r = 0; r < kRows; ++r) {
              if (full || in_band(state.first + r, column + j)) {
                total[r][p] += weight[r] * value;
              }
            }
          }
        }
      }
      for (int p = 0; p < kParts; ++p) {
        if (d0 + p * kWarp < channels) {
          for (int r = 0; r < kRows; ++r) {
            const int i = (warp_index() * kRows + r) * channels + d0 + p * kWarp;
            const C before = kept != nullptr ? sums.load(i) * kept[r] : sums.load(i);
            sums.store(i, before + total[r][p]);
          }
        }
      }
    }
  }

  TAL_FAST_DEVICE void write(const State& state, int64_t b, int64_t h, int channels, C scale,
                             Shared<C> sums, T* target) const {
    if (target == nullptr) {
      return;
    }
    for (int r = 0; r < kRows; ++r) {
      if (state.first + r < shape.rows) {
        T* row = target + ((b * shape.rows + state.first + r) * shape.heads + h) * shape.channels;
        const C factor = kPass == LocalAttnPass::kForward ? C(1) / state.sum[r] : scale;
        for (int d = lane_index(); d < channels; d += kWarp) {
          const C sum = sums.load((warp_index() * kRows + r) * channels + d);
          row[d] = narrow<T>(state.hidden[r] ? C(0) : sum * factor);
        }
      }
    }
  }
};

}  // namespace tal_fast
