// Vectors of one instruction set: loads and stores with conversion, exponential, horizontal sums.
//
// Written with the compiler's vector extensions, so that one text serves SSE2, AVX2, AVX-512 and other processors; a
// few conversions and masked accesses, where the compiler does badly, use intrinsics. Included by way of forward.h and
// backward.h in the .cpp files of each set, after target_*.h has defined ELSA_ISA and ELSA_VECTOR_BYTES; everything has
// internal linkage, because the same names are compiled for several instruction sets into one library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(ELSA_AVX2) || defined(ELSA_AVX512)
#include <immintrin.h>
#endif

#include "plan.h"

#define ELSA_INLINE inline __attribute__((always_inline))
#define ELSA_LAMBDA __attribute__((always_inline))

namespace elsa::cpu::ELSA_ISA {
namespace {

template <class A>
struct Simd {
  typedef A Vec __attribute__((vector_size(ELSA_VECTOR_BYTES)));
  typedef A Unaligned __attribute__((vector_size(ELSA_VECTOR_BYTES), aligned(alignof(A)), may_alias));
};
template <class A>
using Vec = typename Simd<A>::Vec;
template <class A>
constexpr int kLanes = ELSA_VECTOR_BYTES / sizeof(A);

// Integer vectors with as many lanes as Vec<float> and Vec<double>.
typedef uint32_t Bits32 __attribute__((vector_size(ELSA_VECTOR_BYTES)));
typedef uint64_t Bits64 __attribute__((vector_size(ELSA_VECTOR_BYTES)));
typedef uint16_t Bits16 __attribute__((vector_size(ELSA_VECTOR_BYTES / 2)));
typedef uint16_t Bits16Unaligned __attribute__((vector_size(ELSA_VECTOR_BYTES / 2), aligned(2), may_alias));

#if defined(ELSA_AVX512)
constexpr Bits32 kLaneNumbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#endif

// Storage type → accumulation type.
template <class T>
struct AccumulateIn {
  using type = float;
};
template <>
struct AccumulateIn<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateIn<T>::type;

// f(0), f(1), …, f(Count - 1) with compile-time arguments: arrays indexed by them stay in registers.
template <int Count, class F>
ELSA_INLINE void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) ELSA_LAMBDA {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, Count>{});
}

template <class To, class From>
ELSA_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return (To)from;  // between vector types a cast reinterprets
}

template <class A>
ELSA_INLINE Vec<A> broadcast(A scalar) {
  return scalar - Vec<A>{};
}

// ---- loads ----------------------------------------------------------------------------------------------------

ELSA_INLINE Vec<float> load(const float* p) { return *reinterpret_cast<const Simd<float>::Unaligned*>(p); }
ELSA_INLINE Vec<double> load(const double* p) { return *reinterpret_cast<const Simd<double>::Unaligned*>(p); }

ELSA_INLINE Vec<float> widen_bfloat(Bits16 bits) {
#if defined(ELSA_AVX512)
  // One permutation of 16-bit elements, which also fills in the zeros, instead of a conversion and a shift.
  const __m512i twice = (__m512i)(kLaneNumbers * 0x10001u);
  return (Vec<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, twice, _mm512_castsi256_si512((__m256i)bits));
#else
  return bit_cast<Vec<float>>(__builtin_convertvector(bits, Bits32) << 16);
#endif
}

ELSA_INLINE Vec<float> widen_half(Bits16 bits) {
#if defined(ELSA_AVX512)
  return (Vec<float>)_mm512_cvtph_ps((__m256i)bits);
#elif defined(ELSA_AVX2)
  return (Vec<float>)_mm256_cvtph_ps((__m128i)bits);
#else
  // Shifted into place, the exponent is too small by 112 for normal and subnormal numbers alike.
  const Bits32 wide = __builtin_convertvector(bits, Bits32);
  const Bits32 magnitude = (wide & 0x7fffu) << 13;
  const Bits32 finite = bit_cast<Bits32>(bit_cast<Vec<float>>(magnitude) * 0x1p112f);
  const Bits32 special = magnitude | 0x7f800000u;  // infinities and NaN
  const Bits32 number = magnitude >= (0x7c00u << 13) ? special : finite;
  return bit_cast<Vec<float>>(number | ((wide & 0x8000u) << 16));
#endif
}

ELSA_INLINE Bits16 load_bits16(const void* p) { return *static_cast<const Bits16Unaligned*>(p); }
ELSA_INLINE Vec<float> load(const BFloat* p) { return widen_bfloat(load_bits16(p)); }
ELSA_INLINE Vec<float> load(const Half* p) { return widen_half(load_bits16(p)); }

ELSA_INLINE float load_one(const float* p) { return *p; }
ELSA_INLINE double load_one(const double* p) { return *p; }
ELSA_INLINE float load_one(const BFloat* p) { return widen_bfloat(Bits16{p->bits})[0]; }
ELSA_INLINE float load_one(const Half* p) { return widen_half(Bits16{p->bits})[0]; }

