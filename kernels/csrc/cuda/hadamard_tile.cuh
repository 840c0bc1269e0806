// Tiles of the Hadamard convolution: what a block works on, and how two maps become one window in shared memory.
//
// A block owns 16 channels of 14 rows by 16 or 32 positions. Forward, the window holds query · key · scale; backward,
// grad_local · GELU'(before), for which the input's gradient is the same convolution with mirrored, transposed weights.
#pragma once
#include "tile.cuh"

namespace elsa::cuda::hadamard {

constexpr int kRows = 14, kHalfRows = kRows / 2;  // both halves of a tile are worked on at a time
constexpr int kChunk = 16, kPiece = 4, kPieces = kChunk / kPiece;  // channels of a block, and of one memory access
constexpr int kMaxCols = 32, kThreadsPerCol = 8, kMaxThreads = kMaxCols * kThreadsPerCol;

// Positions between the groups of a row in shared memory: pieces that a warp stores together lie in different banks.
template <typename T>
__host__ __device__ constexpr int padded(int cols) {
  constexpr int step = sizeof(T) == 2 ? 8 : 4, rest = step / 2;
  return (cols - rest + step - 1) / step * step + rest;
}

// A plane of [row][group][position][W] in shared memory.
template <typename T, int W>
struct Window {
  static constexpr int groups = kChunk / W;
  T* data;
  int stride;  // positions between groups

  __device__ __forceinline__ Window(T* at, int cols) : data(at), stride(padded<T>(cols)) {}
  __device__ __forceinline__ int row_stride() const { return groups * stride * W; }
  __device__ __forceinline__ T* at(int row, int group, int col) const {
    return data + row * row_stride() + (group * stride + col) * W;
  }
};
template <typename T>
__host__ __device__ constexpr int window_elements(int rows, int cols) {
  return rows * kChunk * padded<T>(cols);
}

struct Quad {
  float x[kPiece];
};

// `whole`: the four elements are aligned for one access.
template <typename T>
__device__ __forceinline__ Pack<T, kPiece> load_piece(const T* __restrict__ from, bool whole) {
  if (whole) return load_pack<kPiece>(from);
  Pack<T, kPiece> pack;
#pragma unroll
  for (int k = 0; k < kPiece; ++k) pack.item[k] = from[k];
  return pack;
}
template <typename T>
__device__ __forceinline__ void store_piece(T* __restrict__ to, const Quad& quad, bool whole) {
  Pack<T, kPiece> pack;
#pragma unroll
  for (int k = 0; k < kPiece; ++k) pack.item[k] = store<T>(quad.x[k]);
  if (whole) {
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int k = 0; k < kPiece; ++k) to[k] = pack.item[k];
  }
}
template <typename T>
__device__ __forceinline__ Quad widen(const Pack<T, kPiece>& pack) {
  Quad quad;
#pragma unroll
  for (int k = 0; k < kPiece; ++k) quad.x[k] = load(pack.item[k]);
  return quad;
}

__device__ __forceinline__ float error_function(float x) {
  return erff(x);
}
__device__ __forceinline__ double error_function(double x) {
  return erf(x);
}
template <typename A>
__device__ __forceinline__ A normal_share(A z) {  // of a standard normal variable below z
  return A(0.5) * (1 + error_function(z * A(0.70710678118654752440)));
}
template <typename A>
__device__ __forceinline__ A gelu(A z) {
  return z * normal_share(z);
}
template <typename A>
__device__ __forceinline__ A gelu_slope(A z) {
  return normal_share(z) + z * exponential(A(-0.5) * z * z) * A(0.39894228040143267794);
}

// Two maps that are read at the same position and channel.
template <typename T>
struct Maps {
  const T *a, *b;
  int64_t stride;  // of positions
};

// A block's tile and the first of its channels.
struct Place {
  const Layout& layout;
  const Tile& tile;
  int first;
};

struct Product {
  float scale;
  __device__ __forceinline__ float operator()(float query, float key) const { return query * key * scale; }
};
struct ActivationGradient {
  __device__ __forceinline__ float operator()(float grad, float before) const { return grad * gelu_slope(before); }
};

// combine(a, b) of a block's channels into ROWS × cols positions of `window`, which starts `margin` rows and columns
// before the tile; zero outside the map and beyond the channels. `seen` gets every piece before it is rounded. The loads
// of BATCH positions are in flight together.
template <int ROWS, int BATCH, typename T, int W, typename Combine, typename Seen>
__device__ __forceinline__ void stage(const Window<T, W>& window, int cols, int margin, const Maps<T>& maps,
                                      const Place& place, Combine combine, Seen seen) {
  const Layout& m = place.layout;
  const int piece = threadIdx.x % kPieces, step = blockDim.x / kPieces, channel = place.first + piece * kPiece;
  const bool present = channel < m.channels;
  T* const to = window.at(0, piece * kPiece / W, 0) + piece * kPiece % W;
  int row = int(threadIdx.x) / kPieces / cols, col = int(threadIdx.x) / kPieces % cols;
  while (row < ROWS) {
    Pack<T, kPiece> a[BATCH], b[BATCH];
    int offset[BATCH];
    bool inside[BATCH];
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      const int64_t at = position(m, place.tile, row - margin, col - margin);
      offset[k] = row < ROWS ? row * window.row_stride() + col * W : -1;
      inside[k] = present && at >= 0 && row < ROWS;
      if (inside[k]) {
        a[k] = load_piece(maps.a + at * maps.stride + channel, m.vectors);
        b[k] = load_piece(maps.b + at * maps.stride + channel, m.vectors);
      }
      for (col += step; col >= cols; col -= cols) ++row;
    }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      if (offset[k] < 0) continue;
      Quad quad{};
      if (inside[k]) {
        const Quad x = widen(a[k]), y = widen(b[k]);
#pragma unroll
        for (int c = 0; c < kPiece; ++c) quad.x[c] = combine(x.x[c], y.x[c]);
        seen(quad);
      }
      store_piece(to + offset[k], quad, true);
    }
  }
}

}  // namespace elsa::cuda::hadamard
