// __half and __nv_bfloat16 as storage types, with the conversions that the kernels use: round to nearest, ties to even.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline uint32_t cuemu_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float cuemu_float(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

inline float __bfloat162float(__nv_bfloat16 h) {
  return cuemu_float(uint32_t(h.bits) << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (x != x) return {0x7fff};
  const uint32_t u = cuemu_bits(x);
  return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

inline float __half2float(__half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
  if (exponent == 0) return cuemu_float(sign | cuemu_bits(std::ldexp(float(mantissa), -24)));
  if (exponent == 31) return cuemu_float(sign | 0x7f800000 | mantissa << 13);
  return cuemu_float(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline __half __float2half_rn(float x) {
  const uint32_t u = cuemu_bits(x);
  const uint16_t sign = uint16_t(u >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (x != x) return {0x7fff};
  if (size >= 65520.f) return {uint16_t(sign | 0x7c00)};
  // Below 2⁻¹⁴ halves are multiples of 2⁻²⁴: the float addition rounds to them.
  if (size < 6.103515625e-5f) return {uint16_t(sign | (cuemu_bits(size + 0.5f) - cuemu_bits(0.5f)))};
  const uint32_t rounded = (u & 0x7fffffff) + 0xfff + (u >> 13 & 1);
  return {uint16_t(sign | ((rounded - (uint32_t(112) << 23)) >> 13))};
}
