// out[p, c] = Σ_t (softmax(logits)[p, t] · mul[c, t] + add[c, t]) · value[p + offset(t), c]
#pragma once

#include "rows.h"

namespace elsa::cpu::ELSA_ISA {
namespace {

constexpr int64_t kStrip = 8 * P;  // positions of a row whose softmax is computed at once

template <class T, int K, bool Mul, bool Add>
struct Forward {
  using A = Accumulate<T>;

  const ForwardArguments& arguments;
  A* weights;      // [kStrip][stride]: the softmax of the current strip of a row
  const T* zeros;  // one chunk of channels
  int64_t head;

  ELSA_INLINE Taps<K> taps() const { return {arguments.geometry.kernel}; }
  ELSA_INLINE int64_t stride() const { return weight_stride<A>(taps().count()); }

  // Heads [first_head, last_head) of the rows of a slot. Strips keep the K rows that a block reads in the second-level
  // cache however wide the map is. The heads take turns within a strip, because they share the cache lines of the logits.
  ELSA_INLINE void run(int64_t slot, int64_t first_head, int64_t last_head) {
    for_pieces(arguments.geometry, slot, [&](const Image& dense, int64_t first_row, int64_t last_row) ELSA_LAMBDA {
      const Placed image = placed(arguments.geometry, dense);
      for (int64_t start = 0; start < image.columns; start += kStrip) {
        const int64_t stop = start + kStrip < image.columns ? start + kStrip : image.columns;
        for (int64_t y = first_row; y < last_row; ++y)
          for (head = first_head; head < last_head; ++head) {
            softmax(image, y, start, stop);
            for (int64_t x = start; x < stop; x += P) block(image, y, x, weights + (x - start) * stride());
          }
      }
    });
  }

  // A strip at a time, because one block alone would wait for its own horizontal sums.
  void softmax(const Placed& image, int64_t y, int64_t start, int64_t stop) const {
    const Geometry& g = arguments.geometry;
    const int64_t step = image.column_step * g.heads * taps().count();
    const T* logits = static_cast<const T*>(arguments.logits) +
                      ((image.origin + y * image.row_step + start * image.column_step) * g.heads + head) * taps().count();
    softmax_strip<T, K * K>(logits, step, weights, stop - start, taps().count());
  }

  void block(const Placed& image, int64_t y, int64_t x, const A* weights) const {
    const Geometry& g = arguments.geometry;
    const int64_t count = image.columns - x < P ? image.columns - x : P;
    for_chunks<A, K>(g.head_dim, [&](auto vectors, auto partial, int64_t c, int64_t width) ELSA_LAMBDA {
      chunk<vectors(), partial()>(image, y, x, weights, c, width, count);
    });
  }

  template <int Vectors, bool Partial>
  void chunk(const Placed& image, int64_t y, int64_t x, const A* weights, int64_t c, int64_t width, int64_t count) const {
    const Geometry& g = arguments.geometry;
    const Taps<K> taps = this->taps();
    const int64_t reach = taps.reach();
    const int64_t ghosts = head * taps.count() * g.ghost_stride + c;
    const Band<T, Mul, Add, Vectors, Partial> band{static_cast<const A*>(arguments.ghost_mul) + (Mul ? ghosts : 0),
                                                   static_cast<const A*>(arguments.ghost_add) + (Add ? ghosts : 0),
                                                   g.ghost_stride, width};
    const int64_t channel = head * g.head_dim + c, step = image.column_step * g.channels;
    const T* value = static_cast<const T*>(arguments.value) + image.value_origin + channel;

    Vec<A> acc[P][Vectors] = {};
    const int64_t first = y < reach ? reach - y : 0;
    const int64_t last = image.rows - y + reach < taps.kernel() ? image.rows - y + reach : taps.kernel();
    for (int64_t j = first; j < last; ++j) {
      for (int64_t p = j * P / taps.kernel(); p < (j + 1) * P / taps.kernel(); ++p)
        prefetch(image, y + 1, x + p, channel);
      const RowView<T> source{value + (y + j - reach) * image.value_row, zeros, image.value_column, image.columns};
      for_segments<K>(taps.kernel(), [&](auto segment, int64_t i) ELSA_LAMBDA {
        const int64_t tap = j * taps.kernel() + i;
        band.template add_segment<segment(), false>(acc, source, x - reach + i, weights + tap, stride(), tap);
      });
    }
    T* out = static_cast<T*>(arguments.out) +
             (image.origin + y * image.row_step + x * image.column_step) * g.channels + channel;
    unroll<P>([&](auto p) ELSA_LAMBDA {
      if (p < count) store_chunk<T, Vectors, Partial>(out + p * step, acc[p], width);
    });
  }