// The first n elements, then zeros; nothing is read beyond them.
template <class T>
ELSA_INLINE Vec<Accumulate<T>> load_first(const T* p, int64_t n) {
#if defined(ELSA_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    return (Vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  } else if constexpr (std::is_same_v<T, double>) {
    return (Vec<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
  } else {
    const Bits16 bits = (Bits16)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    if constexpr (std::is_same_v<T, Half>) return widen_half(bits);
    else return widen_bfloat(bits);
  }
#else
  alignas(ELSA_VECTOR_BYTES) T padded[kLanes<Accumulate<T>>] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
#endif
}

// ---- stores ---------------------------------------------------------------------------------------------------

ELSA_INLINE void store(float* p, Vec<float> v) { *reinterpret_cast<Simd<float>::Unaligned*>(p) = v; }
ELSA_INLINE void store(double* p, Vec<double> v) { *reinterpret_cast<Simd<double>::Unaligned*>(p) = v; }

ELSA_INLINE Bits16 narrow_bfloat(Vec<float> v) {
#if defined(ELSA_AVX512_BF16)
  return (Bits16)_mm512_cvtneps_pbh((__m512)v);  // subnormal numbers become 0
#else
  const Bits32 bits = bit_cast<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const Bits32 nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, Bits16);
#endif
}

ELSA_INLINE Bits16 narrow_half(Vec<float> v) {
#if defined(ELSA_AVX512)
  return (Bits16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(ELSA_AVX2)
  return (Bits16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Bits32 bits = bit_cast<Bits32>(v);
  const Bits32 magnitude = bits & 0x7fffffffu;
  const Bits32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the sum with ½ rounds at exactly the spacing of subnormal halves.
  const Bits32 half = bit_cast<Bits32>(broadcast<float>(0.5f));
  const Bits32 subnormal = bit_cast<Bits32>(bit_cast<Vec<float>>(magnitude) + 0.5f) - half;
  Bits32 number = magnitude < (113u << 23) ? subnormal : normal;
  number = magnitude >= 0x477ff000u ? Bits32{} + 0x7c00u : number;  // from 65520 on: infinity
  number = magnitude > 0x7f800000u ? Bits32{} + 0x7e00u : number;   // NaN
  return __builtin_convertvector(number | ((bits >> 16) & 0x8000u), Bits16);
#endif
}

ELSA_INLINE void store(BFloat* p, Vec<float> v) { *reinterpret_cast<Bits16Unaligned*>(p) = narrow_bfloat(v); }
ELSA_INLINE void store(Half* p, Vec<float> v) { *reinterpret_cast<Bits16Unaligned*>(p) = narrow_half(v); }

template <class T>
ELSA_INLINE void store_first(T* p, Vec<Accumulate<T>> v, int64_t n) {
#if defined(ELSA_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
  } else if constexpr (std::is_same_v<T, double>) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
  } else {
    Bits16 bits;
    if constexpr (std::is_same_v<T, Half>) bits = narrow_half(v);
    else bits = narrow_bfloat(v);
    _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)bits);
  }
#else
  alignas(ELSA_VECTOR_BYTES) T padded[kLanes<Accumulate<T>>];
  store(padded, v);
  for (int64_t i = 0; i < n; ++i) p[i] = padded[i];
#endif
}

// ---- even and odd channels --------------------------------------------------------------------------------------

// A vector's bytes of bfloat16, widened into its even and its odd elements: a shift and a mask where the two halves would
// take two conversions and two shifts. The order of channels does not matter to sums over positions or over channels.
template <class T>
constexpr bool kSplits = ELSA_VECTOR_BYTES == 64 && std::is_same_v<T, BFloat>;

ELSA_INLINE Bits32 load_split(const BFloat* p) {
  typedef uint32_t Unaligned __attribute__((vector_size(ELSA_VECTOR_BYTES), aligned(2), may_alias));
  return *reinterpret_cast<const Unaligned*>(p);
}
template <int Odd>
ELSA_INLINE Vec<float> widen_split(Bits32 pairs) {
  return bit_cast<Vec<float>>(Odd ? pairs & 0xffff0000u : pairs << 16);
}

// sum + the products of two vectors of pairs, each pair's in its lane.
template <class T>
constexpr bool kMultipliesPairs = false;
#if defined(ELSA_AVX512_BF16)
template <>
constexpr bool kMultipliesPairs<BFloat> = true;
ELSA_INLINE Vec<float> multiply_pairs(Vec<float> sum, Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

#if defined(ELSA_AVX512)
ELSA_INLINE void store_split(BFloat* p, Vec<float> even, Vec<float> odd) {
#if defined(ELSA_AVX512_BF16)
  // One instruction narrows both, but puts them one after the other.
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const Bits32 order = kLaneNumbers * 0x10001u + 0x100000u;  // 0, 16, 1, 17, …
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16((__m512i)order, halves));
#else
  const Bits32 low = __builtin_convertvector(narrow_bfloat(even), Bits32);
  const Bits32 high = __builtin_convertvector(narrow_bfloat(odd), Bits32);
  _mm512_storeu_si512(p, (__m512i)(low | high << 16));
#endif
}
#endif

// ---- across lanes ---------------------------------------------------------------------------------------------

