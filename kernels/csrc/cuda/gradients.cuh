// Specialised gradient of the logits, with the softmax recomputed, and partial sums of the ghost gradients.
//
// A block owns one head and every `slots`-th tile. Per tile it keeps the softmax weights, and 64 bytes of channels at a
// time of the window of value and of the output gradient, in shared memory. For the logits a thread owns four positions
// in a row and one row of taps (K + 3 values and 4 gradients serve 4·K products per channel); for the ghosts it owns
// two channels and one row of taps. Sums over tiles stay in shared memory and leave the block once.
#pragma once
#include "tile.cuh"

namespace elsa::cuda {

template <typename T, int K>
struct GradientShape {
  static constexpr int taps = K * K, run = 4, channels = 64 / sizeof(T), lanes = channels / 2, threads = 32 * K;
  static constexpr int rows = kTileRows + K - 1, cols = kTileCols + K - 1;
  // Rows lie 18 banks apart: eight to eleven rows read at one time, and two rows with all their channels, collide
  // rarely.
  static constexpr int pad = 72 / sizeof(T), align = 8;
  static constexpr int stride = cols * channels + pad, grad_stride = kTileCols * channels + pad;
  static constexpr int mul_pad = 2, mul_stride = channels + mul_pad;
  static constexpr size_t weight_floats = size_t(taps) * kWeightStride, row_sum_floats = size_t(K) * kTilePixels;
  static constexpr size_t mul_floats = size_t(taps) * mul_stride;
  __host__ __device__ static constexpr int padded_channels(int head_channels) {
    return (head_channels + channels - 1) / channels * channels;
  }
  // `ghosts` counts the ghost gradients that are summed: 0, 1 (add) or 2.
  static constexpr size_t shared_bytes(bool mul, int ghosts, int head_channels) {
    const size_t sums = size_t(ghosts) * taps * padded_channels(head_channels);
    return (weight_floats + row_sum_floats + (mul ? mul_floats : 0) + sums) * sizeof(float) +
           size_t(rows * stride + kTileRows * grad_stride) * sizeof(T);
  }
};

template <typename T>
struct GradientArgs {
  Layout layout;
  const T *grad_out, *value, *logits;
  const float* ghost_mul;
  T* dlogits;
  float* lse;
  float* partial;  // (slots, ghosts, C, K²): with MUL dmul then dadd, else dadd; null if no ghost is there
};

// da[p][i] += Σ over the loaded channels of grad[p] · mul[i] · value[p + i], for one row of taps
template <typename T, int K, bool MUL>
__device__ __forceinline__ void dot_channels(float (&da)[4][K], const T* line, const T* grad, const float* mul) {
  using Shape = GradientShape<T, K>;
#pragma unroll 1
  for (int c = 0; c < Shape::channels; c += 2, line += 2, grad += 2, mul += 2) {
    Pair g[4], m[K];
#pragma unroll
    for (int p = 0; p < 4; ++p) g[p] = load_pair(grad + p * Shape::channels);
    if (MUL) {
#pragma unroll
      for (int i = 0; i < K; ++i) m[i] = load_pair(mul + i * Shape::mul_stride);
    }
#pragma unroll
    for (int k = 0; k < K + 3; ++k) {
      const Pair v = load_pair(line + k * Shape::channels);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int i = k - p;
        if (i < 0 || i >= K) continue;
        da[p][i] += g[p].x * v.x * (MUL ? m[i].x : 1);
        da[p][i] += g[p].y * v.y * (MUL ? m[i].y : 1);
      }
    }
  }
}

