// The division of the work: by the sizes alone, never by the number of threads. With it the order of every sum is
// fixed, so results are the same for any number of threads. No torch header.
#pragma once

#include "../problem.h"
#include "hadamard_plan.h"

#include <algorithm>
#include <cstdint>

namespace elsa::cpu {

constexpr int64_t kUnits = 256;  // enough for the balance of a large machine

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Fills in how a dilated map is cut into dense images (plan.h).
template <class Problem, class Geometry>
void divide_dilated(const Problem& p, Geometry& g) {
  // Taps further apart than the map is wide all fall outside it; a dilation beyond that changes nothing.
  g.dilation = std::min(p.dilation, std::max(p.height, p.width));
  g.phases_y = std::min(g.dilation, p.height), g.phases_x = std::min(g.dilation, p.width);
  g.images = p.batch * g.phases_y * g.phases_x;
  g.image_rows = ceil_div(p.height, g.dilation);
}

// A slot computes the K - 1 rows around its own again.
inline HadamardGeometry forward_geometry(const HadamardProblem& p, const HadamardKernel& kernel) {
  HadamardGeometry g{};
  g.height = p.height, g.width = p.width, g.packed = p.packed, g.channels = p.channels;
  g.group_width = p.group_width, g.kernel = p.kernel;
  divide_dilated(p, g);
  g.chunk = kernel.chunk(g), g.chunks = ceil_div(g.channels, g.chunk);
  const int64_t rows = g.images * g.image_rows, rows_per_slot = 4 * std::max<int64_t>(p.kernel, 4);
  g.slots = std::clamp<int64_t>(rows / rows_per_slot, 1, ceil_div(kUnits, g.chunks));
  return g;
}

// A slot has its own sums as well.
inline HadamardGeometry backward_geometry(const HadamardProblem& p, const HadamardKernel& kernel) {
  HadamardGeometry g = forward_geometry(p, kernel);
  constexpr int64_t kPartialBytes = 4 << 20;
  g.slots = std::clamp<int64_t>(kPartialBytes / (g.chunks * kernel.partial_bytes(g)), 1, g.slots);
  return g;
}

}  // namespace elsa::cpu
