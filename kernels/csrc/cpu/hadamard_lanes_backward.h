// The gradients of query, key, weight and bias for one chunk of channels, in lanes.
#pragma once

#include "hadamard_lanes.h"
#if defined(ELSA_AVX512_BF16)
#include "hadamard_pairs.h"
#endif
#include "hadamard_rest.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// [(row · group width + input channel) · K + tap][lane], then one vector for the bias.
template <int K>
ELSA_INLINE int64_t lanes_sums(const HadamardGeometry& g) {
  return (g.group_width * K * K + 1) * kLanes<float>;
}

// One chunk of lanes.
template <class T, int K>
struct LanesBackward {
  static constexpr int N = kLanes<float>, R = K / 2;
  const HadamardBackward* arguments;
  const Factor<T>* weights;  // mirrored
  Ring<T, K> ring;           // the gradient of `before`, its center the current row
  Product<T, K> product;     // of the current row
  int64_t chunk;
  float* sums;

  static int64_t scratch(const HadamardGeometry& g) {
    return Packed<T, K>::bytes(g.group_width) + Ring<T, K>::bytes(g.width) + Product<T, K>::bytes(g.width);
  }
  ELSA_INLINE const HadamardGeometry& g() const { return arguments->geometry; }
  ELSA_INLINE int64_t first_channel() const { return chunk * N; }

  void fill(const Image& image, int64_t y) const {
    Factor<T>* row = ring.row(y);
    ring.pad(row, image.columns);
    const int64_t at = (image.origin + y * image.row_step) * g().channels + first_channel();
    const int64_t step = image.column_step * g().channels;
    const T* gradient = static_cast<const T*>(arguments->grad_local) + at;
    const T* before = static_cast<const T*>(arguments->before) + at;
    for_channels(g(), chunk, [&](auto partial, int64_t count) ELSA_LAMBDA {
      for (int64_t x = 0; x < image.columns; ++x, gradient += step, before += step) {
        const Vec<float> slope = gelu_slope(load_channels<T, partial()>(before, count));
        store(row + (R + x) * N, load_channels<T, partial()>(gradient, count) * slope);
      }
    });
  }

  void compute(const Image& image, int64_t y) const {
    for_channels(g(), chunk, [&](auto partial, int64_t count) ELSA_LAMBDA {
      for (int64_t x = 0; x < image.columns; x += kRun) block<partial()>(image, y, x, count);
    });
    add_weights(image, y);
    if (chunk % kTogether<T> == 0) copy_rest<T>(*arguments, image, y, chunk / kTogether<T>);
  }

 private:
  // The gradient of the product, from which those of its factors follow.
  template <bool Partial>
  ELSA_INLINE void block(const Image& image, int64_t y, int64_t x, int64_t count) const {
    const int64_t first = y < R ? R - y : 0, last = image.rows - y + R < K ? image.rows - y + R : K;
    Vec<float> acc[kRun] = {};
    convolve<K>(acc, weights, g().group_width, first, last, [&](int64_t j) ELSA_LAMBDA {
      for (int64_t p = j * kRun / K; p < (j + 1) * kRun / K; ++p) prefetch(image, y + 1, x + p);
      return ring.row(y + j - R) + x * N;
    });
    const int64_t stop = image.columns - x, step = image.column_step * g().packed;
    const int64_t at = (image.origin + y * image.row_step + x * image.column_step) * g().packed + first_channel();
    const T* query = static_cast<const T*>(arguments->packed) + at;
    T* gradient = static_cast<T*>(arguments->grad_packed) + at;
    const float scale = static_cast<float>(arguments->scale);
    unroll<kRun>([&](auto p) ELSA_LAMBDA {
      if (p < stop) {
        const Vec<float> q = load_channels<T, Partial>(query + p * step, count);
        const Vec<float> k = load_channels<T, Partial>(query + p * step + g().channels, count);
        product.set(x + p, q * k * scale);
        store_channels<T, Partial>(gradient + p * step, acc[p] * scale * k, count);
        store_channels<T, Partial>(gradient + p * step + g().channels, acc[p] * scale * q, count);
      }
    });
  }

