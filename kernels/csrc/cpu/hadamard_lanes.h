// The grouped K×K convolution where a vector of channels is whole groups: lane = output channel, and the input channels
// come from a permutation within each group, which serves up to K positions.
#pragma once

#include "gelu.h"
#include "hadamard_plan.h"
#include "images.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

#if defined(ELSA_AVX512)
constexpr int kRun = 14;  // neighbouring positions of a row computed together: as many as there are registers for
#else
constexpr int kRun = 7;
#endif

template <class T>
constexpr bool kHasLanes = ELSA_VECTOR_BYTES > 16 && (std::is_same_v<T, float> || std::is_same_v<T, BFloat>);

template <class T>
ELSA_INLINE bool fits_lanes(const HadamardGeometry& g) {
  return kHasLanes<T> && (g.kernel == 3 || g.kernel == 5 || g.kernel == 7) && g.group_width % 2 == 0 &&
         kLanes<float> % g.group_width == 0;
}

ELSA_INLINE Vec<float> permute(Vec<float> v, Int32 index) {
#if defined(ELSA_AVX512)
  return (Vec<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)v);
#elif defined(ELSA_AVX2)
  return (Vec<float>)_mm256_permutevar8x32_ps((__m256)v, (__m256i)index);
#else
  return __builtin_shuffle(v, index);
#endif
}

template <int From>
struct SplatFour {
  static constexpr int at(int k) { return k / 4 * 4 + From; }
};

// For each lane the first lane of its group.
ELSA_INLINE Int32 group_starts(int64_t group_width) {
  Int32 index;
  for (int32_t lane = 0; lane < kLanes<float>; ++lane) index[lane] = lane & -static_cast<int32_t>(group_width);
  return index;
}

// What products are made of: float, but bfloat16 where a processor multiplies pairs of them (hadamard_pairs.h).
#if defined(ELSA_AVX512_BF16)
template <class T>
using Factor = std::conditional_t<std::is_same_v<T, BFloat>, BFloat, float>;
#else
template <class T>
using Factor = float;
#endif

// K rows of one chunk's channels with K/2 zero positions to the left and at least as many to the right.
template <class T, int K>
struct Ring {
  static constexpr int N = kLanes<float>;
  Factor<T>* rows;
  int64_t stride;

  Ring() = default;
  Ring(void* memory, int64_t columns) : rows(static_cast<Factor<T>*>(memory)), stride(stride_for(columns)) {}
  static int64_t stride_for(int64_t columns) { return ((columns + kRun - 1) / kRun * kRun + K - 1) * N; }
  static int64_t bytes(int64_t columns) { return K * stride_for(columns) * int64_t{sizeof(Factor<T>)}; }
  ELSA_INLINE Factor<T>* row(int64_t y) const { return rows + (y + K) % K * stride; }
  // The zeros around a row; the right ones fill up the last run.
  ELSA_INLINE void pad(Factor<T>* row, int64_t columns) const {
    for (int64_t x = 0; x < K / 2; ++x) store(row + x * N, Vec<float>{});
    for (int64_t at = (columns + K / 2) * N; at < stride; at += N) store(row + at, Vec<float>{});
  }
};

// Of one chunk's weights: [row][input channel][tap][output channel], zeros where there is no channel.
template <class T, int K>
struct Packed {
  static constexpr int N = kLanes<float>, kTaps = K * K, kStride = (kTaps + N - 1) / N * N;
  const HadamardGeometry& g;
  int64_t chunk;

  static int64_t bytes(int64_t group_width) { return group_width * kTaps * N * int64_t{sizeof(float)}; }

  // Mirrored, as the input's gradient needs them: a lane is an input channel, the taps are in reverse.
  template <bool Mirrored>
  void pack(const T* weight, float* to) const {
    alignas(ELSA_VECTOR_BYTES) float rows[N][kStride];
    for (int64_t i = 0; i < g.group_width; ++i) {
      for (int64_t lane = 0; lane < N; ++lane) {
        const int64_t channel = chunk * N + lane, place = channel % g.group_width;
        const int64_t mirrored = (channel - place + i) * g.group_width + place;
        const T* from = weight + (Mirrored ? mirrored : channel * g.group_width + i) * kTaps;
        if (channel < g.channels) load_taps(from, rows[lane]);
        else __builtin_memset(rows[lane], 0, sizeof(rows[lane]));
      }
      for (int64_t tap = 0; tap < kTaps; tap += 4) {
        const Four four = transpose_rows([&](int lane) ELSA_LAMBDA { return rows[lane] + tap; });
        unroll<4>([&](auto n) ELSA_LAMBDA {
          const int64_t t = Mirrored ? kTaps - 1 - tap - n : tap + n;
          if (tap + n < kTaps) store(to + ((t / K * g.group_width + i) * K + t % K) * N, four.vectors[n]);
        });
      }
    }
  }

#if defined(ELSA_AVX512_BF16)
  template <bool Mirrored>
  void pack(const T* weight, BFloat* to) const;  // hadamard_pairs.h
#endif

