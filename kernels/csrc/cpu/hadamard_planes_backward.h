// The gradients of query, key, weight and bias for one chunk of channels, in planes.
#pragma once

#include "hadamard_planes.h"
#include "hadamard_rest.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

template <class T>
struct PlanesBackward {
  using A = Accumulate<T>;
  static constexpr int N = kLanes<A>;
  const HadamardBackward& arguments;
  const Planes<T>& planes;
  A* ring;      // the gradient of `before`
  A* out;       // one row: the gradient of the product
  A* hadamard;  // the same row of query · key · scale
  A* weights;   // mirrored
  A* sums;
  int64_t chunk, first, count;  // channels

  void compute(const Image& image, int64_t y) const {
    planes.convolve(image, y, ring, weights, nullptr, count, out);
    write(image, y);
    add_bias(image, y);
    add_weights(image, y);
    copy_rest<T>(arguments, image, y, chunk);
  }

  void fill(const Image& image, int64_t y) const {
    const HadamardGeometry& g = planes.g;
    A* row = planes.row(ring, y);
    for (int64_t i = 0; i < planes.row_elements(); ++i) row[i] = out[i] = 0;
    for (int64_t x = 0; x < image.columns; ++x) {
      const int64_t at = (image.origin + y * image.row_step + x * image.column_step) * g.channels + first;
      for (int64_t c = 0; c < count; ++c) {
        row[c * planes.stride + planes.reach + x] = load_one(static_cast<const T*>(arguments.grad_local) + at + c);
        out[c * planes.stride + x] = load_one(static_cast<const T*>(arguments.before) + at + c);
      }
    }
    for (int64_t c = 0; c < count; ++c)
      for (int64_t x = 0; x < image.columns; x += N) {
        A* gradient = row + c * planes.stride + planes.reach + x;
        store(gradient, load(gradient) * gelu_slope(load(out + c * planes.stride + x)));
      }
  }

 private:
  void write(const Image& image, int64_t y) const {
    const HadamardGeometry& g = planes.g;
    const A scale = static_cast<A>(arguments.scale);
    for (int64_t i = 0; i < planes.row_elements(); ++i) hadamard[i] = 0;
    for (int64_t x = 0; x < image.columns; ++x) {
      const int64_t at = (image.origin + y * image.row_step + x * image.column_step) * g.packed + first;
      const T* query = static_cast<const T*>(arguments.packed) + at;
      T* gradient = static_cast<T*>(arguments.grad_packed) + at;
      for (int64_t c = 0; c < count; ++c) {
        const A q = load_one(query + c), k = load_one(query + g.channels + c), d = out[c * planes.stride + x] * scale;
        hadamard[c * planes.stride + x] = q * k * scale;
        store_one(gradient + c, d * k);
        store_one(gradient + g.channels + c, d * q);
      }
    }
  }

  void add_bias(const Image& image, int64_t y) const {
    A* bias = sums + planes.g.chunk * planes.g.group_width * planes.kernel * planes.offsets();
    for (int64_t c = 0; c < count; ++c) {
      const A* gradient = planes.row(ring, y) + c * planes.stride + planes.reach;
      A total = 0;
      for (int64_t x = 0; x < image.columns; ++x) total += gradient[x];
      bias[c] += total;
    }
  }

  // Offset s of a row is tap kernel - 1 - s: the output at x + s - reach has met the input at x there.
  void add_weights(const Image& image, int64_t y) const {
    const int64_t width = planes.g.group_width, reach = planes.reach, kernel = planes.kernel;
    for (int64_t j = 0; j < kernel; ++j) {
      const int64_t row = y + reach - j;
      if (row < 0 || row >= image.rows) continue;
      for (int64_t c = 0; c < count; ++c)
        for (int64_t i = 0; i < width; ++i) {
          const A* gradient = planes.row(ring, row) + c * planes.stride;
          const A* input = hadamard + (c - c % width + i) * planes.stride;
          A* to = sums + ((c * width + i) * kernel + j) * planes.offsets();
          for (int64_t s = 0; s < kernel; s += 4) {
            Vec<A> total[4] = {};
            for (int64_t x = 0; x < image.columns; x += N) {
              const Vec<A> h = load(input + x);
              unroll<4>([&](auto n) ELSA_LAMBDA { total[n] += h * load(gradient + x + s + n); });
            }
            add_sums(to + s, total[0], total[1], total[2], total[3]);
          }
        }
    }
  }
};

template <class T>
int64_t planes_backward_scratch(const HadamardGeometry& g) {
  const Planes<T> planes(g);
  return (planes.ring_elements() + 2 * planes.row_elements() + planes.weight_elements()) *
         static_cast<int64_t>(sizeof(Accumulate<T>));
}

template <class T>
void planes_backward(const HadamardBackward& arguments, int64_t first, int64_t last, void* scratch) {
  using A = Accumulate<T>;
  const HadamardGeometry& g = arguments.geometry;
  const Planes<T> planes(g);
  A *ring = static_cast<A*>(scratch), *out = ring + planes.ring_elements(), *hadamard = out + planes.row_elements();
  A* weights = hadamard + planes.row_elements();
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t chunk = unit / g.slots, channel = chunk * g.chunk, count = at_most(g.chunk, g.channels - channel);
    planes.template pack<true>(static_cast<const T*>(arguments.weight), channel, count, weights);
    A* sums = static_cast<A*>(arguments.partial) + unit * planes.sum_elements();
    for (int64_t i = 0; i < planes.sum_elements(); ++i) sums[i] = 0;
    const PlanesBackward<T> channels{arguments, planes, ring, out, hadamard, weights, sums, chunk, channel, count};
    walk_rows(g, unit % g.slots, planes.reach, &channels, 1);
  }
}

template <class T>
void planes_reduce(const HadamardBackward& arguments, int64_t first, int64_t last) {
  using A = Accumulate<T>;
  const HadamardGeometry& g = arguments.geometry;
  const Planes<T> planes(g);
  const int64_t elements = planes.sum_elements(), skip = g.kernel / 2 - planes.reach;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    const A* sums = static_cast<const A*>(arguments.partial) + chunk * g.slots * elements;
    const auto total = [&](int64_t at) {
      A sum = 0;
      for (int64_t slot = 0; slot < g.slots; ++slot) sum += sums[slot * elements + at];
      return sum;
    };
    const int64_t channel = chunk * g.chunk, count = at_most(g.chunk, g.channels - channel);
    for (int64_t c = 0; c < count; ++c) {
      store_one(static_cast<T*>(arguments.grad_bias) + channel + c, total(elements - g.chunk + c));
      for (int64_t i = 0; i < g.group_width; ++i) {
        T* to = static_cast<T*>(arguments.grad_weight) + ((channel + c) * g.group_width + i) * g.kernel * g.kernel;
        for (int64_t j = 0; j < g.kernel; ++j)
          for (int64_t t = 0; t < g.kernel; ++t) {
            const int64_t row = j - skip, offset = planes.kernel - 1 - (t - skip);
            const bool within = row >= 0 && row < planes.kernel && offset >= 0 && offset < planes.kernel;
            const int64_t at = ((c * g.group_width + i) * planes.kernel + row) * planes.offsets() + offset;
            store_one(to + j * g.kernel + t, within ? total(at) : A(0));
          }
      }
    }
  }
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
