// The gradients of value, logits and ghosts in one walk over the rows; the softmax is recomputed from the logits.
//
// With f = a · mul + add and go the output's gradient:
//   grad_value[q, c]  = Σ_t f[q - offset(t), c, t] · go[q - offset(t), c]          (gathered: no two threads write one place)
//   da[p, t]          = Σ_c go[p, c] · mul[c, t] · value[p + offset(t), c],   grad_logits = a · (da - Σ_t a · da)
//   grad_add[c, t]    = Σ_p go[p, c] · value[p + offset(t), c],   grad_mul[c, t] likewise weighted with a[p, t]
#pragma once

#include "rows.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

// One thread's working memory: the softmax of the K rows around the current one, and a few vectors.
template <class A>
struct BackwardScratch {
  int64_t stride, ring_row;  // elements per position, per row of the ring
  int64_t reach;
  A *ring, *gradients, *staged, *zeros;

  BackwardScratch(const Geometry& g, void* memory) {
    const int64_t columns = (g.width + g.dilation - 1) / g.dilation;
    stride = weight_stride<A>(g.taps);
    reach = g.kernel / 2;
    ring_row = (columns + 2 * reach + P) * stride;  // columns outside the map have weight 0
    ring = static_cast<A*>(memory);
    gradients = ring + g.kernel * ring_row;
    staged = gradients + P * stride;
    zeros = staged + (P + 6) * NV * kLanes<A>;
  }
  int64_t size() const { return (zeros - ring) * static_cast<int64_t>(sizeof(A)) + NV * ELSA_VECTOR_BYTES; }
  // The weights of column 0 of row y.
  ELSA_INLINE A* weights(int64_t y, int64_t kernel) const { return ring + y % kernel * ring_row + reach * stride; }
};

template <class T, int K, bool Mul, bool Add>
struct Backward {
  using A = Accumulate<T>;
  static constexpr int N = kLanes<A>;

  const BackwardArguments& arguments;
  BackwardScratch<A> scratch;
  int64_t head;
  A* grad_mul;  // of this unit: [tap][ghost_stride]
  A* grad_add;

  ELSA_INLINE const Geometry& geometry() const { return arguments.geometry; }
  ELSA_INLINE Taps<K> taps() const { return {geometry().kernel}; }
  ELSA_INLINE int64_t stride() const { return weight_stride<A>(taps().count()); }

  // Channel c of this head in row y of the output's gradient and of value.
  ELSA_INLINE RowView<T> gradient_row(const Placed& image, int64_t y, int64_t c) const {
    const Geometry& g = geometry();
    const int64_t position = image.origin + y * image.row_step;
    return {static_cast<const T*>(arguments.grad_out) + position * g.channels + head * g.head_dim + c,
            reinterpret_cast<const T*>(scratch.zeros), image.column_step * g.channels, image.columns};
  }
  ELSA_INLINE RowView<T> value_row(const Placed& image, int64_t y, int64_t c) const {
    const int64_t channel = head * geometry().head_dim + c;
    return {static_cast<const T*>(arguments.value) + image.value_origin + y * image.value_row + channel,
            reinterpret_cast<const T*>(scratch.zeros), image.value_column, image.columns};
  }
  // The rows j of taps for which row y + j - reach is in the image.
  ELSA_INLINE int64_t first_tap_row(int64_t y) const { return y < taps().reach() ? taps().reach() - y : 0; }
  ELSA_INLINE int64_t last_tap_row(const Placed& image, int64_t y) const {
    const int64_t below = image.rows - y + taps().reach();
    return below < taps().kernel() ? below : taps().kernel();
  }

