// Transposition of four floats of each lane: between rows in memory and vectors across the lanes.
#pragma once

#include "simd.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

typedef int32_t Int32 __attribute__((vector_size(ELSA_VECTOR_BYTES)));

struct Four {
  Vec<float> vectors[4];
};

// Each 128-bit lane as a matrix of 4×4.
ELSA_INLINE Four transpose(const Four& rows) {
  constexpr int N = kLanes<float>;
  using Low1 = Interleave<N, 4, 1, 0>;
  using High1 = Interleave<N, 4, 1, 1>;
  using Low2 = Interleave<N, 4, 2, 0>;
  using High2 = Interleave<N, 4, 2, 1>;
  const Vec<float>(&r)[4] = rows.vectors;
  const Vec<float> a = shuffle<Low1, float>(r[0], r[1], {}), b = shuffle<Low1, float>(r[2], r[3], {});
  const Vec<float> c = shuffle<High1, float>(r[0], r[1], {}), d = shuffle<High1, float>(r[2], r[3], {});
  return {{shuffle<Low2, float>(a, b, {}), shuffle<High2, float>(a, b, {}), shuffle<Low2, float>(c, d, {}),
           shuffle<High2, float>(c, d, {})}};
}

// Vector n of the result holds element n of each lane's four; row_of(lane) points to them.
template <class RowOf>
ELSA_INLINE Four transpose_rows(RowOf&& row_of) {
  typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
  alignas(ELSA_VECTOR_BYTES) Quad rows[4][kLanes<float> / 4];  // row n: those of lanes n, n + 4, …
  unroll<kLanes<float>>([&](auto constant) ELSA_LAMBDA {
    constexpr int lane = constant;
    rows[lane % 4][lane / 4] = *reinterpret_cast<const Quad*>(row_of(lane));
  });
  Four four;
  unroll<4>([&](auto n) ELSA_LAMBDA { four.vectors[n] = load(reinterpret_cast<const float*>(rows[n])); });
  return transpose(four);
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