// dadd[i] = Σ over the lane's positions of grad · value[+ i], and dmul[i] with the softmax weight as third factor. The
// lanes of a warp are `lanes` channel pairs times splits of the tile's rows, summed by shuffles at the end.
template <typename T, int K, bool MUL>
__device__ __forceinline__ void sum_positions(float* dmul, float* dadd, int sum_stride, const T* window, const T* grads,
                                              const float* weights, int j) {
  using Shape = GradientShape<T, K>;
  constexpr int SPLITS = 32 / Shape::lanes;
  const int lane = threadIdx.x % Shape::lanes, split = threadIdx.x % 32 / Shape::lanes;
  Pair mul[K] = {}, add[K] = {};
#pragma unroll 1
  for (int n = 0; n < kTilePixels / 4 / SPLITS; ++n) {
    const int row = n / (kTileCols / 4) * SPLITS + split, col = n % (kTileCols / 4) * 4;
    const T* line = window + (row + j) * Shape::stride + col * Shape::channels + 2 * lane;
    const T* grad = grads + row * Shape::grad_stride + col * Shape::channels + 2 * lane;
    Pair g[4], v[K + 3];
#pragma unroll
    for (int p = 0; p < 4; ++p) g[p] = load_pair(grad + p * Shape::channels);
#pragma unroll
    for (int k = 0; k < K + 3; ++k) v[k] = load_pair(line + k * Shape::channels);
#pragma unroll
    for (int i = 0; i < K; ++i) {
      Pack<float, 4> w;
      if (MUL) w = load_pack<4>(weights + (j * K + i) * kWeightStride + row * kTileCols + col);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const Pair e{g[p].x * v[p + i].x, g[p].y * v[p + i].y};
        add[i] = {add[i].x + e.x, add[i].y + e.y};
        if (MUL) mul[i] = {mul[i].x + e.x * w.item[p], mul[i].y + e.y * w.item[p]};
      }
    }
  }
#pragma unroll
  for (int i = 0; i < K; ++i) {
#pragma unroll
    for (int d = Shape::lanes; d < 32; d *= 2) {
      add[i].x += __shfl_xor_sync(kWarpMask, add[i].x, d);
      add[i].y += __shfl_xor_sync(kWarpMask, add[i].y, d);
      if (MUL) mul[i].x += __shfl_xor_sync(kWarpMask, mul[i].x, d);
      if (MUL) mul[i].y += __shfl_xor_sync(kWarpMask, mul[i].y, d);
    }
    const int at = (j * K + i) * sum_stride + 2 * lane;
    if (split == 0) {
      dadd[at] += add[i].x;
      dadd[at + 1] += add[i].y;
      if (MUL) dmul[at] += mul[i].x;
      if (MUL) dmul[at + 1] += mul[i].y;
    }
  }
}

// dlogits = a · (da − Σ_t a·da), in place of the weights; the sum over rows of taps goes through `row_sums`.
template <int K>
__device__ __forceinline__ void softmax_backward(float (&da)[4][K], float* weights, float* row_sums, int pixel, int j) {
  Pack<float, 4> w[K], dot = {};
#pragma unroll
  for (int i = 0; i < K; ++i) {
    w[i] = load_pack<4>(weights + (j * K + i) * kWeightStride + pixel);
#pragma unroll
    for (int p = 0; p < 4; ++p) dot.item[p] += w[i].item[p] * da[p][i];
  }
  store_pack(row_sums + j * kTilePixels + pixel, dot);
  __syncthreads();  // also: the ghost sums have read the weights
  dot = {};
#pragma unroll
  for (int n = 0; n < K; ++n) {
    const Pack<float, 4> part = load_pack<4>(row_sums + n * kTilePixels + pixel);
#pragma unroll
    for (int p = 0; p < 4; ++p) dot.item[p] += part.item[p];
  }
#pragma unroll
  for (int i = 0; i < K; ++i) {
#pragma unroll
    for (int p = 0; p < 4; ++p) w[i].item[p] *= da[p][i] - dot.item[p];
    store_pack(weights + (j * K + i) * kWeightStride + pixel, w[i]);
  }
}

// The tile's logit gradients to global memory, by the lanes that read the logits.
template <typename T, int K, int THREADS>
__device__ __forceinline__ void write_dlogits(T* __restrict__ dlogits, const float* weights, const Layout& m,
                                              const Tile& tile, int head) {
  constexpr int TAPS = K * K;
  const int lane = threadIdx.x % kLanesPerPixel;
#pragma unroll 1
  for (int pixel = threadIdx.x / kLanesPerPixel; pixel < kTilePixels; pixel += THREADS / kLanesPerPixel) {
    const int64_t at = position(m, tile, pixel / kTileCols, pixel % kTileCols);
    const int64_t first = (at * m.heads + head) * TAPS;
#pragma unroll
    for (int tap = lane; tap < TAPS; tap += kLanesPerPixel) {
      if (at >= 0) dlogits[first + tap] = store<T>(weights[tap * kWeightStride + pixel]);
    }
  }
}