  ELSA_INLINE void run(int64_t slot) const {
    const Geometry& g = geometry();
    for_pieces(g, slot, [&](const Image& dense, int64_t first_row, int64_t last_row) ELSA_LAMBDA {
      const Placed image = placed(g, dense);
      const int64_t reach = taps().reach();
      __builtin_memset(scratch.ring, 0, static_cast<size_t>(g.kernel * scratch.ring_row) * sizeof(A));
      int64_t ready = first_row < reach ? 0 : first_row - reach;  // rows below it have their softmax in the ring
      for (int64_t y = first_row; y < last_row; ++y) {
        for (; ready < image.rows && ready <= y + reach; ++ready) softmax(image, ready);
        for (int64_t x = 0; x < image.columns; x += P) {
          value_block(image, y, x, image.columns - x < P ? image.columns - x : P);
          prefetch_output(image, y, x);
        }
        for (int64_t x = 0; x < image.columns; x += P) {
          logits_block(image, y, x, image.columns - x < P ? image.columns - x : P);
          prefetch_next_row(image, y, x);
        }
        if constexpr (Mul || Add) ghost_row(image, y);
      }
    });
  }

  void softmax(const Placed& image, int64_t y) const {
    const Geometry& g = geometry();
    A* weights = scratch.weights(y, taps().kernel());
    const int64_t step = image.column_step * g.heads * taps().count();
    const T* logits = static_cast<const T*>(arguments.logits) +
                      ((image.origin + y * image.row_step) * g.heads + head) * taps().count();
    softmax_strip<T, K * K>(logits, step, weights, image.columns, taps().count());
  }

  // The logits' gradients of a block that are written next.
  ELSA_INLINE void prefetch_output(const Placed& image, int64_t y, int64_t x) const {
    const int64_t logits = taps().count(), step = geometry().heads * logits;
    const int64_t position = image.origin + y * image.row_step + x * image.column_step;
    prefetch_block<1, T>(arguments.grad_logits, position * step + head * logits, image.column_step * step, logits);
  }

  // What the same block of the next row reads first and writes.
  ELSA_INLINE void prefetch_next_row(const Placed& image, int64_t y, int64_t x) const {
    const Geometry& g = geometry();
    const int64_t next = image.origin + (y + 1) * image.row_step + x * image.column_step;
    const int64_t below = next + taps().reach() * image.row_step, channel = head * g.head_dim;
    const int64_t value = image.value_origin + (y + 1 + taps().reach()) * image.value_row + x * image.value_column;
    const int64_t logits = taps().count(), step = g.heads * logits, columns = image.column_step;
    prefetch_block<0, T>(arguments.logits, below * step + head * logits, columns * step, logits);
    prefetch_block<0, T>(arguments.value, value + channel, image.value_column, g.head_dim);
    prefetch_block<0, T>(arguments.grad_out, below * g.channels + channel, columns * g.channels, g.head_dim);
    prefetch_block<1, T>(arguments.grad_value, next * g.channels + channel, columns * g.channels, g.head_dim);
  }

  // ---- grad_value -----------------------------------------------------------------------------------------------

  void value_block(const Placed& image, int64_t y, int64_t x, int64_t count) const {
    for_chunks<A, K>(geometry().head_dim, [&](auto vectors, auto partial, int64_t c, int64_t width) ELSA_LAMBDA {
      value_chunk<vectors(), partial()>(image, y, x, c, width, count);
    });
  }

