// Storage types, their accumulation types, and the conversions between them.
#pragma once
#include "cu_compat.h"

namespace elsa::cuda {

// Arithmetic is in float, except for double inputs.
template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using Acc = typename Accumulate<T>::type;

__device__ __forceinline__ float load(float x) {
  return x;
}
__device__ __forceinline__ double load(double x) {
  return x;
}
__device__ __forceinline__ float load(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float load(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
__device__ __forceinline__ T store(Acc<T> x);
template <>
__device__ __forceinline__ float store<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ double store<double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ __half store<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 store<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

__device__ __forceinline__ float exponential(float x) {
  return expf(x);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}
__device__ __forceinline__ float logarithm(float x) {
  return logf(x);
}
__device__ __forceinline__ double logarithm(double x) {
  return log(x);
}
__device__ __forceinline__ float larger(float a, float b) {
  return fmaxf(a, b);
}
__device__ __forceinline__ double larger(double a, double b) {
  return fmax(a, b);
}

// N neighbouring elements that move in one instruction; the address must be a multiple of the pack's size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T item[N];
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <int N, typename T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Two neighbouring channels, widened.
struct Pair {
  float x, y;
};
template <typename T>
__device__ __forceinline__ Pair load_pair(const T* p) {
  const Pack<T, 2> pack = load_pack<2>(p);
  return {load(pack.item[0]), load(pack.item[1])};
}

}  // namespace elsa::cuda