template <typename T, int K, bool MUL>
__global__ void __launch_bounds__(GradientShape<T, K>::threads, 2) gradient_kernel(GradientArgs<T> args) {
  using Shape = GradientShape<T, K>;
  constexpr int TAPS = Shape::taps, CHANNELS = Shape::channels, THREADS = Shape::threads, R = K / 2;
  const Layout& m = args.layout;
  const int sum_stride = Shape::padded_channels(m.head_channels);
  const int ghosts = args.partial ? 1 + MUL : 0, sums = TAPS * sum_stride;
  CU_SHARED(Tile, tile, [1]);
  CU_DYNAMIC_SHARED(memory);
  float* const weights = memory.take<float>(Shape::weight_floats);
  float* const row_sums = memory.take<float>(Shape::row_sum_floats);
  float* const mul = memory.take<float>(MUL ? Shape::mul_floats : 0);
  float *const dmul = memory.take<float>(ghosts * sums), *const dadd = dmul + (MUL ? sums : 0);
  T* const window = memory.take<T>(Shape::rows * Shape::stride);
  T* const grads = memory.take<T>(kTileRows * Shape::grad_stride);

  const int head = blockIdx.x % m.heads, slot = blockIdx.x / m.heads, slots = gridDim.x / m.heads;
  // Eight rows of the tile times four rows of taps in a warp read eleven rows of the window.
  const int row = threadIdx.x % kTileRows, j = threadIdx.x / kTileRows % K, col = threadIdx.x / kTileRows / K * 4;
  const int warp = threadIdx.x / 32;
  for (int n = threadIdx.x; n < ghosts * sums; n += THREADS) dmul[n] = 0;
#pragma unroll 1
  for (int index = slot; index < m.tiles; index += slots) {
    if (threadIdx.x == 0) *tile = locate_tile(m, index);
    __syncthreads();
    softmax_tile<T, K, THREADS>(weights, args.logits, m, *tile, head, args.lse);
    float da[4][K] = {};
#pragma unroll 1
    for (int c0 = 0; c0 < m.head_channels; c0 += CHANNELS) {
      const int first = head * m.head_channels + c0, channels = m.head_channels - c0;
      if (c0 > 0) __syncthreads();  // the previous channels are no longer read
      if (MUL) load_ghost<K, CHANNELS, Shape::mul_pad, false, THREADS>(mul, args.ghost_mul, first, channels);
      load_window<T, Shape::rows, Shape::cols, CHANNELS, Shape::stride, Shape::align, THREADS>(
          window, args.value, m, *tile, -R, -R, first, channels);
      load_window<T, kTileRows, kTileCols, CHANNELS, Shape::grad_stride, Shape::align, THREADS>(
          grads, args.grad_out, m, *tile, 0, 0, first, channels);
      __syncthreads();
      dot_channels<T, K, MUL>(da, window + (row + j) * Shape::stride + col * CHANNELS,
                              grads + row * Shape::grad_stride + col * CHANNELS, mul + j * K * Shape::mul_stride);
      if (ghosts) sum_positions<T, K, MUL>(dmul + c0, dadd + c0, sum_stride, window, grads, weights, warp);
    }
    softmax_backward<K>(da, weights, row_sums, row * kTileCols + col, j);
    __syncthreads();
    write_dlogits<T, K, THREADS>(args.dlogits, weights, m, *tile, head);
    __syncthreads();  // the next tile overwrites all of it
  }
  if (ghosts) {
    __syncthreads();
    const int64_t plane = int64_t(m.channels) * TAPS, first = int64_t(head) * m.head_channels * TAPS;
    for (int n = threadIdx.x; n < ghosts * m.head_channels * TAPS; n += THREADS) {
      const int tap = n % TAPS, c = n / TAPS % m.head_channels, which = n / TAPS / m.head_channels;
      args.partial[(int64_t(slot) * ghosts + which) * plane + first + c * TAPS + tap] =
          dmul[which * sums + tap * sum_stride + c];
    }
  }
}

}  // namespace elsa::cuda
