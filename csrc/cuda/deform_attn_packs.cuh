// SPDX-License-Identifier: Apache-2.0
// The forward of deform_attn and deform_attn_fused where nothing about the layout is left to ask
// while it runs: rows are whole aligned packs, the lanes of a query and the dtypes of its samples
// are template parameters, indices within a block fit into 32 bits. Such a kernel is bound by the
// instructions it issues, so each that a query need not repeat stands before the loops. The sums
// are those of DeformAttnForward, in its order, and have its bits.
#pragma once

#include "cuda/deform_attn_samples.cuh"

namespace tal_fast {

// Softmax, and what a lane has of it: exp(logit - highest) of its first sample.
struct LaneSoftmax {
  float highest;
  float sum;
  float own;
};

enum class PackPath {
  kOnce,    // staged rows, and no lane has a second sample of a query
  kRounds,  // staged rows, any number of samples
  kGlobal,  // rows in global memory, any number of samples
};

// ---- samples of known dtypes --------------------------------------------------------------------
// A source gives, for the queries of a block and one head, what a lane reads of a sample: the bits
// as they are, which are converted where they are used. A conversion behind each load would wait
// for one load after the other, and a load one query ahead would be waited for at once.

// Locations and reference points are float32: no op takes less, and float64 is for the general
// kernels.

template <typename Weight>
struct TypedGivenSamples {
  static constexpr bool kFused = false;

  const float* locations;  // [B, Q, H, L, P]
  const Weight* weights;   // [B, Q, H, L, P]

  struct Raw {
    float location{};
    Weight weight{};
  };

  // Where a lane is.
  struct Stream {
    const float* location;
    const Weight* weight;
    int to_query;  // from the last sample of the lane in a query to its first one in the next

    template <int kLanes>
    TAL_FAST_DEVICE void step(bool last) {
      const int by = last ? to_query : kLanes;
      location += by;
      weight += by;
    }
    TAL_FAST_DEVICE Raw fetch(int) const { return {read(location), read(weight)}; }
  };

  // At sample k of query q of batch element b and head h; `queries` lie between two of a lane, and
  // `rounds` are behind it when it goes from one to the next.
  TAL_FAST_DEVICE Stream stream(const DeformAttnSizes& sizes, int64_t b, int64_t q, int64_t h,
                                int k, int queries, int rounds) const {
    const int64_t at = sizes.unit(b, q, h) * sizes.samples + k;
    const int stride = static_cast<int>(sizes.heads) * sizes.samples;
    return {locations + at, weights + at, pinned(queries * stride - rounds)};
  }
  template <int kLanes, bool kOnce>
  TAL_FAST_DEVICE LaneSoftmax softmax(const Stream&, const Raw&, int, int) const {
    return {};
  }
  TAL_FAST_DEVICE float location(const Raw& raw, float) const { return raw.location; }
  template <bool kOnce>
  TAL_FAST_DEVICE float weight(const Raw& raw, const LaneSoftmax&) const {
    return widen(raw.weight);
  }
};

template <typename Projected>
struct TypedProjectedSamples {
  static constexpr bool kFused = true;

  const Projected* offsets;  // as ProjectedSamples has them
  int64_t offsets_batch_stride, offsets_query_stride;
  const Projected* logits;
  int64_t logits_batch_stride, logits_query_stride;
  const float* reference;
  int64_t reference_batch_stride, reference_query_stride;
  int components;
  float part;

  struct Raw {
    Projected offset{};
    Projected logit{};
    float centre{};
    float width{};
  };

  struct Stream {
    const Projected* offset;
    const Projected* logit;
    const float* reference;  // of the query's first level
    int offset_to_query, logit_to_query, reference_to_query;
    int components;

    template <int kLanes>
    TAL_FAST_DEVICE void step(bool last) {
      offset += last ? offset_to_query : kLanes;
      logit += last ? logit_to_query : kLanes;
      reference += last ? reference_to_query : 0;
    }
    TAL_FAST_DEVICE Raw fetch(int level) const {
      const float* at = reference + level * components;
      return {read(offset), read(logit), read(at), components == 2 ? read(at + 1) : 0.0f};
    }
  };

