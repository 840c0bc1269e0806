// The walk over blocks of positions, and the banded multiply-add that all passes are made of.
#pragma once

#include "images.h"
#include "softmax.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

constexpr int P = ELSA_BLOCK;    // neighbouring positions of a row computed together: a loaded vector serves up to K
constexpr int NV = ELSA_VECTORS; // vectors of channels computed together: a broadcast weight serves all of them

// Kernels of their own have K = 3, 5, 7 in float32 and bfloat16 where the heads are whole chunks of vectors; anything else
// runs those for any K. float64 is there to check gradients, float16 is no type to train in on a processor, and one with
// nothing but the plain instructions converts halves too slowly for it to matter: each type more costs half a minute of
// compiling.
template <class T>
constexpr bool kSpecialised = std::is_same_v<T, float> || (ELSA_VECTOR_BYTES > 16 && std::is_same_v<T, BFloat>);

template <class T>
ELSA_INLINE int64_t specialised_kernel(const Geometry& g) {
  const bool special = g.kernel == 3 || g.kernel == 5 || g.kernel == 7;
  return kSpecialised<T> && special && g.head_dim % (NV * kLanes<Accumulate<T>>) == 0 ? g.kernel : 0;
}

// Geometry::ghost_pairs: ghosts are in the order of load_part.
template <class T>
int64_t ghost_pairs(const Geometry& g) {
  return kSplits<T> && specialised_kernel<T>(g) != 0 ? 2 * kLanes<Accumulate<T>> : 0;
}

// An image, and where it lies in value, which may be a slice of a wider map: in elements.
struct Placed : Image {
  int64_t value_origin, value_row, value_column;
};

ELSA_INLINE Placed placed(const Geometry& g, const Image& image) {
  const int64_t x = image.origin % g.width, y = image.origin / g.width % g.height;
  const int64_t batch = image.origin / (g.width * g.height);
  return {image, batch * g.value_batch + y * g.value_row + x * g.value_column, g.dilation * g.value_row,
          g.dilation * g.value_column};
}

// Sizes the compiler may know: K² and K where K > 0 is a template argument, the run-time values where it is 0.
template <int K>
struct Taps {
  int64_t run_time;
  ELSA_INLINE int64_t kernel() const { return K > 0 ? K : run_time; }
  ELSA_INLINE int64_t count() const { return kernel() * kernel(); }
  ELSA_INLINE int64_t reach() const { return kernel() / 2; }
};

// A specialised K is one segment of K taps; any other row is covered by segments of three and of one: f(width, first
// column) with a compile-time width.
template <int K, class F>
ELSA_INLINE void for_segments(int64_t kernel, F&& f) {
  if constexpr (K > 0) {
    f(std::integral_constant<int, K>{}, int64_t{0});
  } else {
    int64_t column = 0;
    for (; kernel - column >= 3; column += 3) f(std::integral_constant<int, 3>{}, column);
    for (; column < kernel; ++column) f(std::integral_constant<int, 1>{}, column);
  }
}

// Where the positions [x, …) of a row of the map lie. Positions outside the map read `zeros`.
template <class T>
struct RowView {
  const T* row;        // channel 0 of the chunk at column 0
  const T* zeros;
  int64_t step;        // elements from one column to the next
  int64_t columns;
  // Calls f(u, channels of position first + u) for u < Count.
  template <int Count, class F>
  ELSA_INLINE void visit(int64_t first, F&& f) const {
    asm volatile("" : "+r"(first));  // else the addresses for all rows are computed, and spilled, before the first one
    int64_t at = first * step;
    unroll<Count>([&](auto u) ELSA_LAMBDA {
      f(u, static_cast<uint64_t>(first + u) < static_cast<uint64_t>(columns) ? row + at : zeros);
      at += step;
    });
  }
};

// What the P positions of a block hold from element `first` of an array of T on, `step` elements apart.
template <int Write, class T>
ELSA_INLINE void prefetch_block(const void* array, int64_t first, int64_t step, int64_t count) {
  for (int64_t p = 0; p < P; ++p) prefetch_lines<Write>(static_cast<const T*>(array), first + p * step, count);
}

// The softmax of `count` neighbouring positions whose logits are `step` apart.
template <class T, int Taps>
ELSA_INLINE void softmax_strip(const T* logits, int64_t step, Accumulate<T>* weights, int64_t count, int64_t taps) {
  const int64_t stride = weight_stride<Accumulate<T>>(taps);
  int64_t x = 0;
  for (; x + P <= count; x += P) softmax_rows<T, Taps, P>(logits + x * step, step, weights + x * stride, stride, taps);
  for (; x < count; ++x) softmax_row<T, Taps>(logits + x * step, weights + x * stride, taps);
}

