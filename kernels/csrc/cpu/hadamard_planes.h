// The grouped K×K convolution for any kernel size, group width and type: a vector holds neighbouring positions of one
// channel, so that rows of the map are kept as planes.
#pragma once

#include "gelu.h"
#include "hadamard_plan.h"
#include "images.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

ELSA_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
ELSA_INLINE int64_t round_up(int64_t a, int64_t step) { return (a + step - 1) / step * step; }

template <class T>
ELSA_INLINE void store_one(T* p, Accumulate<T> value) {
  store_first(p, broadcast<Accumulate<T>>(value), 1);
}

// Sizes of the planes of one chunk. Taps beyond the map are left out: `reach` is what remains to each side.
template <class T>
struct Planes {
  using A = Accumulate<T>;
  static constexpr int N = kLanes<A>;
  const HadamardGeometry& g;
  int64_t reach, kernel, stride;

  explicit Planes(const HadamardGeometry& geometry) : g(geometry) {
    const int64_t columns = (g.width + g.dilation - 1) / g.dilation;
    reach = at_most(g.kernel / 2, (g.image_rows > columns ? g.image_rows : columns) - 1);
    kernel = 2 * reach + 1;
    stride = round_up(columns, N) + round_up(kernel, 4) + N;  // the reads of the last vector and of four taps
  }

  // Whole groups, and a cache line of float if they are narrow.
  static int64_t chunk(const HadamardGeometry& g) {
    return at_most(g.channels, g.group_width * ((16 + g.group_width - 1) / g.group_width));
  }
  int64_t ring_elements() const { return kernel * g.chunk * stride; }
  int64_t row_elements() const { return g.chunk * stride; }
  int64_t weight_elements() const { return g.chunk * g.group_width * kernel * kernel; }
  // Sums of the weight's gradient: [channel][input channel][row][offset], offsets in whole fours; then the bias.
  int64_t offsets() const { return round_up(kernel, 4); }
  int64_t sum_elements() const { return g.chunk * (g.group_width * kernel * offsets() + 1); }

  // [channel][other channel of the group][row][tap] of what is within reach. Mirrored: from outputs to inputs.
  template <bool Mirrored>
  void pack(const T* weight, int64_t first, int64_t count, A* to) const {
    const int64_t taps = g.kernel * g.kernel, skip = g.kernel / 2 - reach;
    for (int64_t c = first; c < first + count; ++c)
      for (int64_t i = 0; i < g.group_width; ++i) {
        const int64_t place = c % g.group_width;
        const T* from = weight + (Mirrored ? (c - place + i) * g.group_width + place : c * g.group_width + i) * taps;
        for (int64_t j = 0; j < kernel; ++j)
          for (int64_t t = 0; t < kernel; ++t) {
            const int64_t tap = (skip + j) * g.kernel + skip + t;
            *to++ = load_one(from + (Mirrored ? taps - 1 - tap : tap));
          }
      }
  }

  ELSA_INLINE A* row(A* ring, int64_t y) const { return ring + y % kernel * row_elements(); }

  // Output planes of one row: out[c][x] = start[c] + Σ weight · ring, for `count` channels.
  void convolve(const Image& image, int64_t y, A* ring, const A* weights, const A* start, int64_t count, A* out) const {
    for (int64_t c = 0; c < count; c += g.group_width) {
      int64_t o = 0;
      for (; o + 4 <= g.group_width; o += 4) outputs<4>(image, y, ring, weights, start, c, o, out);
      for (; o < g.group_width; ++o) outputs<1>(image, y, ring, weights, start, c, o, out);
    }
  }

 private:
  template <int Outputs>
  void outputs(const Image& image, int64_t y, A* ring, const A* weights, const A* start, int64_t group, int64_t o,
               A* out) const {
    const int64_t first = y < reach ? reach - y : 0, last = at_most(kernel, image.rows - y + reach);
    const int64_t taps = kernel * kernel, step = g.group_width * taps;
    for (int64_t x = 0; x < image.columns; x += N) {
      Vec<A> acc[Outputs];
      unroll<Outputs>([&](auto n) ELSA_LAMBDA { acc[n] = broadcast<A>(start ? start[group + o + n] : A(0)); });
      for (int64_t j = first; j < last; ++j)
        for (int64_t i = 0; i < g.group_width; ++i) {
          const A* source = row(ring, y + j - reach) + (group + i) * stride + x;
          const A* weight = weights + (group + o) * step + i * taps + j * kernel;
          for (int64_t t = 0; t < kernel; ++t) {
            const Vec<A> v = load(source + t);
            unroll<Outputs>([&](auto n) ELSA_LAMBDA { acc[n] += broadcast<A>(weight[n * step + t]) * v; });
          }
        }
      unroll<Outputs>([&](auto n) ELSA_LAMBDA { store(out + (group + o + n) * stride + x, acc[n]); });
    }
  }
};

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
