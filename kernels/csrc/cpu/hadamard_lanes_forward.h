// local = GELU(conv(query · key · scale) + bias) in lanes.
#pragma once

#include "hadamard_lanes.h"
#if defined(ELSA_AVX512_BF16)
#include "hadamard_pairs.h"
#endif

namespace elsa::cpu::ELSA_ISA {
namespace {

// One chunk of lanes.
template <class T, int K>
struct LanesForward {
  static constexpr int N = kLanes<float>, R = K / 2;
  const HadamardForward* arguments;
  const Factor<T>* weights;
  Ring<T, K> ring;
  int64_t chunk;

  static int64_t scratch(const HadamardGeometry& g) {
    return Packed<T, K>::bytes(g.group_width) + Ring<T, K>::bytes(g.width);
  }
  ELSA_INLINE const HadamardGeometry& g() const { return arguments->geometry; }
  ELSA_INLINE int64_t first_channel() const { return chunk * N; }

  void fill(const Image& image, int64_t y) const {
    Factor<T>* row = ring.row(y);
    ring.pad(row, image.columns);
    const int64_t step = image.column_step * g().packed;
    const T* query = static_cast<const T*>(arguments->packed) + (image.origin + y * image.row_step) * g().packed +
                     first_channel();
    const float scale = static_cast<float>(arguments->scale);
    for_channels(g(), chunk, [&](auto partial, int64_t count) ELSA_LAMBDA {
      for (int64_t x = 0; x < image.columns; ++x, query += step) {
        const Vec<float> q = load_channels<T, partial()>(query, count);
        store(row + (R + x) * N, q * load_channels<T, partial()>(query + g().channels, count) * scale);
      }
    });
  }

  void compute(const Image& image, int64_t y) const {
    for_channels(g(), chunk, [&](auto partial, int64_t count) ELSA_LAMBDA {
      for (int64_t x = 0; x < image.columns; x += kRun) block<partial()>(image, y, x, count);
    });
  }

 private:
  template <bool Partial>
  ELSA_INLINE void block(const Image& image, int64_t y, int64_t x, int64_t count) const {
    const int64_t first = y < R ? R - y : 0, last = image.rows - y + R < K ? image.rows - y + R : K;
    const T* bias = static_cast<const T*>(arguments->bias);
    const Vec<float> start = bias ? load_channels<T, Partial>(bias + first_channel(), count) : Vec<float>{};
    Vec<float> acc[kRun];
    unroll<kRun>([&](auto p) ELSA_LAMBDA { acc[p] = start; });
    convolve<K>(acc, weights, g().group_width, first, last, [&](int64_t j) ELSA_LAMBDA {
      for (int64_t p = j * kRun / K; p < (j + 1) * kRun / K; ++p) prefetch(image, y + 1, x + p);
      return ring.row(y + j - R) + x * N;
    });
    const int64_t stop = image.columns - x, step = image.column_step * g().channels;
    const int64_t at = (image.origin + y * image.row_step + x * image.column_step) * g().channels + first_channel();
    T* local = static_cast<T*>(arguments->local) + at;
    if (T* before = static_cast<T*>(arguments->before)) {
      before += at;
      unroll<kRun>([&](auto p) ELSA_LAMBDA {
        if (p < stop) store_channels<T, Partial>(before + p * step, acc[p], count);
      });
    }
    unroll<kRun>([&](auto p) ELSA_LAMBDA {
      if (p < stop) store_channels<T, Partial>(local + p * step, gelu(acc[p]), count);
    });
  }

  // What the same block of the next row will read first and write, spread over the rows of taps.
  ELSA_INLINE void prefetch(const Image& image, int64_t y, int64_t x) const {
    const int64_t position = image.origin + y * image.row_step + x * image.column_step;
    const int64_t query = (position + R * image.row_step) * g().packed + first_channel();
    const int64_t out = position * g().channels + first_channel();
    prefetch_chunk<0>(static_cast<const T*>(arguments->packed) + query);
    prefetch_chunk<0>(static_cast<const T*>(arguments->packed) + query + g().channels);
    prefetch_chunk<1>(static_cast<const T*>(arguments->local) + out);
    if (arguments->before) prefetch_chunk<1>(static_cast<const T*>(arguments->before) + out);
  }
};

template <class T, int K>
int64_t lanes_forward_scratch(const HadamardGeometry& g) {
  return kTogether<T> * LanesForward<T, K>::scratch(g);
}

template <class T, int K>
void lanes_forward(const HadamardForward& arguments, int64_t first, int64_t last, void* scratch) {
  using Lanes = LanesForward<T, K>;
  const HadamardGeometry& g = arguments.geometry;
  const auto make = [&](const Factor<T>* weights, char* memory, int64_t chunk) ELSA_LAMBDA {
    return Lanes{&arguments, weights, {memory, g.width}, chunk};
  };
  const auto compute = [&](int64_t unit, const Lanes* chunks, int count) ELSA_LAMBDA {
    walk_rows(g, unit % g.slots, K / 2, chunks, count);
  };
  for_units<Lanes, T, K, false>(arguments, first, last, scratch, make, compute);
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
