// local = GELU(conv(query · key · scale) + bias) for one chunk of channels, in planes.
#pragma once

#include "hadamard_planes.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

template <class T>
struct PlanesForward {
  using A = Accumulate<T>;
  const HadamardForward& arguments;
  const Planes<T>& planes;
  A* ring;
  A* out;  // one row
  A* weights;
  A* bias;
  int64_t first, count;  // channels

  void compute(const Image& image, int64_t y) const {
    planes.convolve(image, y, ring, weights, bias, count, out);
    write(image, y);
  }

  void fill(const Image& image, int64_t y) const {
    const HadamardGeometry& g = planes.g;
    A* row = planes.row(ring, y);
    for (int64_t i = 0; i < planes.row_elements(); ++i) row[i] = 0;
    const A scale = static_cast<A>(arguments.scale);
    for (int64_t x = 0; x < image.columns; ++x) {
      const int64_t position = image.origin + y * image.row_step + x * image.column_step;
      const T* query = static_cast<const T*>(arguments.packed) + position * g.packed + first;
      for (int64_t c = 0; c < count; ++c)
        row[c * planes.stride + planes.reach + x] = load_one(query + c) * load_one(query + g.channels + c) * scale;
    }
  }

 private:
  void write(const Image& image, int64_t y) const {
    if (arguments.before) interleave(image, y, static_cast<T*>(arguments.before));
    for (int64_t c = 0; c < count; ++c)
      for (int64_t x = 0; x < image.columns; x += kLanes<A>) {
        A* values = out + c * planes.stride + x;
        store(values, gelu(load(values)));
      }
    interleave(image, y, static_cast<T*>(arguments.local));
  }

  void interleave(const Image& image, int64_t y, T* to) const {
    for (int64_t x = 0; x < image.columns; ++x) {
      const int64_t position = image.origin + y * image.row_step + x * image.column_step;
      for (int64_t c = 0; c < count; ++c)
        store_one(to + position * planes.g.channels + first + c, out[c * planes.stride + x]);
    }
  }
};

template <class T>
int64_t planes_forward_scratch(const HadamardGeometry& g) {
  const Planes<T> planes(g);
  return (planes.ring_elements() + planes.row_elements() + planes.weight_elements() + g.chunk) *
         static_cast<int64_t>(sizeof(Accumulate<T>));
}

template <class T>
void planes_forward(const HadamardForward& arguments, int64_t first, int64_t last, void* scratch) {
  using A = Accumulate<T>;
  const HadamardGeometry& g = arguments.geometry;
  const Planes<T> planes(g);
  A *ring = static_cast<A*>(scratch), *out = ring + planes.ring_elements(), *weights = out + planes.row_elements();
  A* bias = weights + planes.weight_elements();
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t channel = unit / g.slots * g.chunk, count = at_most(g.chunk, g.channels - channel);
    planes.template pack<false>(static_cast<const T*>(arguments.weight), channel, count, weights);
    for (int64_t c = 0; c < count; ++c)
      bias[c] = arguments.bias ? load_one(static_cast<const T*>(arguments.bias) + channel + c) : A(0);
    const PlanesForward<T> channels{arguments, planes, ring, out, weights, bias, channel, count};
    walk_rows(g, unit % g.slots, planes.reach, &channels, 1);
  }
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
