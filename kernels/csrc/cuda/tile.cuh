// How a map is cut into tiles, and what moves between global and shared memory.
//
// A dilated stencil couples only positions that are congruent modulo the dilation, so a map with dilation d is d²
// independent maps with dilation 1, its phases. Tiles live in one phase: halo and shared memory do not grow with d.
#pragma once
#include "types.cuh"

#include <cstdint>

namespace elsa::cuda {

constexpr int kTileRows = 8, kTileCols = 16, kTilePixels = kTileRows * kTileCols;
// Tap weights are kept as [tap][pixel]. The stride is 4 modulo 32 words, so that eight lanes on consecutive taps times
// four consecutive pixels store to 32 different banks, and rows stay aligned for four-word loads.
constexpr int kWeightStride = kTilePixels + 4;
constexpr int kLanesPerPixel = 8;  // lanes that share one pixel's softmax
constexpr unsigned kWarpMask = 0xffffffffu;

struct Layout {
  int height, width, channels, heads, head_channels, dilation;
  int phases_y, phases_x, tiles_y, tiles_x;
  int tiles;     // of all images and phases
  bool vectors;  // 16-byte access is aligned for every head and position
};

// One tile: its image, its phase, and its first position in the phase's coordinates.
struct Tile {
  int64_t image;
  int phase_y, phase_x, y0, x0;
};

__device__ __forceinline__ Tile locate_tile(const Layout& m, int index, int rows = kTileRows, int cols = kTileCols) {
  Tile tile;
  tile.x0 = index % m.tiles_x * cols;
  index /= m.tiles_x;
  tile.y0 = index % m.tiles_y * rows;
  index /= m.tiles_y;
  tile.phase_x = index % m.phases_x;
  index /= m.phases_x;
  tile.phase_y = index % m.phases_y;
  tile.image = index / m.phases_y;
  return tile;
}

// Index of a position (in phase coordinates relative to the tile) among all positions of the batch, or -1 outside.
__device__ __forceinline__ int64_t position(const Layout& m, const Tile& tile, int row, int col) {
  const int y = (tile.y0 + row) * m.dilation + tile.phase_y, x = (tile.x0 + col) * m.dilation + tile.phase_x;
  if (y < 0 || y >= m.height || x < 0 || x >= m.width) return -1;
  return (tile.image * m.height + y) * m.width + x;
}

// Copies `channels` channels from `first` on of a ROWS × COLS window at (row0, col0) of the tile into shared memory;
// what lies outside the map or beyond the channels becomes zero. STRIDE is the distance of rows there; a pixel holds
// CHANNELS elements. Rows need only be aligned to ALIGN bytes.
template <typename T, int ROWS, int COLS, int CHANNELS, int STRIDE, int ALIGN, int THREADS>
__device__ __forceinline__ void load_window(T* window, const T* __restrict__ map, const Layout& m, const Tile& tile,
                                            int row0, int col0, int first, int channels) {
  if (m.vectors) {
    constexpr int N = 16 / sizeof(T), PER_PIXEL = CHANNELS / N, PART = ALIGN / sizeof(T);
    static_assert(CHANNELS % N == 0 && N % PART == 0 && STRIDE % PART == 0, "whole vectors");
#pragma unroll 2
    for (int n = threadIdx.x; n < ROWS * COLS * PER_PIXEL; n += THREADS) {
      const int c = n % PER_PIXEL * N, col = n / PER_PIXEL % COLS, row = n / PER_PIXEL / COLS;
      const int64_t at = position(m, tile, row0 + row, col0 + col);
      Pack<T, N> pack;
      if (at >= 0 && c < channels) {
        pack = load_pack<N>(map + at * m.channels + first + c);
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) pack.item[k] = store<T>(0);
      }
#pragma unroll
      for (int k = 0; k < N / PART; ++k) {
        Pack<T, PART> part;
#pragma unroll
        for (int q = 0; q < PART; ++q) part.item[q] = pack.item[k * PART + q];
        store_pack(window + row * STRIDE + col * CHANNELS + c + k * PART, part);
      }
    }
  } else {
#pragma unroll 1
    for (int n = threadIdx.x; n < ROWS * COLS * CHANNELS; n += THREADS) {
      const int c = n % CHANNELS, col = n / CHANNELS % COLS, row = n / CHANNELS / COLS;
      const int64_t at = position(m, tile, row0 + row, col0 + col);
      const bool inside = at >= 0 && c < channels;
      window[row * STRIDE + col * CHANNELS + c] = inside ? map[at * m.channels + first + c] : store<T>(0);
    }
  }
}