  // The same order back; `packed(offset)` gives the vector at an offset.
  template <class Source>
  void unpack(Source&& packed, T* weight) const {
    alignas(ELSA_VECTOR_BYTES) float rows[N][kStride];
    for (int64_t i = 0; i < g.group_width; ++i) {
      for (int64_t tap = 0; tap < kTaps; tap += 4) {
        Four four{};
        unroll<4>([&](auto n) ELSA_LAMBDA {
          const int64_t t = tap + n;
          if (t < kTaps) four.vectors[n] = packed(((t / K * g.group_width + i) * K + t % K) * N);
        });
        four = transpose(four);
        for (int lane = 0; lane < N; ++lane)
          __builtin_memcpy(rows[lane] + tap, reinterpret_cast<const char*>(&four.vectors[lane % 4]) + lane / 4 * 16, 16);
      }
      for (int64_t lane = 0; lane < N && chunk * N + lane < g.channels; ++lane) {
        T* to = weight + ((chunk * N + lane) * g.group_width + i) * kTaps;
        int64_t t = 0;
        for (; t + N <= kTaps; t += N) store(to + t, load(rows[lane] + t));
        if (t < kTaps) store_first(to + t, load(rows[lane] + t), kTaps - t);
      }
    }
  }

 private:
  static ELSA_INLINE void load_taps(const T* from, float* to) {
    int64_t t = 0;
    for (; t + N <= kTaps; t += N) store(to + t, load(from + t));
    if (t < kTaps) store(to + t, load_first(from + t, kTaps - t));
  }
};

// Input channel i of each group of four in all of its lanes: one instruction with the channel in its code.
template <int i>
ELSA_INLINE Vec<float> permute_four(Vec<float> v) {
#if defined(ELSA_AVX512)
  return (Vec<float>)_mm512_maskz_permute_ps(0xffff, (__m512)v, i * 0x55);
#else
  return shuffle<SplatFour<i>, float>(v, v, {});
#endif
}

// acc[p] += Σ over columns of weight · source for one row of taps and one input channel.
template <int K, class Permute>
ELSA_INLINE void convolve_row(Vec<float> (&acc)[kRun], const float* weights, const float* source, Permute&& permuted) {
  constexpr int N = kLanes<float>;
  Vec<float> w[K];
  unroll<K>([&](auto t) ELSA_LAMBDA { w[t] = load(weights + t * N); });
  unroll<kRun + K - 1>([&](auto u) ELSA_LAMBDA {
    const Vec<float> v = permuted(load(source + u * N));
    unroll<K>([&](auto t) ELSA_LAMBDA {
      constexpr int p = u - t;
      if constexpr (p >= 0 && p < kRun) acc[p] += w[t] * v;
    });
  });
}

// acc[p] += Σ over rows [first, last) of taps, input channels and columns of weight · source. `row_of(j)` points to the
// source that position 0 meets at the tap in column 0.
template <int K, class RowOf>
ELSA_INLINE void convolve(Vec<float> (&acc)[kRun], const float* weights, int64_t group_width, int64_t first,
                          int64_t last, RowOf&& row_of) {
  constexpr int N = kLanes<float>;
  weights += first * group_width * K * N;
  if (group_width == 4) {
    for (int64_t j = first; j < last; ++j, weights += 4 * K * N) {
      const float* source = row_of(j);
      unroll<4>([&](auto i) ELSA_LAMBDA {
        convolve_row<K>(acc, weights + i * K * N, source, permute_four<i()>);
      });
    }
  } else {
    const Int32 starts = group_starts(group_width);
    for (int64_t j = first; j < last; ++j) {
      const float* source = row_of(j);
      Int32 index = starts;
      for (int64_t i = 0; i < group_width; ++i, index += 1, weights += K * N)
        convolve_row<K>(acc, weights, source, [&](Vec<float> v) ELSA_LAMBDA { return permute(v, index); });
    }
  }
}

// One row of query · key · scale, to be multiplied with rows of the gradient of `before` (as they are in the ring).
template <class T, int K>
struct Product {
  static constexpr int N = kLanes<float>;
  float* row;