  template <int Vectors, bool Partial>
  void value_chunk(const Placed& image, int64_t y, int64_t x, int64_t c, int64_t width, int64_t count) const {
    const Geometry& g = geometry();
    const int64_t ghosts = head * taps().count() * g.ghost_stride + c, reach = taps().reach();
    const Band<T, Mul, Add, Vectors, Partial> band{static_cast<const A*>(arguments.ghost_mul) + (Mul ? ghosts : 0),
                                                   static_cast<const A*>(arguments.ghost_add) + (Add ? ghosts : 0),
                                                   g.ghost_stride, width};
    Vec<A> acc[P][Vectors] = {};
    // The source at row y + j - reach reaches row y through tap row K - 1 - j.
    const int64_t first = first_tap_row(y), last = last_tap_row(image, y);
    for (int64_t j = first; j < last; ++j) {
      const int64_t from = y + j - reach;
      const RowView<T> source = gradient_row(image, from, c);
      const A* weights = scratch.weights(from, taps().kernel());
      for_segments<K>(taps().kernel(), [&](auto segment, int64_t i) ELSA_LAMBDA {
        const int64_t tap = (taps().kernel() - 1 - j) * taps().kernel() + i;
        const int64_t column = x + reach - i - (segment - 1);
        band.template add_segment<segment(), true>(acc, source, column, weights + column * stride() + tap, stride(),
                                                   tap);
      });
    }
    T* out = static_cast<T*>(arguments.grad_value) + head * g.head_dim + c +
             (image.origin + y * image.row_step + x * image.column_step) * g.channels;
    const int64_t step = image.column_step * g.channels;
    unroll<P>([&](auto p) ELSA_LAMBDA {
      if (p < count) store_chunk<T, Vectors, Partial>(out + p * step, acc[p], width);
    });
  }

  // ---- grad_logits ----------------------------------------------------------------------------------------------

  void logits_block(const Placed& image, int64_t y, int64_t x, int64_t count) const {
    __builtin_memset(scratch.gradients, 0, static_cast<size_t>(P * stride()) * sizeof(A));
    for_chunks<A, K>(geometry().head_dim, [&](auto vectors, auto partial, int64_t c, int64_t width) ELSA_LAMBDA {
      weight_gradients<vectors(), partial()>(image, y, x, c, width);
    });
    const Geometry& g = geometry();
    const int64_t position = image.origin + y * image.row_step + x * image.column_step;
    const int64_t step = image.column_step * g.heads * taps().count();
    T* out = static_cast<T*>(arguments.grad_logits) + (position * g.heads + head) * taps().count();
    const A* weights = scratch.weights(y, taps().kernel()) + x * stride();
    for (int64_t p = 0; p < count; ++p)
      softmax_gradient(weights + p * stride(), scratch.gradients + p * stride(), out + p * step);
  }

  // gradients[p][t] += Σ over a chunk's channels of go[p] · mul[t] · value[p + offset(t)]
  template <int Vectors, bool Partial>
  void weight_gradients(const Placed& image, int64_t y, int64_t x, int64_t c, int64_t width) const {
    const Geometry& g = geometry();
    const int64_t reach = taps().reach();
    const A* mul = static_cast<const A*>(arguments.ghost_mul) + (Mul ? head * taps().count() * g.ghost_stride + c : 0);
    const RowView<T> gradient = gradient_row(image, y, c);
    constexpr int Parts = kPairs ? 1 : Vectors;
    Vec<A> go[P][Parts];
    gradient.template visit<P>(
        x, [&](auto p, const T* from) ELSA_LAMBDA { load_factors<Parts, Partial>(from, width, go[p]); });
    const int64_t first = first_tap_row(y), last = last_tap_row(image, y);
    for (int64_t j = first; j < last; ++j) {
      const RowView<T> source = value_row(image, y + j - reach, c);
      for_segments<K>(taps().kernel(), [&](auto segment, int64_t i) ELSA_LAMBDA {
        constexpr int S = segment();
        const int64_t tap = j * taps().kernel() + i;
        stage<Parts, Partial, S>(source, x - reach + i, width);
        unroll<P>([&](auto p) ELSA_LAMBDA {
          dot_products<Parts, S>(go[p], scratch.staged + p * Parts * N, mul + (Mul ? tap * g.ghost_stride : 0),
                                 scratch.gradients + p * stride() + tap);
        });
      });
    }
  }

