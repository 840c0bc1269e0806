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

// A plane of [row][group][position][W] in shared memory, for rows of up to COLS positions. Between groups there is room
// that makes the pieces which a warp stores together lie in different banks.
template <typename T, int W, int COLS>
struct Window {
  static constexpr int step = sizeof(T) == 2 ? 8 : 4, groups = kChunk / W;
  static constexpr int stride = (COLS + step / 2 - 1) / step * step + step / 2, row_stride = groups * stride * W;
  T* data;

  __device__ __forceinline__ T* at(int row, int group, int col) const {
    return data + row * row_stride + (group * stride + col) * W;
  }
};

struct Quad {
  float x[kPiece];
};

template <typename T>
__device__ __forceinline__ void store_quad(T* __restrict__ to, const Quad& quad) {
  Pack<T, kPiece> pack;
#pragma unroll
  for (int k = 0; k < kPiece; ++k) pack.item[k] = store<T>(quad.x[k]);
  store_pack(to, pack);
}
template <typename T>
__device__ __forceinline__ Quad widen(const Pack<T, kPiece>& pack) {
  Quad quad;
#pragma unroll
  for (int k = 0; k < kPiece; ++k) quad.x[k] = load(pack.item[k]);
  return quad;
}
template <typename T>
__device__ __forceinline__ Quad load_quad(const T* __restrict__ from) {
  return widen(load_pack<kPiece>(from));
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
  __device__ __forceinline__ Quad operator()(const Quad& query, const Quad& key) const {
    Quad result;
#pragma unroll
    for (int k = 0; k < kPiece; ++k) result.x[k] = query.x[k] * key.x[k] * scale;
    return result;
  }
};
struct ActivationGradient {
  __device__ __forceinline__ Quad operator()(const Quad& grad, const Quad& before) const {
    Quad result;
#pragma unroll
    for (int k = 0; k < kPiece; ++k) result.x[k] = grad.x[k] * gelu_slope(before.x[k]);
    return result;
  }
};
// One or the other at run time, so that what surrounds it is compiled once.
struct Either {
  bool backward;
  float scale;
  __device__ __forceinline__ Quad operator()(const Quad& a, const Quad& b) const {
    return backward ? ActivationGradient()(a, b) : Product{scale}(a, b);
  }
};

// combine(a, b) of a block's channels into rows × cols positions of `window`, which starts `margin` rows and columns
// before the tile; zero outside the map and beyond the channels. `seen` gets every piece before it is rounded. The
// loads of BATCH positions are in flight together.
template <int BATCH, typename T, int W, int COLS, typename Combine, typename Seen>
__device__ __forceinline__ void stage(const Window<T, W, COLS>& window, int rows, int cols, int margin,
                                      const Maps<T>& maps, const Place& place, Combine combine, Seen seen) {
  const Layout& m = place.layout;
  const int piece = threadIdx.x % kPieces, step = blockDim.x / kPieces, channel = place.first + piece * kPiece;
  const bool present = channel < m.channels;
  T* const to = window.at(0, piece * kPiece / W, 0) + piece * kPiece % W;
  int row = int(threadIdx.x) / kPieces / cols, col = int(threadIdx.x) / kPieces % cols;
  while (row < rows) {
    Pack<T, kPiece> a[BATCH], b[BATCH];
    int offset[BATCH];
    bool inside[BATCH];
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      const int64_t at = position(m, place.tile, row - margin, col - margin);
      offset[k] = row < rows ? row * window.row_stride + col * W : -1;
      inside[k] = present && at >= 0 && row < rows;
      if (inside[k]) {
        a[k] = load_pack<kPiece>(maps.a + at * maps.stride + channel);
        b[k] = load_pack<kPiece>(maps.b + at * maps.stride + channel);
      }
      for (col += step; col >= cols; col -= cols) ++row;
    }
#pragma unroll
    for (int k = 0; k < BATCH; ++k) {
      if (offset[k] < 0) continue;
      Quad quad{};
      if (inside[k]) {
        quad = combine(widen(a[k]), widen(b[k]));
        seen(quad);
      }
      store_quad(to + offset[k], quad);
    }
  }
}

}  // namespace elsa::cuda::hadamard
