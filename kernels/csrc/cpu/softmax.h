// The exponential, and the softmax of one position and head: from K² logits to K² weights.
#pragma once

#include "simd.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// 2^n · p for integral n; 0 where that is too small. AVX-512 has an instruction; elsewhere it is a product with 2^n,
// made from the low bits of `shifted` (see below), and not an addition to p's exponent, which would turn some NaN into
// numbers.
template <class Small>
ELSA_INLINE Vec<float> scale_by_power(Vec<float> p, [[maybe_unused]] Vec<float> n,
                                      [[maybe_unused]] Vec<float> shifted, [[maybe_unused]] Small too_small) {
#if defined(ELSA_AVX512)
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const Vec<float> scaled = p * bit_cast<Vec<float>>((bit_cast<Bits32>(shifted) << 23) + (127u << 23));
  return too_small ? Vec<float>{} : scaled;
#endif
}
template <class Small>
ELSA_INLINE Vec<double> scale_by_power(Vec<double> p, [[maybe_unused]] Vec<double> n,
                                       [[maybe_unused]] Vec<double> shifted, [[maybe_unused]] Small too_small) {
#if defined(ELSA_AVX512)
  return (Vec<double>)_mm512_scalef_pd((__m512d)p, (__m512d)n);
#else
  const Vec<double> scaled = p * bit_cast<Vec<double>>((bit_cast<Bits64>(shifted) << 52) + (uint64_t{1023} << 52));
  return too_small ? Vec<double>{} : scaled;
#endif
}

// AVX-512's scaling is right for every finite number but must not see -∞; NaN stays.
template <class V, class A>
ELSA_INLINE V keep_finite(V x, [[maybe_unused]] A lowest) {
#if defined(ELSA_AVX512)
  return x < lowest ? V{} + lowest : x;
#else
  return x;
#endif
}

// e^x for x ≤ 0; 0 where it is below the normal numbers. With n = round(x / ln 2), e^x = 2^n · p(x - n ln 2), where p is
// the polynomial of least maximal error on ±ln 2 / 2: 2e-9 (float), 3e-18 (double). Adding 1.5 · 2^23 (2^52) rounds
// to an integer and leaves it in the low bits; ln 2 is split so that n times its first part is exact.
ELSA_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  x = keep_finite(x, -200.f);
  const Vec<float> shifted = x * 1.44269504088896341f + 12582912.f;
  const Vec<float> n = shifted - 12582912.f;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440054690583e-4f;
  Vec<float> p = r * 0.0013941160753825470f + 0.0083751682889542006f;
  p = p * r + 0.041666352268082528f;
  p = p * r + 0.16666415011290060f;
  p = p * r + 0.50000000472593982f;
  p = p * r + 1.0000000378296145f;
  p = p * r + 1.0f;
  return scale_by_power(p, n, shifted, x < -86.6f);
}
ELSA_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  x = keep_finite(x, -2000.);
  const Vec<double> shifted = x * 1.44269504088896340736 + 6755399441055744.0;
  const Vec<double> n = shifted - 6755399441055744.0;
  const Vec<double> r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  constexpr double c[] = {0.99999999999999999691,    0.99999999999999999976,    0.50000000000000184777,
                          0.16666666666666680877,    0.041666666666487379615,   0.0083333333333195455608,
                          0.0013888888952505406454,  0.0001984126989019370597,  0.00002480148527837006257,
                          2.7557240761739259262e-6,  2.763271507163225414e-7,   2.5110095611886237174e-8};
  Vec<double> p = r * c[11] + c[10];
  unroll<10>([&](auto i) ELSA_LAMBDA { p = p * r + c[9 - i]; });
  return scale_by_power(p, n, shifted, x < -708.0);
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
  if (first + 1 == taps) {  // an odd K has K² = 1 modulo 8
    Vec<A> v = Vec<A>{} - A(__builtin_inf());
    v[0] = load_one(row + first);
    return v;
  }
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
    unroll<Count - 1>([&](auto k) ELSA_LAMBDA { largest = Largest::of(largest, e[k + 1]); });
    largest = combine_all<Largest, A>(largest);
    Vec<A> sum{};
    unroll<Count>([&](auto k) ELSA_LAMBDA {
      e[k] = exp_nonpositive(e[k] - largest);
      sum += e[k];
    });
    const Vec<A> inverse = A(1) / combine_all<Sum, A>(sum);
    unroll<Count>([&](auto k) ELSA_LAMBDA { store(weights + k * N, e[k] * inverse); });
  } else {
    Vec<A> largest = Vec<A>{} - A(__builtin_inf()), sum{};
    for (int64_t t = 0; t < taps; t += N) largest = Largest::of(largest, load_logits(logits, t, taps));
    largest = combine_all<Largest, A>(largest);
    for (int64_t t = 0; t < taps; t += N) {
      const Vec<A> e = exp_nonpositive(load_logits(logits, t, taps) - largest);
      store(weights + t, e);
      sum += e;
    }
    const Vec<A> inverse = A(1) / combine_all<Sum, A>(sum);
    for (int64_t t = 0; t < taps; t += N) store(weights + t, load(weights + t) * inverse);
  }
}