  // A chunk as dot_products reads it: pairs of channels stay as they are where the processor multiplies those.
  static constexpr bool kPairs = kMultipliesPairs<T> && K > 0 && !Mul;
  template <int Parts, bool Partial>
  static ELSA_INLINE void load_factors(const T* p, int64_t width, Vec<A> (&v)[Parts]) {
    if constexpr (kPairs) v[0] = bit_cast<Vec<float>>(load_split(p));
    else load_chunk<T, Parts, Partial>(p, width, v);
  }

  // The P + S - 1 positions that a block's segment reads, with zeros outside the map.
  template <int Parts, bool Partial, int S>
  ELSA_INLINE void stage(const RowView<T>& source, int64_t first, int64_t width) const {
    source.template visit<P + S - 1>(first, [&](auto u, const T* from) ELSA_LAMBDA {
      Vec<A> v[Parts];
      load_factors<Parts, Partial>(from, width, v);
      unroll<Parts>([&](auto n) ELSA_LAMBDA { store(scratch.staged + (u * Parts + n) * N, v[n]); });
    });
  }

  // out[i] += Σ_channels go · mul[i] · value[i] for the S taps of a segment.
  template <int Parts, int S>
  ELSA_INLINE void dot_products(const Vec<A> (&go)[Parts], const A* value, const A* mul, A* out) const {
    constexpr int Padded = (S + 3) / 4 * 4;
    Vec<A> s[Padded] = {};
    unroll<S>([&](auto i) ELSA_LAMBDA {
      unroll<Parts>([&](auto n) ELSA_LAMBDA {
        const Vec<A> v = load(value + (i * Parts + n) * N);
        if constexpr (kPairs) s[i] = multiply_pairs(s[i], go[n], v);
        else if constexpr (Mul) s[i] += go[n] * load(mul + i * geometry().ghost_stride + n * N) * v;
        else s[i] += go[n] * v;
      });
    });
    unroll<Padded / 4>([&](auto q) ELSA_LAMBDA {
      add_sums(out + 4 * q, s[4 * q], s[4 * q + 1], s[4 * q + 2], s[4 * q + 3]);
    });
  }

  // out = a · (da - Σ a · da); the weights beyond the last tap are 0.
  ELSA_INLINE void softmax_gradient(const A* weights, const A* gradients, T* out) const {
    const int64_t count = taps().count();
    Vec<A> sum{};
    for (int64_t t = 0; t < count; t += N) sum += load(weights + t) * load(gradients + t);
    sum = combine_all<Sum, A>(sum);
    int64_t t = 0;
    for (; t + N <= count; t += N) store(out + t, load(weights + t) * (load(gradients + t) - sum));
    if (t < count) store_first(out + t, load(weights + t) * (load(gradients + t) - sum), count - t);
  }

  // ---- grad_mul, grad_add ---------------------------------------------------------------------------------------

  void ghost_row(const Placed& image, int64_t y) const {
    for_chunks<A, K>(geometry().head_dim, [&](auto vectors, auto partial, int64_t c, int64_t width) ELSA_LAMBDA {
      unroll<vectors()>([&](auto n) ELSA_LAMBDA { ghost_chunk<vectors(), partial(), n()>(image, y, c, width); });
    });
  }

  // One vector of channels, one row of taps at a time: the S sums stay in registers along the whole row.
  template <int Vectors, bool Partial, int n>
  void ghost_chunk(const Placed& image, int64_t y, int64_t c, int64_t width) const {
    const Geometry& g = geometry();
    const int64_t reach = taps().reach();
    const RowView<T> gradient = gradient_row(image, y, c);
    const A* weights = scratch.weights(y, taps().kernel());
    const int64_t first = first_tap_row(y), last = last_tap_row(image, y);
    for (int64_t j = first; j < last; ++j) {
      const RowView<T> source = value_row(image, y + j - reach, c);
      for_segments<K>(taps().kernel(), [&](auto segment, int64_t i) ELSA_LAMBDA {
        const int64_t tap = j * taps().kernel() + i;
        ghost_segment<Vectors, Partial, n, segment()>(gradient, source, i - reach, weights + tap, width,
                                                      tap * g.ghost_stride + c + n * N);
      });
    }
  }

