// The part of the packed gradient that belongs to neither query nor key.
#pragma once

#include "hadamard_plan.h"
#include "images.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// One row of a chunk's share of those channels, in whole cache lines as far as the rest has any.
template <class T>
void copy_rest(const HadamardBackward& arguments, const Image& image, int64_t y, int64_t chunk) {
  const HadamardGeometry& g = arguments.geometry;
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t rest = g.packed - 2 * g.channels, lines = (rest + kLine - 1) / kLine;
  const int64_t first = lines * chunk / g.chunks * kLine, end = lines * (chunk + 1) / g.chunks * kLine;
  const int64_t last = end < rest ? end : rest;
  if (first >= last) return;
  const size_t bytes = static_cast<size_t>(last - first) * sizeof(T);
  int64_t position = image.origin + y * image.row_step;
  for (int64_t x = 0; x < image.columns; ++x, position += image.column_step) {
    T* to = static_cast<T*>(arguments.grad_packed) + position * g.packed + 2 * g.channels + first;
    const T* from = static_cast<const T*>(arguments.grad_rest);
    if (from) __builtin_memcpy(to, from + position * rest + first, bytes);
    else __builtin_memset(to, 0, bytes);
  }
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
