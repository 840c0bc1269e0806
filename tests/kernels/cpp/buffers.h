// What the C++ tests of the emulated kernels share: buffers as on a device, allocated to the byte so that
// AddressSanitizer sees every overrun, and comparison with what a test computed in double precision.
#pragma once
#include "../../../kernels/csrc/cuda/launch.h"
#include "cuemu.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <random>
#include <vector>

using elsa::cuda::Type;
using Numbers = std::vector<double>;

inline float half_round(float x, Type type) {
  if (type == Type::f16) return __half2float(__float2half_rn(x));
  if (type == Type::bf16) return __bfloat162float(__float2bfloat16_rn(x));
  return x;
}
inline size_t size_of(Type type) {
  return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2;
}

// An exact-size device buffer of one of the storage types, filled from (or with 0xff: NaN) and read back as doubles.
struct Buffer {
  Type type;
  size_t count;
  std::unique_ptr<unsigned char[]> bytes;
  Buffer(Type t, size_t n) : type(t), count(n), bytes(new unsigned char[n * size_of(t)]) {
    std::memset(bytes.get(), 0xff, n * size_of(t));
  }
  Buffer(Type t, const Numbers& x) : Buffer(t, x.size()) {
    for (size_t i = 0; i < count; ++i) {
      if (type == Type::f64) reinterpret_cast<double*>(bytes.get())[i] = x[i];
      if (type == Type::f32) reinterpret_cast<float*>(bytes.get())[i] = float(x[i]);
      if (type == Type::f16) reinterpret_cast<__half*>(bytes.get())[i] = __float2half_rn(float(x[i]));
      if (type == Type::bf16) reinterpret_cast<__nv_bfloat16*>(bytes.get())[i] = __float2bfloat16_rn(float(x[i]));
    }
  }
  double operator[](size_t i) const {
    if (type == Type::f64) return reinterpret_cast<const double*>(bytes.get())[i];
    if (type == Type::f32) return double(reinterpret_cast<const float*>(bytes.get())[i]);
    if (type == Type::f16) return double(__half2float(reinterpret_cast<const __half*>(bytes.get())[i]));
    return double(__bfloat162float(reinterpret_cast<const __nv_bfloat16*>(bytes.get())[i]));
  }
};

inline Numbers draw(std::mt19937& random, int64_t count, Type type, double factor = 1) {
  std::normal_distribution<float> normal;
  Numbers x(static_cast<size_t>(count));
  for (double& e : x) e = half_round(float(factor) * normal(random), type);
  return x;
}

// Whether `launch`, which returns null or what went wrong, is content, and the emulator with it; says why not.
template <class Launch>
bool launched(Launch&& launch) {
  try {
    const char* error = launch();
    if (error) std::printf("ERROR %s\n", error);
    return error == nullptr;
  } catch (const std::exception& e) {
    std::printf("CAUGHT %s\n", e.what());
    return false;
  }
}

// Says what is wrong, if anything is.
inline bool close(const char* name, const Buffer& got, const Numbers& expected) {
  double worst = 0, largest = 1e-3;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(got[i] - expected[i]);
    worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : std::max(worst, error);
    largest = std::max(largest, std::fabs(expected[i]));
  }
  const double allowed = got.type == Type::f64   ? 1e-12
                         : got.type == Type::f32 ? 1e-5
                         : got.type == Type::f16 ? 2e-3
                                                 : 1e-2;
  if (worst <= allowed * largest) return true;
  std::printf("WRONG %s: error %.2e of %.2e\n", name, worst, largest);
  return false;
}