  // What the same block of the next row will read first and write. Spread over the rows of taps, so that the requests
  // find room.
  ELSA_INLINE void prefetch(const Placed& image, int64_t y, int64_t x, int64_t channel) const {
    const Geometry& g = arguments.geometry;
    const int64_t position = image.origin + y * image.row_step + x * image.column_step;
    const int64_t below = image.value_origin + (y + taps().reach()) * image.value_row +
                          (x + taps().reach()) * image.value_column;
    prefetch_lines<0>(static_cast<const T*>(arguments.logits), (position * g.heads + head) * taps().count(),
                      taps().count());
    prefetch_lines<0>(static_cast<const T*>(arguments.value), below + channel, NV * kLanes<A>);
    prefetch_lines<1>(static_cast<const T*>(arguments.out), position * g.channels + channel, NV * kLanes<A>);
  }
};

template <class T>
int64_t forward_scratch(const Geometry& g) {
  using A = Accumulate<T>;
  return kStrip * weight_stride<A>(g.taps) * static_cast<int64_t>(sizeof(A)) + NV * ELSA_VECTOR_BYTES;
}

template <class T, int K, bool Mul, bool Add>
void forward_units(const ForwardArguments& arguments, int64_t first, int64_t last, void* scratch) {
  using A = Accumulate<T>;
  const Geometry& g = arguments.geometry;
  A* weights = static_cast<A*>(scratch);
  // Positions beyond a row's end keep whatever weights the scratch holds; they are computed but not stored.
  T* zeros = reinterpret_cast<T*>(weights + kStrip * weight_stride<A>(g.taps));
  __builtin_memset(zeros, 0, NV * ELSA_VECTOR_BYTES);
  for (int64_t unit = first; unit < last;) {  // a unit is one head of a slot; neighbouring heads are done together
    const int64_t slot = unit / g.heads, stop = last < (slot + 1) * g.heads ? last : (slot + 1) * g.heads;
    Forward<T, K, Mul, Add>{arguments, weights, zeros, 0}.run(slot, unit % g.heads, (stop - 1) % g.heads + 1);
    unit = stop;
  }
}

// The one place where run-time choices become template arguments: kernel size and ghost mode.
template <class T, int K>
void forward_ghosts(const ForwardArguments& a, int64_t first, int64_t last, void* scratch) {
  if (a.ghost_mul && a.ghost_add) forward_units<T, K, true, true>(a, first, last, scratch);
  else if (a.ghost_mul) forward_units<T, K, true, false>(a, first, last, scratch);
  else if (a.ghost_add) forward_units<T, K, false, true>(a, first, last, scratch);
  else forward_units<T, K, false, false>(a, first, last, scratch);
}

template <class T>
void forward(const ForwardArguments& a, int64_t first, int64_t last, void* scratch) {
  if constexpr (kSpecialised<T>) {
    switch (specialised_kernel<T>(a.geometry)) {
      case 3: return forward_ghosts<T, 3>(a, first, last, scratch);
      case 5: return forward_ghosts<T, 5>(a, first, last, scratch);
      case 7: return forward_ghosts<T, 7>(a, first, last, scratch);
    }
  }
  forward_ghosts<T, 0>(a, first, last, scratch);
}

template <class T>
constexpr Kernel<ForwardArguments> forward_kernel{kLanes<Accumulate<T>>, ghost_pairs<T>, forward_scratch<T>, forward<T>};

}  // namespace
}  // namespace elsa::cpu::ELSA_ISA