  TAL_FAST_DEVICE Stream stream(const DeformAttnSizes& sizes, int64_t b, int64_t q, int64_t h,
                                int k, int queries, int rounds) const {
    const int64_t sample = h * sizes.samples + k;
    return {offsets + (b * offsets_batch_stride + q * offsets_query_stride + sample),
            logits + (b * logits_batch_stride + q * logits_query_stride + sample),
            reference + (b * reference_batch_stride + q * reference_query_stride),
            pinned(queries * static_cast<int>(offsets_query_stride) - rounds),
            pinned(queries * static_cast<int>(logits_query_stride) - rounds),
            pinned(queries * static_cast<int>(reference_query_stride)),
            components};
  }
  // The steps of ProjectedSamples::softmax, whose bits they have. `samples` is 0 without a query.
  template <int kLanes, bool kOnce>
  TAL_FAST_DEVICE LaneSoftmax softmax(const Stream& stream, const Raw& own, int lane,
                                      int samples) const {
    const float logit = lane < samples ? widen(own.logit) : -INFINITY;
    float highest = logit;
    if constexpr (!kOnce) {
      for (int k = kLanes; lane + k < samples; k += kLanes) {
        const float x = widen(read(stream.logit + k));
        highest = x > highest ? x : highest;
      }
    }
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, highest, offset);
      highest = other > highest ? other : highest;
    }
    const float exponential = lane < samples ? softmax_exp(logit - highest) : 0.0f;
    float sum = exponential;
    if constexpr (!kOnce) {
      for (int k = kLanes; lane + k < samples; k += kLanes) {
        sum += softmax_exp(widen(read(stream.logit + k)) - highest);
      }
    }
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    return {highest, sum, exponential};
  }
  TAL_FAST_DEVICE float location(const Raw& raw, float length) const {
    const float offset = widen(raw.offset);
    return components == 1 ? raw.centre + offset / length
                           : raw.centre + offset * (raw.width * part);
  }
  template <bool kOnce>
  TAL_FAST_DEVICE float weight(const Raw& raw, const LaneSoftmax& softmax) const {
    return (kOnce ? softmax.own : softmax_exp(widen(raw.logit) - softmax.highest)) / softmax.sum;
  }
};

// ---- the kernel ---------------------------------------------------------------------------------

// A lane works with 1 << kLog2 - 1 neighbours on the left taps of a query, and as many lanes on the
// right ones, as in deform_attn_lanes.cuh.
template <typename T, typename Source, int kLog2, PackPath kPath>
struct DeformAttnForwardPacks {
  static constexpr bool kStaged = kPath != PackPath::kGlobal;
  static constexpr const char* kName =
      Source::kFused ? (kPath == PackPath::kOnce     ? "deform_attn_fused forward, packs once"
                        : kPath == PackPath::kRounds ? "deform_attn_fused forward, packs in rounds"
                                                     : "deform_attn_fused forward, global packs")
                     : (kPath == PackPath::kOnce     ? "deform_attn forward, packs once"
                        : kPath == PackPath::kRounds ? "deform_attn forward, packs in rounds"
                                                     : "deform_attn forward, global packs");
  static constexpr int kThreads = kStaged ? 1024 : 256;
  static constexpr int kBlocks = kStaged ? 1 : 4;

  static constexpr int N = kPackSize<T>;
  static constexpr int kLanes = 1 << kLog2;
  static constexpr int kWidth = N << kLog2;  // channels of a slice
  static constexpr int kInFlight = 4;        // loads of a lane; sums do not depend on it

  DeformAttnSizes sizes;
  Source source;
  const T* value;       // [B, S, H, D]
  const bool* padding;  // [B, S] or null
  T* out;               // [B, Q, H, D]
  int slices;
  int heads_and_slices;  // B * H * slices
  int whole;
  int queries_per_block;
  int query_blocks;
  int per_point;  // 65536 / points, rounded up: k / points is k * per_point >> 16
  Levels levels;