// The largest element (sum) of each of up to eight vectors: that of the k-th in lane k.
template <class Operation, int Count>
ELSA_INLINE Vec<float> combine_each(const Vec<float> (&v)[Count]) {
  static_assert(Count > 4 && Count <= 8 && kLanes<float> >= 8);
  const auto at = [&](int k) ELSA_LAMBDA { return v[k < Count ? k : Count - 1]; };
  return shuffle<Alternate<kLanes<float>>, float>(combine_four<Operation>(at(0), at(1), at(2), at(3)),
                                                  combine_four<Operation>(at(4), at(5), at(6), at(7)), {});
}

// softmax_row for Rows positions, `step` logits and `stride` weights apart, where the last vector of a row would hold one
// tap: these taps of all rows share one vector, and the rows share their horizontal sums. Writes no more than the taps.
template <class T, int Taps, int Rows>
ELSA_INLINE void softmax_rows_odd(const T* logits, int64_t step, float* weights, int64_t stride) {
  using V = Vec<float>;
  constexpr int N = kLanes<float>, Count = Taps / N;
  static_assert(Taps % N == 1 && Rows <= N);
  V tail{}, partial[Rows];
  unroll<Rows>([&](auto p) ELSA_LAMBDA {
    tail[p()] = load_one(logits + p * step + Taps - 1);
    partial[p] = load(logits + p * step);
    unroll<Count - 1>([&](auto k) ELSA_LAMBDA {
      partial[p] = Largest::of(partial[p], load(logits + p * step + (k + 1) * N));
    });
  });
  const V largest = Largest::of(combine_each<Largest>(partial), tail);
  const V tail_e = exp_nonpositive(tail - largest);
  unroll<Rows>([&](auto p) ELSA_LAMBDA {
    const V shift = shuffle<Splat<p()>, float>(largest, largest, {});
    partial[p] = V{};
    unroll<Count>([&](auto k) ELSA_LAMBDA {
      const V e = exp_nonpositive(load(logits + p * step + k * N) - shift);
      store(weights + p * stride + k * N, e);
      partial[p] += e;
    });
  });
  const V inverse = 1.f / (combine_each<Sum>(partial) + tail_e);
  const V tail_weights = tail_e * inverse;
  unroll<Rows>([&](auto p) ELSA_LAMBDA {
    const V scale = shuffle<Splat<p()>, float>(inverse, inverse, {});
    unroll<Count>([&](auto k) ELSA_LAMBDA {
      float* w = weights + p * stride + k * N;
      store(w, load(w) * scale);
    });
    weights[p * stride + Taps - 1] = tail_weights[p()];
  });
}

// softmax_row for Rows positions.
template <class T, int Taps, int Rows>
ELSA_INLINE void softmax_rows(const T* logits, int64_t step, Accumulate<T>* weights, int64_t stride, int64_t taps) {
  using A = Accumulate<T>;
  if constexpr (std::is_same_v<A, float> && kLanes<A> >= 8 && Taps > kLanes<A> && Taps % kLanes<A> == 1) {
    softmax_rows_odd<T, Taps, Rows>(logits, step, weights, stride);
  } else {
    unroll<Rows>([&](auto p) ELSA_LAMBDA {
      softmax_row<T, Taps>(logits + p * step, weights + p * stride, taps);
    });
  }
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
