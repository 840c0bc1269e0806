// Which kernel a problem takes: in lanes where the sizes fit, in planes everywhere else.
#pragma once

#include "hadamard_lanes_backward.h"
#include "hadamard_lanes_forward.h"
#include "hadamard_planes_backward.h"
#include "hadamard_planes_forward.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// Calls f(kernel size) with a compile-time constant: 3, 5 or 7 for kernels in lanes, 0 for those in planes.
template <class T, class F>
ELSA_INLINE auto with_kernel(const HadamardGeometry& g, F&& f) {
  if constexpr (kHasLanes<T>) {
    if (fits_lanes<T>(g)) switch (g.kernel) {
        case 3: return f(std::integral_constant<int, 3>{});
        case 5: return f(std::integral_constant<int, 5>{});
        case 7: return f(std::integral_constant<int, 7>{});
      }
  }
  return f(std::integral_constant<int, 0>{});
}

template <class T>
int64_t hadamard_chunk(const HadamardGeometry& g) {
  return fits_lanes<T>(g) ? int64_t{kTogether<T> * kLanes<float>} : Planes<T>::chunk(g);
}

template <class T>
int64_t hadamard_forward_scratch(const HadamardGeometry& g) {
  return with_kernel<T>(g, [&](auto K) -> int64_t {
    if constexpr (K() > 0) return lanes_forward_scratch<T, K()>(g);
    else return planes_forward_scratch<T>(g);
  });
}

template <class T>
int64_t hadamard_backward_scratch(const HadamardGeometry& g) {
  return with_kernel<T>(g, [&](auto K) -> int64_t {
    if constexpr (K() > 0) return lanes_backward_scratch<T, K()>(g);
    else return planes_backward_scratch<T>(g);
  });
}

template <class T>
int64_t hadamard_partial_bytes(const HadamardGeometry& g) {
  return with_kernel<T>(g, [&](auto K) -> int64_t {
    if constexpr (K() > 0) return kTogether<T> * lanes_sums<K()>(g) * int64_t{sizeof(float)};
    else return Planes<T>(g).sum_elements() * int64_t{sizeof(Accumulate<T>)};
  });
}

template <class T>
void hadamard_forward(const HadamardForward& arguments, int64_t first, int64_t last, void* scratch) {
  with_kernel<T>(arguments.geometry, [&](auto K) {
    if constexpr (K() > 0) lanes_forward<T, K()>(arguments, first, last, scratch);
    else planes_forward<T>(arguments, first, last, scratch);
  });
}

template <class T>
void hadamard_backward(const HadamardBackward& arguments, int64_t first, int64_t last, void* scratch) {
  with_kernel<T>(arguments.geometry, [&](auto K) {
    if constexpr (K() > 0) lanes_backward<T, K()>(arguments, first, last, scratch);
    else planes_backward<T>(arguments, first, last, scratch);
  });
}

template <class T>
void hadamard_reduce(const HadamardBackward& arguments, int64_t first, int64_t last) {
  with_kernel<T>(arguments.geometry, [&](auto K) {
    if constexpr (K() > 0) lanes_reduce<T, K()>(arguments, first, last);
    else planes_reduce<T>(arguments, first, last);
  });
}

template <class T>
constexpr HadamardKernel hadamard_kernel{
    hadamard_chunk<T>,   hadamard_forward_scratch<T>, hadamard_backward_scratch<T>, hadamard_partial_bytes<T>,
    hadamard_forward<T>, hadamard_backward<T>,        hadamard_reduce<T>};

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