  template <int Vectors, bool Partial, int n, int S>
  ELSA_INLINE void ghost_segment(const RowView<T>& gradient, const RowView<T>& source, int64_t shift, const A* weights,
                                 int64_t width, int64_t at) const {
    Vec<A> sum_mul[S] = {}, sum_add[S] = {};
    for (int64_t x = 0; x < gradient.columns; x += P) {
      Vec<A> go[P];
      gradient.template visit<P>(
          x, [&](auto p, const T* from) ELSA_LAMBDA { go[p] = load_part<T, Vectors, Partial, n>(from, width); });
      source.template visit<P + S - 1>(x + shift, [&](auto u, const T* from) ELSA_LAMBDA {
        const Vec<A> v = load_part<T, Vectors, Partial, n>(from, width);
        unroll<S>([&](auto i) ELSA_LAMBDA {
          constexpr int p = u - i;
          if constexpr (p >= 0 && p < P) {
            if constexpr (Mul) {
              const Vec<A> product = go[p] * v;
              sum_mul[i] += product * weights[(x + p) * stride() + i];
              if constexpr (Add) sum_add[i] += product;
            } else {
              sum_add[i] += go[p] * v;
            }
          }
        });
      });
    }
    unroll<S>([&](auto i) ELSA_LAMBDA {
      const int64_t to = at + i * geometry().ghost_stride;
      if constexpr (Mul) store(grad_mul + to, load(grad_mul + to) + sum_mul[i]);
      if constexpr (Add) store(grad_add + to, load(grad_add + to) + sum_add[i]);
    });
  }
};

template <class T>
int64_t backward_scratch(const Geometry& g) {
  return BackwardScratch<Accumulate<T>>(g, nullptr).size();
}

template <class T, int K, bool Mul, bool Add>
void backward_units(const BackwardArguments& arguments, int64_t first, int64_t last, void* memory) {
  using A = Accumulate<T>;
  const Geometry& g = arguments.geometry;
  const BackwardScratch<A> scratch(g, memory);
  __builtin_memset(scratch.zeros, 0, NV * ELSA_VECTOR_BYTES);
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t ghosts = unit * g.taps * g.ghost_stride;  // [slot][head][tap][ghost_stride]
    Backward<T, K, Mul, Add>{arguments, scratch, unit % g.heads,
                             static_cast<A*>(arguments.grad_mul) + (Mul ? ghosts : 0),
                             static_cast<A*>(arguments.grad_add) + (Add ? ghosts : 0)}
        .run(unit / g.heads);
  }
}

template <class T, int K>
void backward_ghosts(const BackwardArguments& a, int64_t first, int64_t last, void* scratch) {
  if (a.ghost_mul && a.ghost_add) backward_units<T, K, true, true>(a, first, last, scratch);
  else if (a.ghost_mul) backward_units<T, K, true, false>(a, first, last, scratch);
  else if (a.ghost_add) backward_units<T, K, false, true>(a, first, last, scratch);
  else backward_units<T, K, false, false>(a, first, last, scratch);
}

template <class T>
void backward(const BackwardArguments& a, int64_t first, int64_t last, void* scratch) {
  if constexpr (kSpecialised<T>) {
    switch (specialised_kernel<T>(a.geometry)) {
      case 3: return backward_ghosts<T, 3>(a, first, last, scratch);
      case 5: return backward_ghosts<T, 5>(a, first, last, scratch);
      case 7: return backward_ghosts<T, 7>(a, first, last, scratch);
    }
  }
  backward_ghosts<T, 0>(a, first, last, scratch);
}

template <class T>
constexpr Kernel<BackwardArguments> backward_kernel{kLanes<Accumulate<T>>, ghost_pairs<T>, backward_scratch<T>,
                                                    backward<T>};

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
