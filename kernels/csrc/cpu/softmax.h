// The exponential, and the softmax of one position and head: from K² logits to K² weights.
#pragma once

#include "simd.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// 2^t for t ≤ 0; 0 where it is below the normal numbers. With n the integer next to t, 2^t = 2^n · p(t - n), where p is the
// polynomial of least maximal relative error on ±½: 7e-8 (float), 3e-18 (double).
#if defined(ELSA_AVX512)
ELSA_INLINE Vec<float> fraction(Vec<float> t) { return (Vec<float>)_mm512_reduce_ps((__m512)t, 0); }
ELSA_INLINE Vec<double> fraction(Vec<double> t) { return (Vec<double>)_mm512_reduce_pd((__m512d)t, 0); }
ELSA_INLINE Vec<float> scale(Vec<float> p, Vec<float> n) { return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n); }
ELSA_INLINE Vec<double> scale(Vec<double> p, Vec<double> n) { return (Vec<double>)_mm512_scalef_pd((__m512d)p, (__m512d)n); }
#else
// 2^n from the low bits of n + `kRound`. To be multiplied with: an addition to p's exponent would turn some NaN into numbers.
ELSA_INLINE Vec<float> power(Vec<float> shifted) {
  return bit_cast<Vec<float>>((bit_cast<Bits32>(shifted) << 23) + (127u << 23));
}
ELSA_INLINE Vec<double> power(Vec<double> shifted) {
  return bit_cast<Vec<double>>((bit_cast<Bits64>(shifted) << 52) + (uint64_t{1023} << 52));
}
template <class A>
constexpr A kRound = std::is_same_v<A, float> ? A(0x1.8p23) : A(0x1.8p52);  // added, it rounds to an integer
template <class A>
constexpr A kLowest = std::is_same_v<A, float> ? A(-125) : A(-1021);
#endif

template <class A, int Count>
ELSA_INLINE Vec<A> exp2_nonpositive(Vec<A> t, const A (&coefficients)[Count]) {
#if defined(ELSA_AVX512)
  const Vec<A> r = fraction(t);
#else
  const Vec<A> shifted = t + kRound<A>, r = t - (shifted - kRound<A>);
#endif
  Vec<A> p = r * coefficients[Count - 1] + coefficients[Count - 2];
  unroll<Count - 2>([&](auto i) ELSA_LAMBDA { p = p * r + coefficients[Count - 3 - i]; });
#if defined(ELSA_AVX512)
  return scale(p, t - r);
#else
  const Vec<A> scaled = p * power(shifted);
  return t < kLowest<A> ? Vec<A>{} : scaled;
#endif
}

// e^x for x ≤ 0. The product's rounding makes the relative error |x| · 6e-8 (1e-16); a softmax, where that is multiplied
// with e^x, does not notice.
ELSA_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  constexpr float c[] = {1.0000000716547141f, 0.69314696706503521f, 0.24022119723710720f, 0.055507132718556442f,
                         0.0096755413431213274f, 0.0013276472631950876f};
  return exp2_nonpositive<float>(x * 1.44269504088896341f, c);
}
ELSA_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  constexpr double c[] = {0.99999999999999999710,  0.69314718055994533046,  0.24022650695910156204,
                          0.055504108664819921605, 0.0096181291075883352443, 0.0013333558146789921722,
                          1.5403530462514462062e-4, 1.5252733489985528565e-5, 1.3215433089676399180e-6,
                          1.0178198021671930844e-7, 7.0741056135081427963e-9, 4.4352827069572771511e-10};
  return exp2_nonpositive<double>(x * 1.44269504088896340736, c);
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
