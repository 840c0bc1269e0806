// The exponential, and the softmax of one position and head: from K² logits to K² weights.
#pragma once

#include "simd.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// 2^n · p for integral n with 2^n · p in the normal range. A product, because adding n to the exponent's bits would
// turn some NaN into numbers.
ELSA_INLINE Vec<float> scale_by_power(Vec<float> p, [[maybe_unused]] Vec<float> n, [[maybe_unused]] Vec<float> shifted) {
#if defined(__AVX512F__) && ELSA_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  return p * bit_cast<Vec<float>>((bit_cast<Bits32>(shifted) << 23) + (127u << 23));
#endif
}
ELSA_INLINE Vec<double> scale_by_power(Vec<double> p, [[maybe_unused]] Vec<double> n, [[maybe_unused]] Vec<double> shifted) {
#if defined(__AVX512F__) && ELSA_VECTOR_BYTES == 64
  return (Vec<double>)_mm512_scalef_pd((__m512d)p, (__m512d)n);
#else
  return p * bit_cast<Vec<double>>((bit_cast<Bits64>(shifted) << 52) + (uint64_t{1023} << 52));
#endif
}

// e^x for x ≤ 0; 0 below the smallest normal number. With n = round(x / ln 2), e^x = 2^n · p(x - n ln 2), where p is
// the polynomial of least maximal error on ±ln 2 / 2: 2e-9 (float), 3e-18 (double). Adding 1.5 · 2^23 (2^52) rounds
// to an integer and leaves it in the low bits; ln 2 is split so that n times its first part is exact.
ELSA_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  const Vec<float> shifted = x * 1.44269504088896341f + 12582912.f;
  const Vec<float> n = shifted - 12582912.f;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f;
  Vec<float> p = r * 0.0013941160753825470f + 0.0083751682889542006f;
  p = p * r + 0.041666352268082528f;
  p = p * r + 0.16666415011290060f;
  p = p * r + 0.50000000472593982f;
  p = p * r + 1.0000000378296145f;
  p = p * r + 1.0f;
  return x < -86.6f ? Vec<float>{} : scale_by_power(p, n, shifted);
}
ELSA_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  const Vec<double> shifted = x * 1.44269504088896340736 + 6755399441055744.0;
  const Vec<double> n = shifted - 6755399441055744.0;
  const Vec<double> r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  constexpr double c[] = {0.99999999999999999691,    0.99999999999999999976,    0.50000000000000184777,
                          0.16666666666666680877,    0.041666666666487379615,   0.0083333333333195455608,
                          0.0013888888952505406454,  0.0001984126989019370597,  0.00002480148527837006257,
                          2.7557240761739259262e-6,  2.763271507163225414e-7,   2.5110095611886237174e-8};
  Vec<double> p = r * c[11] + c[10];
  unroll<10>([&](auto i) ELSA_LAMBDA { p = p * r + c[9 - i]; });
  return x < -708.0 ? Vec<double>{} : scale_by_power(p, n, shifted);
}

// Elements from one position's weights to the next: the taps, a little room for the backward pass (which adds its
// sums four at a time), rounded up to whole vectors.
template <class A>
constexpr int64_t weight_stride(int64_t taps) {
  return (taps + 4 + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// The logits [first, first + N) of a row of `taps`; beyond its end -∞, whose exponential is 0.
template <class T>
ELSA_INLINE Vec<Accumulate<T>> load_logits(const T* row, int64_t first, int64_t taps) {
  using A = Accumulate<T>;
  constexpr int N = kLanes<A>;
  if (first + N <= taps) return load(row + first);
  alignas(ELSA_VECTOR_BYTES) A lane[N];
  unroll<N>([&](auto k) ELSA_LAMBDA { lane[k] = A(k); });
  return load(lane) < A(taps - first) ? load_first(row + first, taps - first) : Vec<A>{} - A(__builtin_inf());
}

// weights[0 .. taps) = softmax(logits[0 .. taps)); the rest of the weights' last vector becomes 0. Taps is the number
// of taps where it is known to the compiler, else 0.
template <class T, int Taps>
ELSA_INLINE void softmax_row(const T* logits, Accumulate<T>* weights, int64_t taps) {
  using A = Accumulate<T>;
  constexpr int N = kLanes<A>;
  if constexpr (Taps > 0) {
    constexpr int Count = (Taps + N - 1) / N;
    Vec<A> e[Count];
    unroll<Count>([&](auto k) ELSA_LAMBDA { e[k] = load_logits(logits, k * N, Taps); });
    Vec<A> largest = e[0];
    unroll<Count - 1>([&](auto k) ELSA_LAMBDA { largest = max<A>(largest, e[k + 1]); });
    largest = max_all<A>(largest);
    Vec<A> sum{};
    unroll<Count>([&](auto k) ELSA_LAMBDA {
      e[k] = exp_nonpositive(e[k] - largest);
      sum += e[k];
    });
    const Vec<A> inverse = A(1) / sum_all<A>(sum);
    unroll<Count>([&](auto k) ELSA_LAMBDA { store(weights + k * N, e[k] * inverse); });
  } else {
    Vec<A> largest = Vec<A>{} - A(__builtin_inf()), sum{};
    for (int64_t t = 0; t < taps; t += N) largest = max<A>(largest, load_logits(logits, t, taps));
    largest = max_all<A>(largest);
    for (int64_t t = 0; t < taps; t += N) {
      const Vec<A> e = exp_nonpositive(load_logits(logits, t, taps) - largest);
      store(weights + t, e);
      sum += e;
    }
    const Vec<A> inverse = A(1) / sum_all<A>(sum);
    for (int64_t t = 0; t < taps; t += N) store(weights + t, load(weights + t) * inverse);
  }
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