  // The row's products with the outputs that it reached.
  void add_weights(const Image& image, int64_t y) const {
    product.finish(image.columns);
    for (int64_t j = 0; j < K; ++j) {
      const int64_t out = y + R - j;
      if (out < 0 || out >= image.rows) continue;
      float* to = sums + j * g().group_width * K * N;
      product.add(ring.row(out), image.columns, g().group_width, to);
    }
    float* bias = sums + g().group_width * K * K * N;
    store(bias, load(bias) + total(ring.row(y) + R * N, image.columns));
  }

  ELSA_INLINE void prefetch(const Image& image, int64_t y, int64_t x) const {
    const int64_t position = image.origin + y * image.row_step + x * image.column_step;
    const int64_t query = position * g().packed + first_channel();
    const int64_t out = (position + R * image.row_step) * g().channels + first_channel();
    prefetch_chunk<0>(static_cast<const T*>(arguments->packed) + query);
    prefetch_chunk<0>(static_cast<const T*>(arguments->packed) + query + g().channels);
    prefetch_chunk<1>(static_cast<const T*>(arguments->grad_packed) + query);
    prefetch_chunk<1>(static_cast<const T*>(arguments->grad_packed) + query + g().channels);
    prefetch_chunk<0>(static_cast<const T*>(arguments->grad_local) + out);
    prefetch_chunk<0>(static_cast<const T*>(arguments->before) + out);
  }
};

template <class T, int K>
int64_t lanes_backward_scratch(const HadamardGeometry& g) {
  return kTogether<T> * LanesBackward<T, K>::scratch(g);
}

template <class T, int K>
void lanes_backward(const HadamardBackward& arguments, int64_t first, int64_t last, void* scratch) {
  using Lanes = LanesBackward<T, K>;
  const HadamardGeometry& g = arguments.geometry;
  const auto make = [&](const Factor<T>* weights, char* memory, int64_t chunk) ELSA_LAMBDA {
    const Product<T, K> product(memory + Ring<T, K>::bytes(g.width), g.width);
    return Lanes{&arguments, weights, {memory, g.width}, product, chunk, nullptr};
  };
  const auto compute = [&](int64_t unit, Lanes* chunks, int count) ELSA_LAMBDA {
    float* sums = static_cast<float*>(arguments.partial) + unit * kTogether<T> * lanes_sums<K>(g);
    __builtin_memset(sums, 0, static_cast<size_t>(kTogether<T> * lanes_sums<K>(g)) * sizeof(float));
    for (int c = 0; c < count; ++c) chunks[c].sums = sums + c * lanes_sums<K>(g);
    for (int c = 0; c < count; ++c) walk_rows(g, unit % g.slots, K / 2, chunks + c, 1);
  };
  for_units<Lanes, T, K, true>(arguments, first, last, scratch, make, compute);
}

template <class T, int K>
void lanes_reduce(const HadamardBackward& arguments, int64_t first, int64_t last) {
  const HadamardGeometry& g = arguments.geometry;
  const int64_t elements = lanes_sums<K>(g), step = kTogether<T> * elements;
  for (int64_t unit_chunk = first; unit_chunk < last; ++unit_chunk)
    for_lanes<T>(g, unit_chunk, [&](int64_t chunk) {
      const float* sums = static_cast<const float*>(arguments.partial) + unit_chunk * g.slots * step +
                          chunk % kTogether<T> * elements;
      const auto total = [&](int64_t offset) ELSA_LAMBDA {
        Vec<float> sum{};
        for (int64_t slot = 0; slot < g.slots; ++slot) sum += load(sums + slot * step + offset);
        return sum;
      };
      Packed<T, K>{g, chunk}.unpack(total, static_cast<T*>(arguments.grad_weight));
      for_channels(g, chunk, [&](auto partial, int64_t count) ELSA_LAMBDA {
        store_channels<T, partial()>(static_cast<T*>(arguments.grad_bias) + chunk * kLanes<float>,
                                     total(elements - kLanes<float>), count);
      });
    });
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
