// The walk over the dense images of a dilated problem (plan.h) and over the rows of a slot.
#pragma once

#include "simd.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// One dense image, in positions of the whole map.
struct Image {
  int64_t origin, row_step, column_step;
  int64_t rows, columns;
};

template <class Geometry>
ELSA_INLINE Image image_at(const Geometry& g, int64_t index) {
  const int64_t phase_x = index % g.phases_x, phase_y = index / g.phases_x % g.phases_y;
  const int64_t batch = index / (g.phases_x * g.phases_y);
  return {(batch * g.height + phase_y) * g.width + phase_x, g.dilation * g.width, g.dilation,
          (g.height - phase_y + g.dilation - 1) / g.dilation, (g.width - phase_x + g.dilation - 1) / g.dilation};
}

// Calls f(image, first row, last row) for the pieces of a slot's range of rows.
template <class Geometry, class F>
ELSA_INLINE void for_pieces(const Geometry& g, int64_t slot, F&& f) {
  const int64_t rows = g.images * g.image_rows;
  int64_t row = rows * slot / g.slots;
  const int64_t last = rows * (slot + 1) / g.slots;
  while (row < last) {
    const int64_t index = row / g.image_rows, start = index * g.image_rows;
    const int64_t stop = last < start + g.image_rows ? last : start + g.image_rows;
    const Image image = image_at(g, index);
    const int64_t first_row = row - start, last_row = stop - start < image.rows ? stop - start : image.rows;
    if (first_row < last_row) f(image, first_row, last_row);
    row = stop;
  }
}

// The rows of a slot for several chunks of channels, each of which needs `reach` rows to both sides: what a row holds is
// filled in, then it is computed.
template <class Geometry, class Chunk>
ELSA_INLINE void walk_rows(const Geometry& g, int64_t slot, int64_t reach, const Chunk* chunks, int count) {
  for_pieces(g, slot, [&](const Image& image, int64_t first_row, int64_t last_row) ELSA_LAMBDA {
    for (int64_t y = first_row < reach ? 0 : first_row - reach; y < first_row + reach && y < image.rows; ++y)
      for (int c = 0; c < count; ++c) chunks[c].fill(image, y);
    for (int64_t y = first_row; y < last_row; ++y)
      for (int c = 0; c < count; ++c) {
        if (y + reach < image.rows) chunks[c].fill(image, y + reach);
        chunks[c].compute(image, y);
      }
  });
}

// Requests the cache lines of elements [first, first + count), to be written where Write is 1. The strided walk of one
// head or chunk is beyond what the processor predicts. Addresses outside the array are harmless here.
template <int Write, class T>
ELSA_INLINE void prefetch_lines(const T* array, int64_t first, int64_t count) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(array) + static_cast<uintptr_t>(first) * sizeof(T);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(start + static_cast<uintptr_t>(byte)), Write, 3);
}

template <class T, bool Partial>
ELSA_INLINE Vec<Accumulate<T>> load_channels(const T* p, int64_t count) {
  if constexpr (Partial) return load_first(p, count);
  else return load(p);
}

template <class T, bool Partial>
ELSA_INLINE void store_channels(T* p, Vec<Accumulate<T>> v, int64_t count) {
  if constexpr (Partial) store_first(p, v, count);
  else store(p, v);
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