// Softmax over the taps of every pixel of the tile into shared memory, eight lanes per pixel; pixels outside the map
// get zeros. `lse` (log of the sum of exponentials, one number per position and head) is written where it is not null.
template <typename T, int K, int THREADS>
__device__ __forceinline__ void softmax_tile(float* weights, const T* __restrict__ logits, const Layout& m,
                                             const Tile& tile, int head, float* __restrict__ lse) {
  constexpr int TAPS = K * K, PER_LANE = (TAPS + kLanesPerPixel - 1) / kLanesPerPixel;
  static_assert(THREADS % 32 == 0 && kTilePixels % 4 == 0, "the four pixels of a warp are all in the tile or none");
  const int lane = threadIdx.x % kLanesPerPixel;
#pragma unroll 1
  for (int pixel = threadIdx.x / kLanesPerPixel; pixel < kTilePixels; pixel += THREADS / kLanesPerPixel) {
    const int64_t at = position(m, tile, pixel / kTileCols, pixel % kTileCols);
    const int64_t first = (at * m.heads + head) * TAPS;
    float x[PER_LANE], top = -INFINITY, sum = 0;
#pragma unroll
    for (int n = 0; n < PER_LANE; ++n) {
      const int tap = lane + n * kLanesPerPixel;
      x[n] = at >= 0 && tap < TAPS ? load(logits[first + tap]) : -INFINITY;
      top = larger(top, x[n]);
    }
#pragma unroll
    for (int d = kLanesPerPixel / 2; d > 0; d /= 2) top = larger(top, __shfl_xor_sync(kWarpMask, top, d));
    if (at < 0) top = 0;  // else -inf - -inf
#pragma unroll
    for (int n = 0; n < PER_LANE; ++n) {
      x[n] = lane + n * kLanesPerPixel < TAPS ? exponential(x[n] - top) : 0;
      sum += x[n];
    }
#pragma unroll
    for (int d = kLanesPerPixel / 2; d > 0; d /= 2) sum += __shfl_xor_sync(kWarpMask, sum, d);
    const float scale = at >= 0 ? 1 / sum : 0;
#pragma unroll
    for (int n = 0; n < PER_LANE; ++n) {
      const int tap = lane + n * kLanesPerPixel;
      if (tap < TAPS) weights[tap * kWeightStride + pixel] = x[n] * scale;
    }
    if (lse && at >= 0 && lane == 0) lse[at * m.heads + head] = top + logarithm(sum);
  }
}

// The same array for the transposed operator: entry [t'][q] is the softmax weight with which pixel p = q + offset(t')
// of the map looks at q, by its own tap t = K² − 1 − t'. Every such logit is used by one q only, so each is read once.
template <typename T, int K, int THREADS>
__device__ __forceinline__ void transposed_softmax_tile(float* weights, const T* __restrict__ logits, const Layout& m,
                                                        const Tile& tile, int head, const float* __restrict__ lse) {
  constexpr int TAPS = K * K, R = K / 2, COLS = kTileCols + K - 1, PIXELS = (kTileRows + K - 1) * COLS;
  const int lane = threadIdx.x % kLanesPerPixel;
#pragma unroll 1
  for (int pixel = threadIdx.x / kLanesPerPixel; pixel < PIXELS; pixel += THREADS / kLanesPerPixel) {
    const int row = pixel / COLS - R, col = pixel % COLS - R;
    const int64_t at = position(m, tile, row, col);
    const int64_t first = (at * m.heads + head) * TAPS;
    const float norm = at >= 0 ? lse[at * m.heads + head] : 0;
#pragma unroll 2
    for (int tap = lane; tap < TAPS; tap += kLanesPerPixel) {
      const int to_row = row + tap / K - R, to_col = col + tap % K - R;
      if (to_row < 0 || to_row >= kTileRows || to_col < 0 || to_col >= kTileCols) continue;
      const int entry = (TAPS - 1 - tap) * kWeightStride + to_row * kTileCols + to_col;
      weights[entry] = at >= 0 ? exponential(load(logits[first + tap]) - norm) : 0;
    }
  }
}

// Ghost weights of `channels` channels from `first` on, from (C, K²) to [tap][CHANNELS + PAD] in shared memory, zeros
// where there is none. FLIP reverses the taps, for the transposed operator.
template <int K, int CHANNELS, int PAD, bool FLIP, int THREADS>
__device__ __forceinline__ void load_ghost(float* shared, const float* __restrict__ ghost, int first, int channels) {
  constexpr int TAPS = K * K;
#pragma unroll 1
  for (int n = threadIdx.x; n < TAPS * CHANNELS; n += THREADS) {
    const int tap = n % TAPS, c = n / TAPS;
    const float x = ghost && c < channels ? ghost[(int64_t(first) + c) * TAPS + tap] : 0;
    shared[(FLIP ? TAPS - 1 - tap : tap) * (CHANNELS + PAD) + c] = x;
  }
}

}  // namespace elsa::cuda