  Product() = default;
  Product(void* memory, int64_t) : row(static_cast<float*>(memory)) {}
  static int64_t bytes(int64_t columns) { return columns * N * int64_t{sizeof(float)}; }
  ELSA_INLINE void set(int64_t x, Vec<float> value) const { store(row + x * N, value); }
  ELSA_INLINE void finish(int64_t) const {}

  // to[input channel][tap] += Σ over positions, K taps of two input channels at a time.
  void add(const float* gradient, int64_t columns, int64_t group_width, float* to) const {
    Int32 even = group_starts(group_width), odd = even + 1;
    for (int64_t i = 0; i < group_width; i += 2, even += 2, odd += 2, to += 2 * K * N) {
      Vec<float> a[K] = {}, b[K] = {};
      for (int64_t x = 0; x < columns; ++x) {
        const Vec<float> h = load(row + x * N), u = permute(h, even), v = permute(h, odd);
        unroll<K>([&](auto t) ELSA_LAMBDA {
          const Vec<float> d = load(gradient + (x + K - 1 - t) * N);
          a[t] += u * d, b[t] += v * d;
        });
      }
      unroll<K>([&](auto t) ELSA_LAMBDA {
        store(to + t * N, load(to + t * N) + a[t]);
        store(to + (K + t) * N, load(to + (K + t) * N) + b[t]);
      });
    }
  }
};

// The sum over a row's positions.
template <class Cell>
ELSA_INLINE Vec<float> total(const Cell* row, int64_t columns) {
  constexpr int N = kLanes<float>;
  Vec<float> sums[4] = {};
  int64_t x = 0;
  for (; x + 4 <= columns; x += 4) unroll<4>([&](auto n) ELSA_LAMBDA { sums[n] += load(row + (x + n) * N); });
  for (; x < columns; ++x) sums[0] += load(row + x * N);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Requests the one or two cache lines of one position's chunk of channels.
template <int Write, class T>
ELSA_INLINE void prefetch_chunk(const T* first) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(first), last = address + kLanes<float> * sizeof(T) - 1;
  __builtin_prefetch(reinterpret_cast<const void*>(address), Write, 3);
  if ((address ^ last) >= 64) __builtin_prefetch(reinterpret_cast<const void*>(last), Write, 3);
}

// Chunks of lanes that share cache lines take turns row by row, so that no line is fetched twice.
template <class T>
constexpr int kTogether = 64 / (kLanes<float> * static_cast<int>(sizeof(T)));

// Calls f(chunk) for the chunks of lanes that one unit's chunk of channels consists of.
template <class T, class F>
ELSA_INLINE void for_lanes(const HadamardGeometry& g, int64_t chunk, F&& f) {
  for (int64_t c = chunk * kTogether<T>; c < (chunk + 1) * kTogether<T> && c * kLanes<float> < g.channels; ++c) f(c);
}

// Calls compute(unit, chunks, count) for the units [first, last), with the chunks of lanes of each, which are made by
// make(weights, rest of the memory, chunk) once their weights are packed.
template <class Lanes, class T, int K, bool Mirrored, class Arguments, class Make, class Compute>
ELSA_INLINE void for_units(const Arguments& arguments, int64_t first, int64_t last, void* scratch, Make&& make,
                           Compute&& compute) {
  const HadamardGeometry& g = arguments.geometry;
  int64_t packed = -1;
  Lanes chunks[kTogether<T>];
  int count = 0;
  for (int64_t unit = first; unit < last; ++unit) {
    if (unit / g.slots != packed) {
      packed = unit / g.slots, count = 0;
      for_lanes<T>(g, packed, [&](int64_t chunk) ELSA_LAMBDA {
        char* memory = static_cast<char*>(scratch) + count * Lanes::scratch(g);
        Factor<T>* weights = reinterpret_cast<Factor<T>*>(memory);
        Packed<T, K>{g, chunk}.template pack<Mirrored>(static_cast<const T*>(arguments.weight), weights);
        chunks[count++] = make(weights, memory + Packed<T, K>::bytes(g.group_width), chunk);
      });
    }
    compute(unit, chunks, count);
  }
}

// Calls f(partial, count) for the channels of a chunk of lanes: whole vectors have their own code.
template <class F>
ELSA_INLINE void for_channels(const HadamardGeometry& g, int64_t chunk, F&& f) {
  const int64_t left = g.channels - chunk * kLanes<float>;
  if (left >= kLanes<float>) f(std::false_type{}, int64_t{kLanes<float>});
  else f(std::true_type{}, left);
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