// Lane k of the result is lane Index{}(k) of a, or of b where the index is N or more.
template <class Index, class A>
ELSA_INLINE Vec<A> shuffle(Vec<A> a, Vec<A> b, Index) {
  return [&]<int... k>(std::integer_sequence<int, k...>) ELSA_LAMBDA {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, Index::at(k)...);
#else
    using Selector = std::conditional_t<sizeof(A) == 4, Bits32, Bits64>;
    return __builtin_shuffle(a, b, Selector{static_cast<unsigned>(Index::at(k))...});
#endif
  }(std::make_integer_sequence<int, kLanes<A>>{});
}

template <int N, int By>
struct Rotate {
  static constexpr int at(int k) { return (k + By) % N; }
};
// Within each 128-bit lane of L elements: pairs (a, b) of single elements, or of two elements, from its lower or
// upper half.
template <int N, int L, int Group, int Upper>
struct Interleave {
  static constexpr int at(int k) {
    const int lane = k / L * L, within = k % L, pair = within / (2 * Group), rest = within % (2 * Group);
    return lane + Upper * (L / 2) + pair * Group + rest % Group + (rest / Group) * N;
  }
};

template <int N>
struct Alternate {  // 128-bit lanes in turn from a and b
  static constexpr int at(int k) { return k % 8 < 4 ? k : N + k; }
};
template <int From>
struct Splat {
  static constexpr int at(int) { return From; }
};

struct Sum {
  template <class V>
  static ELSA_INLINE V of(V a, V b) { return a + b; }
};
struct Largest {
  template <class V>
  static ELSA_INLINE V of(V a, V b) { return a > b ? a : b; }
};

// Combines the 128-bit lanes of v with each other; every one of the result holds the outcome.
template <class Operation, class A>
ELSA_INLINE Vec<A> combine_lanes(Vec<A> v) {
  constexpr int N = kLanes<A>;
  if constexpr (ELSA_VECTOR_BYTES >= 64) v = Operation::of(v, shuffle<Rotate<N, N / 2>, A>(v, v, {}));
  if constexpr (ELSA_VECTOR_BYTES == 64) v = Operation::of(v, shuffle<Rotate<N, N / 4>, A>(v, v, {}));
  if constexpr (ELSA_VECTOR_BYTES == 32) v = Operation::of(v, shuffle<Rotate<N, N / 2>, A>(v, v, {}));
  return v;
}

// Every 128-bit lane of the result holds the four vectors' sums (largest elements), in order.
template <class Operation>
ELSA_INLINE Vec<float> combine_four(Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d) {
  constexpr int N = kLanes<float>;
  using Low1 = Interleave<N, 4, 1, 0>;
  using High1 = Interleave<N, 4, 1, 1>;
  using Low2 = Interleave<N, 4, 2, 0>;
  using High2 = Interleave<N, 4, 2, 1>;
  const Vec<float> ab = Operation::of(shuffle<Low1, float>(a, b, {}), shuffle<High1, float>(a, b, {}));
  const Vec<float> cd = Operation::of(shuffle<Low1, float>(c, d, {}), shuffle<High1, float>(c, d, {}));
  return combine_lanes<Operation, float>(
      Operation::of(shuffle<Low2, float>(ab, cd, {}), shuffle<High2, float>(ab, cd, {})));
}
template <class Operation>
ELSA_INLINE Vec<double> combine_two(Vec<double> a, Vec<double> b) {
  constexpr int N = kLanes<double>;
  using Low = Interleave<N, 2, 1, 0>;
  using High = Interleave<N, 2, 1, 1>;
  return combine_lanes<Operation, double>(
      Operation::of(shuffle<Low, double>(a, b, {}), shuffle<High, double>(a, b, {})));
}

// out[0..3] += the sums of the lanes of four vectors.
ELSA_INLINE void add_sums(float* out, Vec<float> a, Vec<float> b, Vec<float> c, Vec<float> d) {
  typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
  const Vec<float> sums = combine_four<Sum>(a, b, c, d);
  *reinterpret_cast<Quad*>(out) += *reinterpret_cast<const Quad*>(&sums);
}
ELSA_INLINE void add_sums(double* out, Vec<double> a, Vec<double> b, Vec<double> c, Vec<double> d) {
  typedef double Pair __attribute__((vector_size(16), aligned(8), may_alias));
  const Vec<double> ab = combine_two<Sum>(a, b), cd = combine_two<Sum>(c, d);
  reinterpret_cast<Pair*>(out)[0] += *reinterpret_cast<const Pair*>(&ab);
  reinterpret_cast<Pair*>(out)[1] += *reinterpret_cast<const Pair*>(&cd);
}

// Every lane of the result holds the sum (the largest) of all lanes.
template <class Operation, class A, int Step = kLanes<A> / 2>
ELSA_INLINE Vec<A> combine_all(Vec<A> v) {
  v = Operation::of(v, shuffle<Rotate<kLanes<A>, Step>, A>(v, v, {}));
  if constexpr (Step > 1) return combine_all<Operation, A, Step / 2>(v);
  else return v;
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
