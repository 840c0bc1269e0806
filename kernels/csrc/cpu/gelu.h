// GELU(z) = z Φ(z), and its slope Φ(z) + z φ(z): the normal distribution Φ itself, not an approximation by tanh.
//
// In float both are a correction in |z| to what they are far from zero: GELU(z) = max(z, 0) - |z| (1 - Φ(|z|)), and
// the slope is 1 + s(|z|) for z ≥ 0 and -s(|z|) below. 1 - Φ and s are piecewise cubic over 32 segments, with an error
// below 1e-6; the compiler computes the tables. In double, which is there to check gradients, the C library does.
#pragma once

#include "transpose.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

constexpr int kSegments = 32;

struct Cubics {
  alignas(64) float by_power[4][kSegments];    // for processors that look up in registers
  alignas(64) float by_segment[kSegments][4];  // for the others
};

// exp(x) for x ≤ 0 and Φ(a) - ½, by their series.
constexpr double exponential(double x) {
  double sum = 1, term = 1;
  for (int n = 1; n < 40; ++n) sum += term *= x / 64 / n;
  for (int n = 0; n < 6; ++n) sum *= sum;
  return sum;
}
constexpr double density(double a) { return 0.3989422804014326779 * exponential(-a * a / 2); }
constexpr double above_half(double a) {
  double sum = a, term = a;
  for (int n = 1; n < 120; ++n) sum += term *= a * a / (2 * n + 1);
  return density(a) * sum;
}
constexpr double tail(double a) { return 0.5 - above_half(a); }  // 1 - Φ(a)

constexpr double kEnd = 5.5;  // beyond it both corrections are below 6e-7
struct Tail {
  static constexpr double at(double a) { return kEnd / kSegments * tail(a); }  // to be multiplied with segments
};
struct Slope {
  static constexpr double at(double a) { return a * density(a) - tail(a); }
};

// The cubics through four Chebyshev points of each segment, in powers of the position within it.
template <class Function>
constexpr Cubics cubics() {
  Cubics table{};
  for (int segment = 0; segment < kSegments; ++segment) {
    const double x[4] = {0.03806023374435663, 0.30865828381745514, 0.69134171618254486, 0.96193976625564337};
    double d[4];
    for (int i = 0; i < 4; ++i) d[i] = Function::at((segment + x[i]) * kEnd / kSegments);
    for (int order = 1; order < 4; ++order)
      for (int i = 3; i >= order; --i) d[i] = (d[i] - d[i - 1]) / (x[i] - x[i - order]);
    double power[4] = {d[3], 0, 0, 0};  // Newton's form, multiplied out
    for (int i = 2; i >= 0; --i) {
      for (int n = 3; n > 0; --n) power[n] = power[n - 1] - x[i] * power[n];
      power[0] = d[i] - x[i] * power[0];
    }
    for (int n = 0; n < 4; ++n)
      table.by_power[n][segment] = table.by_segment[segment][n] = static_cast<float>(power[n]);
  }
  return table;
}
template <class Function>
constexpr Cubics kCubics = cubics<Function>();

// The coefficients of each lane's segment, lowest power first; only the five lowest bits of `segment` count.
ELSA_INLINE Four look_up(const Cubics& table, Int32 segment) {
#if defined(ELSA_AVX512)
  Four found;
  unroll<4>([&](auto n) ELSA_LAMBDA {
    found.vectors[n] = (Vec<float>)_mm512_permutex2var_ps((__m512)load(table.by_power[n]), (__m512i)segment,
                                                          (__m512)load(table.by_power[n] + 16));
  });
  return found;
#else
  return transpose_rows([&](int lane) ELSA_LAMBDA { return table.by_segment[segment[lane] & (kSegments - 1)]; });
#endif
}

// |z| in segments; zero beyond the last of them, NaN for NaN.
ELSA_INLINE Vec<float> segments(Vec<float> z) {
  const Vec<float> magnitude = bit_cast<Vec<float>>(bit_cast<Bits32>(z) & 0x7fffffffu);
  const Vec<float> scaled = magnitude * static_cast<float>(kSegments / kEnd);
  return scaled >= float(kSegments) ? Vec<float>{} : scaled;
}

template <class Function>
ELSA_INLINE Vec<float> cubic_at(Vec<float> segments) {
  const Int32 segment = __builtin_convertvector(segments, Int32);
  const Vec<float> x = segments - __builtin_convertvector(segment, Vec<float>);
  const Four c = look_up(kCubics<Function>, segment);
  return ((c.vectors[3] * x + c.vectors[2]) * x + c.vectors[1]) * x + c.vectors[0];
}

ELSA_INLINE Vec<float> gelu(Vec<float> z) {
  const Vec<float> s = segments(z);
  return (z > 0.0f ? z : Vec<float>{}) - s * cubic_at<Tail>(s);
}

ELSA_INLINE Vec<float> gelu_slope(Vec<float> z) {
  const Vec<float> s = segments(z), within = cubic_at<Slope>(s);
  const Vec<float> correction = s == 0.0f && z != 0.0f ? Vec<float>{} : within;  // beyond the last segment
  return z < 0.0f ? -correction : 1.0f + correction;
}

ELSA_INLINE Vec<double> gelu(Vec<double> z) {
  Vec<double> result{};
  for (int i = 0; i < kLanes<double>; ++i) result[i] = 0.5 * z[i] * __builtin_erfc(-0.70710678118654752440 * z[i]);
  return result;
}

ELSA_INLINE Vec<double> gelu_slope(Vec<double> z) {
  Vec<double> result{};
  for (int i = 0; i < kLanes<double>; ++i) {
    const double x = z[i];
    result[i] = 0.5 * __builtin_erfc(-0.70710678118654752440 * x) +
                (x - x == 0 ? 0.3989422804014326779 * x * __builtin_exp(-0.5 * x * x) : x - x == 0);
  }
  return result;
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
