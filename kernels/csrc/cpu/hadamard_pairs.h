// The convolution in lanes with the processor's dot product of bfloat16 pairs: two products a lane.
//
// A pair is two input channels of a group where outputs are summed up, and two neighbouring positions where the
// weight's gradient is. Factors are rounded to bfloat16, sums are kept in float.
#pragma once

#include "hadamard_lanes.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

typedef uint32_t Pairs __attribute__((vector_size(64)));  // one pair of bfloat16 a lane, the first in the lower half
typedef uint32_t PairsUnaligned __attribute__((vector_size(64), aligned(2), may_alias));

ELSA_INLINE Pairs load_pairs(const void* p) { return *static_cast<const PairsUnaligned*>(p); }
ELSA_INLINE void store_pairs(void* p, Pairs v) { *static_cast<PairsUnaligned*>(p) = v; }
ELSA_INLINE Pairs permute(Pairs v, Int32 index) {
  return (Pairs)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)index, (__m512i)v);
}
ELSA_INLINE Vec<float> add_dot(Vec<float> sum, Pairs a, Pairs b) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// Two positions one after the other → lane c holds channel c of both.
ELSA_INLINE Pairs interleave(Pairs positions) {
  typedef uint16_t Shorts __attribute__((vector_size(64)));
  constexpr Shorts kOrder = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Pairs)_mm512_maskz_permutexvar_epi16(0xffffffffu, (__m512i)kOrder, (__m512i)positions);
}

// Packed as floats, of which neighbouring input channels then become one vector of pairs in the same memory.
template <class T, int K>
template <bool Mirrored>
void Packed<T, K>::pack(const T* weight, BFloat* to) const {
  float* from = reinterpret_cast<float*>(to);
  pack<Mirrored>(weight, from);
  for (int64_t pair = 0; pair < K * g.group_width / 2; ++pair)
    for (int64_t t = 0; t < K; ++t) {
      const Bits32 first = bit_cast<Bits32>(load(from + (2 * pair * K + t) * N));
      const Bits32 second = bit_cast<Bits32>(load(from + ((2 * pair + 1) * K + t) * N));
      store_pairs(to + (pair * K + t) * 2 * N, (first >> 16) | (second & 0xffff0000u));
    }
}

template <int K, class RowOf>
ELSA_INLINE void convolve(Vec<float> (&acc)[kRun], const BFloat* weights, int64_t group_width, int64_t first,
                          int64_t last, RowOf&& row_of) {
  constexpr int N = kLanes<float>;
  weights += first * group_width * K * N;
  const Int32 start = group_starts(group_width) / 2;
  for (int64_t j = first; j < last; ++j) {
    const BFloat* source = row_of(j);
    Int32 even = start, odd = start + N / 2;
    for (int64_t i = 0; i < group_width; i += 2, even += 1, odd += 1, weights += 2 * K * N) {
      Pairs w[K];
      unroll<K>([&](auto t) ELSA_LAMBDA { w[t] = load_pairs(weights + t * 2 * N); });
      unroll<(kRun + K - 1) / 2>([&](auto two) ELSA_LAMBDA {
        const Pairs positions = load_pairs(source + two * 2 * N);
        const Pairs v[2] = {permute(positions, even), permute(positions, odd)};
        unroll<2>([&](auto n) ELSA_LAMBDA {
          unroll<K>([&](auto t) ELSA_LAMBDA {
            constexpr int p = 2 * two + n - t;
            if constexpr (p >= 0 && p < kRun) acc[p] = add_dot(acc[p], w[t], v[n]);
          });
        });
      });
    }
  }
}

// As for float, with pairs of neighbouring positions. The outputs' pairs start at even positions x; tap t meets the
// products at x + t, so that even taps meet even entries of `products` and odd taps odd ones.
template <int K>
struct Product<BFloat, K> {
  static constexpr int N = kLanes<float>, R = K / 2;
  float* row;       // with R zeros in front and as many behind as `products` reads
  Pairs* products;  // entry a: positions a - R and a - R + 1
  Pairs* outputs;   // R zeros in front of the pairs of one row

  static int64_t steps(int64_t columns) { return (columns + K) / 2; }
  static int64_t bytes(int64_t columns) { return (5 * steps(columns) + 1 + R) * 64; }
  Product() = default;
  Product(void* memory, int64_t columns)
      : row(static_cast<float*>(memory)),
        products(reinterpret_cast<Pairs*>(row + (steps(columns) * 2 + 1) * N)),
        outputs(products + 2 * steps(columns)) {}

  ELSA_INLINE void set(int64_t x, Vec<float> value) const { store(row + (R + x) * N, value); }

  void finish(int64_t columns) const {
    const int64_t entries = 2 * steps(columns);
    for (int64_t x = 0; x < R; ++x) store(row + x * N, Vec<float>{});
    for (int64_t x = R + columns; x <= entries; ++x) store(row + x * N, Vec<float>{});
    for (int64_t a = 0; a < entries; ++a)
      products[a] = interleave(
          (Pairs)_mm512_cvtne2ps_pbh((__m512)load(row + (a + 1) * N), (__m512)load(row + a * N)));
  }

  void add(const BFloat* gradient, int64_t columns, int64_t group_width, float* to) const {
    const int64_t count = steps(columns), pairs = (columns + 1) / 2;
    gradient += R * N;
    for (int64_t m = -R; m < count; ++m)
      outputs[R + m] = m >= 0 && m < pairs ? interleave(load_pairs(gradient + 2 * m * N)) : Pairs{};
    Int32 even = group_starts(group_width), odd = even + 1;
    for (int64_t i = 0; i < group_width; i += 2, even += 2, odd += 2, to += 2 * K * N) {
      Vec<float> a[K] = {}, b[K] = {};
      for (int64_t m = 0; m < count; ++m) {
        const Pairs h[2] = {products[2 * m], products[2 * m + 1]};
        const Pairs u[2] = {permute(h[0], even), permute(h[1], even)}, v[2] = {permute(h[0], odd), permute(h[1], odd)};
        unroll<K>([&](auto t) ELSA_LAMBDA {
          const Pairs d = outputs[R + m - t / 2];
          a[t] = add_dot(a[t], d, u[t % 2]), b[t] = add_dot(b[t], d, v[t % 2]);
        });
      }
      unroll<K>([&](auto t) ELSA_LAMBDA {
        store(to + t * N, load(to + t * N) + a[t]);
        store(to + (K + t) * N, load(to + (K + t) * N) + b[t]);
      });
    }
  }
};

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