  // Where there are more heads and slices than blocks at a time, a block takes `whole` of them, one
  // after the other; then `query_blocks` blocks share each of the rest.
  TAL_FAST_DEVICE void operator()() const {
    const int block = static_cast<int>(blockIdx.x);
#if defined(__CUDACC__)
#pragma unroll 1
#endif
    for (int turn = 0; turn <= whole; ++turn) {
      const bool all = turn < whole;
      const int index = turn * static_cast<int>(gridDim.x) + (all ? block : block / query_blocks);
      const int64_t first = all ? 0 : int64_t{block % query_blocks} * queries_per_block;
      const int64_t behind = all ? sizes.queries : first + queries_per_block;
      if (index >= heads_and_slices) {
        return;
      }
      if (turn > 0) {
        __syncthreads();  // rows take the place of those of the turn before
      }
      run(index, first,
          static_cast<int>((behind < sizes.queries ? behind : sizes.queries) - first));
    }
  }

 private:
  TAL_FAST_DEVICE void run(int index, int64_t first, int count) const {
    const int pair = index / slices;
    const int64_t b = pair / static_cast<int>(sizes.heads);
    const int64_t h = pair % static_cast<int>(sizes.heads);
    const int lane = static_cast<int>(threadIdx.x) & (kLanes - 1);
    const int channel = index % slices * kWidth + lane * N;
    const int stride = pinned(static_cast<int>(sizes.heads * sizes.channels));
    const T* rows = value + (b * sizes.rows * sizes.heads + h) * sizes.channels + channel;
    const bool* padded = padding == nullptr ? nullptr : padding + b * sizes.rows;
    const Here here = {b, h, first, count, channel};
    if constexpr (kStaged) {
      SharedMemory shared;
      const Shared<T> memory = shared.take<T>((static_cast<int>(sizes.rows) + 1) * kWidth);
      const Shared<T> column = memory + lane * N;
      stage(column, rows, stride, padded);
      constexpr int kRowBytes = kWidth * static_cast<int>(sizeof(T));
      const PinnedShared<T> packs(column);
      attend(
          here, [](int row) { return (1 + row) * kRowBytes; }, 0,
          [&](int place) { return packs.load(place); });
    } else {
      const T* from = pinned(rows);
      attend(
          here,
          [&](int row) { return padded != nullptr && read(padded + row) ? -1 : row * stride; }, -1,
          [&](int place) { return read_or_zeros(from, place); });
    }
  }

  // What a block works on.
  struct Here {
    int64_t b, h;
    int64_t first;  // query
    int count;      // of queries
    int channel;    // the lane's first
  };

  struct Sample {
    int k;           // those from sizes.samples on do not exist
    int level;       // its level, ...
    int start;       // whose first row this is
    int length;      // and whose rows these are
    float as_float;  // the same
  };

  TAL_FAST_DEVICE Sample sample_of(int k) const {
    const int level = k < sizes.samples ? k * per_point >> 16 : 0;
    const Level& of = levels.inside[level];
    return {k, level, static_cast<int>(of.start), of.length, static_cast<float>(of.length)};
  }

  // A row of zeros, which stands for all that there is not, and the slice's rows behind it.
  TAL_FAST_DEVICE void stage(Shared<T> column, const T* rows, int stride,
                             const bool* padded) const {
    int row = static_cast<int>(threadIdx.x) >> kLog2;
    const int step = static_cast<int>(blockDim.x) >> kLog2;
    const int jump = pinned(step * stride);
    const T* from = rows + int64_t{row} * stride;
    if (row == 0) {
      column.template store_pack<N>(0, Pack<T, N>{});
    }
    for (; row < static_cast<int>(sizes.rows); row += step, from += jump) {  // hot: stage
      if (padded != nullptr && read(padded + row)) {
        column.template store_pack<N>((row + 1) * kWidth, Pack<T, N>{});
      } else {
        column.copy_async((row + 1) * kWidth, from);
      }
    }
  }

  // The pack at a place, zeros below 0. Chosen by words: by halves nvcc takes them apart.
  TAL_FAST_DEVICE static Pack<T, N> read_or_zeros(const T* from, int place) {
#if defined(__CUDACC__)
    uint4 words = {0, 0, 0, 0};
    if (place >= 0) {
      words = __ldg(reinterpret_cast<const uint4*>(from + place));
    }
    return bits_to_pack<T, N>(words);
#else
    return place < 0 ? Pack<T, N>{} : read_pack<N>(from + place);
#endif
  }

