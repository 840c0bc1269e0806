// GELU of arrays, and its gradient.
#pragma once

#include "gelu.h"
#include "gelu_plan.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

template <class T>
void gelu_forward(const void* before, void* local, int64_t count) {
  constexpr int64_t L = kLanes<Accumulate<T>>;
  const T* from = static_cast<const T*>(before);
  T* to = static_cast<T*>(local);
  int64_t i = 0;
  for (; i + L <= count; i += L) store(to + i, gelu(load(from + i)));
  if (i < count) store_first(to + i, gelu(load_first(from + i, count - i)), count - i);
}

template <class T>
void gelu_backward(const void* grad_local, const void* before, void* grad_before, void* local, int64_t count) {
  constexpr int64_t L = kLanes<Accumulate<T>>;
  const T *grad = static_cast<const T*>(grad_local), *from = static_cast<const T*>(before);
  T *gradient = static_cast<T*>(grad_before), *to = static_cast<T*>(local);
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    const auto z = load(from + i);
    store(gradient + i, load(grad + i) * gelu_slope(z));
    store(to + i, gelu(z));
  }
  if (i == count) return;
  const auto z = load_first(from + i, count - i);
  store_first(gradient + i, load_first(grad + i, count - i) * gelu_slope(z), count - i);
  store_first(to + i, gelu(z), count - i);
}

template <class T>
constexpr GeluKernel gelu_kernel{gelu_forward<T>, gelu_backward<T>};

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