// Vector n of a chunk of channels that starts at p. Where the type is split, its first vector holds the even channels.
template <class T, int Vectors, bool Partial, int n>
ELSA_INLINE Vec<Accumulate<T>> load_part(const T* p, int64_t count) {
  if constexpr (kSplits<T> && Vectors == 2) return widen_split<n>(load_split(p));
  else return load_channels<T, Partial>(p + n * kLanes<Accumulate<T>>, count);
}

template <class T, int Vectors, bool Partial>
ELSA_INLINE void load_chunk(const T* p, int64_t count, Vec<Accumulate<T>> (&v)[Vectors]) {
  unroll<Vectors>([&](auto n) ELSA_LAMBDA { v[n] = load_part<T, Vectors, Partial, n()>(p, count); });
}

template <class T, int Vectors, bool Partial>
ELSA_INLINE void store_chunk(T* p, const Vec<Accumulate<T>> (&v)[Vectors], int64_t count) {
  if constexpr (kSplits<T> && Vectors == 2) {
    store_split(p, v[0], v[1]);
  } else {
    unroll<Vectors>([&](auto n) ELSA_LAMBDA { store_channels<T, Partial>(p + n * kLanes<Accumulate<T>>, v[n], count); });
  }
}

// w = weight · mul + add for one tap and one vector of channels.
template <bool Mul, bool Add, class A>
ELSA_INLINE Vec<A> ghost(A weight, const A* mul, const A* add) {
  Vec<A> w = broadcast<A>(weight);
  if constexpr (Mul && Add) return w * load(mul) + load(add);
  else if constexpr (Mul) return w * load(mul);
  else if constexpr (Add) return w + load(add);
  else return w;
}

// Channels [c0, …) of one block: `Vectors` whole vectors, or one with `count` channels where Partial.
template <class T, bool Mul, bool Add, int Vectors, bool Partial>
struct Band {
  using A = Accumulate<T>;
  static constexpr int N = kLanes<A>;
  const A* mul;  // at the chunk's first channel, tap 0
  const A* add;
  int64_t ghost_stride;
  int64_t count;

  // acc[p] += Σ over the S taps of one segment of f(weight, ghost) · source. Not mirrored (output from value):
  // source u feeds position u - i through tap i, with the weight of that position. Mirrored (gradient of value):
  // source u feeds position u - i through tap S - 1 - i, with the weight of the source.
  // `first` is the column of source 0; `weights` those of source or position 0, at the segment's first tap.
  template <int S, bool Mirrored>
  ELSA_INLINE void add_segment(Vec<A> (&acc)[P][Vectors], const RowView<T>& source, int64_t first, const A* weights,
                               int64_t weights_stride, int64_t tap) const {
    source.template visit<P + S - 1>(first, [&](auto u, const T* p) ELSA_LAMBDA {
      Vec<A> v[Vectors];
      load_chunk<T, Vectors, Partial>(p, count, v);
      unroll<S>([&](auto i) ELSA_LAMBDA {
        constexpr int position = u - i, t = Mirrored ? S - 1 - i : i, from = Mirrored ? u : position;
        if constexpr (position >= 0 && position < P) {
          const A weight = weights[from * weights_stride + t];
          unroll<Vectors>([&](auto n) ELSA_LAMBDA {
            const int64_t at = (tap + t) * ghost_stride + n * N;
            acc[position][n] += ghost<Mul, Add, A>(weight, mul + at, add + at) * v[n];
          });
        }
      });
    });
  }
};

// Calls f(vectors, partial, first channel, count): chunks of NV whole vectors where K is specialised, else of one vector
// that may be partly filled.
template <class A, int K, class F>
ELSA_INLINE void for_chunks(int64_t channels, F&& f) {
  constexpr int N = kLanes<A>;
  if constexpr (K > 0) {
    for (int64_t c = 0; c < channels; c += NV * N)
      f(std::integral_constant<int, NV>{}, std::false_type{}, c, int64_t{NV * N});
  } else {
    for (int64_t c = 0; c < channels; c += N)
      f(std::integral_constant<int, 1>{}, std::true_type{}, c, channels - c < N ? channels - c : int64_t{N});
  }
}

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