  // `place_of` a row that exists, the place `none` of zeros, and what `load` finds at a place.
  template <typename PlaceOf, typename Load>
  TAL_FAST_DEVICE void attend(const Here& here, PlaceOf place_of, int none, Load load) const {
    constexpr bool kOnce = kPath == PackPath::kOnce;
    const int lane = pinned(static_cast<int>(threadIdx.x) & (kLanes - 1));
    const int side = pinned(static_cast<int>(threadIdx.x) >> kLog2 & 1);
    const int group = static_cast<int>(threadIdx.x) >> (kLog2 + 1);
    const int groups = pinned(static_cast<int>(blockDim.x) >> (kLog2 + 1));
    const int samples = pinned(sizes.samples);
    const int behind = kOnce ? 0 : (samples - 1) / kLanes * kLanes;
    auto stream = source.stream(sizes, here.b, here.first + group, here.h, lane, groups, behind);
    T* target =
        out + sizes.unit(here.b, here.first + group, here.h) * sizes.channels + here.channel;
    const int to_target = pinned(groups * static_cast<int>(sizes.heads * sizes.channels));

    // Lanes without a query go on with what they had and write nothing: shuffles need the warp.
    // `more` is how many queries the lane's is away from the end of the block's.
    int more = here.count - group;
    Sample sample = sample_of(lane);
    typename Source::Raw raw{};
    if (more > 0 && sample.k < samples) {
      raw = stream.fetch(sample.level);
    }
    if constexpr (kStaged) {
      wait_for_copies();
      __syncthreads();
    }
    for (int base = 0; base < here.count; base += groups) {  // hot: query
      const LaneSoftmax softmax = source.template softmax<kLanes, kOnce>(
          stream, raw, lane, kOnce || more > 0 ? samples : 0);
      float sums[N];
      for (int i = 0; i < N; ++i) {
        sums[i] = 0.0f;
      }
      const auto turn = [&](int k, bool last) {
        // Without a branch, after which the warp would have to meet again.
        const bool exists = sample.k < samples;
        const Position<float> position =
            locate(source.location(raw, sample.as_float), sample.as_float);
        const float weight = exists ? source.template weight<kOnce>(raw, softmax) : 0.0f;
        const float right = weight * position.fraction;
        const float share = side == 0 ? weight - right : right;
        const int row = position.tap + side;
        const bool inside =
            exists && static_cast<unsigned>(row) < static_cast<unsigned>(sample.length);
        const int place = inside ? place_of(sample.start + row) : none;
        // What comes next is on its way while this is gathered, and not looked at before.
        if constexpr (!kOnce) {
          sample = sample_of(last ? lane : sample.k + kLanes);
        }
        stream.template step<kLanes>(last);
        if (more > (last ? groups : 0) && sample.k < samples) {
          raw = stream.fetch(sample.level);
        }
        for (int j = 0; j < kLanes; j += kInFlight) {
          if (j == 0 || k + j < samples) {
            add(place, share, j, load, sums);
          }
        }
      };
      if constexpr (kOnce) {
        turn(0, true);
      } else {
        for (int k = 0; k < samples; k += kLanes) {  // hot: round
          turn(k, k + kLanes >= samples);
        }
      }
      Pack<T, N> result;
      for (int i = 0; i < N; ++i) {
        result[i] = narrow<T>(sums[i] + __shfl_xor_sync(kAllLanes, sums[i], kLanes));
      }
      if (more > 0 && side == 0) {
        store_pack<N>(target, result);
      }
      target += to_target;
      more -= groups;
    }
  }

  template <typename Load>
  TAL_FAST_DEVICE static void add(int place, float share, int first, Load load, float* sums) {
    Pack<T, N> packs[kInFlight];
    float shares[kInFlight];
    for (int j = 0; j < kInFlight; ++j) {
      const int from = __shfl_sync(kAllLanes, place, first + j, kLanes);
      shares[j] = __shfl_sync(kAllLanes, share, first + j, kLanes);
      packs[j] = load(from);
    }
    for (int j = 0; j < kInFlight; ++j) {
      float wide[N];
      widen_pack(packs[j], wide);
      for (int i = 0; i < N; ++i) {
        sums[i] = multiply_add(shares[j], wide[i], sums[i]);
      }
    }
  }
};

}  // namespace tal_fast
