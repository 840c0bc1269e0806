// local = GELU(conv(query · key · scale) + bias) for one chunk of channels, in lanes.
#pragma once

#include "hadamard_lanes.h"
#if defined(ELSA_AVX512_BF16)
#include "hadamard_pairs.h"
#endif

namespace elsa::cpu::ELSA_ISA {
namespace {

template <class T, int K, bool Partial>
struct LanesForward {
  static constexpr int N = kLanes<float>, R = K / 2;
  const HadamardForward& arguments;
  const Factor<T>* weights;
  Ring<T, K> ring;
  int64_t first_channel, count;
  Vec<float> bias;

  ELSA_INLINE const HadamardGeometry& g() const { return arguments.geometry; }

  void run(int64_t slot) {
    for_pieces(g(), slot, [&](const Image& image, int64_t first_row, int64_t last_row) ELSA_LAMBDA {
      for (int64_t y = first_row < R ? 0 : first_row - R; y < first_row + R && y < image.rows; ++y) fill(image, y);
      for (int64_t y = first_row; y < last_row; ++y) {
        if (y + R < image.rows) fill(image, y + R);
        for (int64_t x = 0; x < image.columns; x += kRun) block(image, y, x);
      }
    });
  }

  void fill(const Image& image, int64_t y) const {
    Factor<T>* row = ring.row(y);
    ring.pad(row, image.columns);
    const int64_t step = image.column_step * g().packed;
    const T* query = static_cast<const T*>(arguments.packed) + (image.origin + y * image.row_step) * g().packed + first_channel;
    const float scale = static_cast<float>(arguments.scale);
    for (int64_t x = 0; x < image.columns; ++x, query += step)
      store(row + (R + x) * N,
            load_channels<T, Partial>(query, count) * load_channels<T, Partial>(query + g().channels, count) * scale);
  }

  void block(const Image& image, int64_t y, int64_t x) const {
    const int64_t first = y < R ? R - y : 0, last = image.rows - y + R < K ? image.rows - y + R : K;
    Vec<float> acc[kRun];
    unroll<kRun>([&](auto p) ELSA_LAMBDA { acc[p] = bias; });
    convolve<K>(acc, weights, g().group_width, first, last, [&](int64_t j) ELSA_LAMBDA {
      for (int64_t p = j * kRun / K; p < (j + 1) * kRun / K; ++p) prefetch(image, y + 1, x + p);
      return ring.row(y + j - R) + x * N;
    });
    const int64_t stop = image.columns - x, step = image.column_step * g().channels;
    const int64_t at = (image.origin + y * image.row_step + x * image.column_step) * g().channels + first_channel;
    T* local = static_cast<T*>(arguments.local) + at;
    if (T* before = static_cast<T*>(arguments.before)) {
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
    const int64_t query = (position + R * image.row_step) * g().packed + first_channel;
    const int64_t out = position * g().channels + first_channel;
    prefetch_chunk<0>(static_cast<const T*>(arguments.packed) + query);
    prefetch_chunk<0>(static_cast<const T*>(arguments.packed) + query + g().channels);
    prefetch_chunk<1>(static_cast<const T*>(arguments.local) + out);
    if (arguments.before) prefetch_chunk<1>(static_cast<const T*>(arguments.before) + out);
  }
};

template <class T, int K>
int64_t lanes_forward_scratch(const HadamardGeometry& g) {
  return Packed<T, K>::bytes(g.group_width) + K * Ring<T, K>::stride_for(g.width) * int64_t{sizeof(Factor<T>)};
}

template <class T, int K>
void lanes_forward(const HadamardForward& arguments, int64_t first, int64_t last, void* scratch) {
  const HadamardGeometry& g = arguments.geometry;
  Factor<T>* weights = static_cast<Factor<T>*>(scratch);
  void* after = static_cast<char*>(scratch) + Packed<T, K>::bytes(g.group_width);
  const Ring<T, K> ring{static_cast<Factor<T>*>(after), Ring<T, K>::stride_for(g.width)};
  int64_t packed = -1;
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t chunk = unit / g.slots;
    if (chunk != packed)
      Packed<T, K>{g, packed = chunk}.template pack<false>(static_cast<const T*>(arguments.weight), weights);
    for_channels(g, chunk, [&](auto partial, int64_t count) ELSA_LAMBDA {
      const int64_t channel = chunk * kLanes<float>;
      const Vec<float> bias =
          arguments.bias ? load_channels<T, partial()>(static_cast<const T*>(arguments.bias) + channel, count) : Vec<float>{};
      LanesForward<T, K, partial()>{arguments, weights, ring, channel, count, bias}.run(
          unit % g.slots);
    });
  }
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
