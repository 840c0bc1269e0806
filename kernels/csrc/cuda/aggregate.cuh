// Specialised forward, and the gradient of value, which is the same sum with transposed weights and flipped ghosts.
//
// A block owns a tile of 8 × 16 positions of one head, its softmax weights and 32 channels of its window, both in
// shared memory. A thread owns two channels of eight positions in a row: per row of taps it loads 8 + K − 1 values for
// 8·K multiply-adds per channel, and a tap's weights of its eight positions by two four-word loads.
#pragma once
#include "tile.cuh"

namespace elsa::cuda {

template <typename T, int K>
struct AggregateShape {
  static constexpr int taps = K * K, run = 8, channels = 32, threads = kTilePixels / run * (channels / 2);
  static constexpr int rows = kTileRows + K - 1, cols = kTileCols + K - 1;
  // 64 bytes more per row put the two rows that a warp reads at a time into different halves of the banks.
  static constexpr int stride = cols * channels + 64 / int(sizeof(T));
  static constexpr size_t ghost_floats = size_t(taps) * channels, weight_floats = size_t(taps) * kWeightStride;
  static constexpr size_t shared_bytes(int ghosts) {
    return (weight_floats + ghosts * ghost_floats) * sizeof(float) + size_t(rows) * stride * sizeof(T);
  }
};

template <typename T>
struct AggregateArgs {
  Layout layout;
  const T *input, *logits;  // input: value, or the gradient of the output
  const float *ghost_mul, *ghost_add;
  const float* lse;  // only for the transposed operator
  T* output;
};

template <typename T, int K, bool MUL, bool ADD>
__device__ __forceinline__ void sum_taps(Pair (&sum)[8], const T* line, const float* weights, const float* mul,
                                         const float* add) {
  using Shape = AggregateShape<T, K>;
  constexpr int RUN = Shape::run, CHANNELS = Shape::channels;
#pragma unroll 1
  for (int j = 0; j < K; ++j, line += Shape::stride) {
    Pair v[RUN + K - 1];
#pragma unroll
    for (int k = 0; k < RUN + K - 1; ++k) v[k] = load_pair(line + k * CHANNELS);
#pragma unroll
    for (int i = 0; i < K; ++i, weights += kWeightStride, mul += CHANNELS, add += CHANNELS) {
      const Pack<float, 4> low = load_pack<4>(weights), high = load_pack<4>(weights + 4);
      Pair m, a;
      if (MUL) m = load_pair(mul);
      if (ADD) a = load_pair(add);
#pragma unroll
      for (int p = 0; p < RUN; ++p) {
        const float w = p < 4 ? low.item[p % 4] : high.item[p % 4];
        Pair f{w, w};
        if (MUL) f = {f.x * m.x, f.y * m.y};
        if (ADD) f = {f.x + a.x, f.y + a.y};
        sum[p].x += f.x * v[p + i].x;
        sum[p].y += f.y * v[p + i].y;
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void write_run(const Pair (&sum)[8], T* __restrict__ output, const Layout& m,
                                          const Tile& tile, int row, int col, int channel, int left) {
#pragma unroll
  for (int p = 0; p < 8; ++p) {
    const int64_t at = position(m, tile, row, col + p);
    if (at < 0 || left <= 0) continue;
    T* to = output + at * m.channels + channel;
    if (m.vectors) {
      store_pack(to, Pack<T, 2>{store<T>(sum[p].x), store<T>(sum[p].y)});
    } else {
      to[0] = store<T>(sum[p].x);
      if (left > 1) to[1] = store<T>(sum[p].y);
    }
  }
}

template <typename T, int K, bool MUL, bool ADD, bool TRANSPOSED>
__global__ void __launch_bounds__(AggregateShape<T, K>::threads, (MUL & TRANSPOSED) ? 2 : 3)
    aggregate_kernel(AggregateArgs<T> args) {
  using Shape = AggregateShape<T, K>;
  constexpr int THREADS = Shape::threads, CHANNELS = Shape::channels, R = K / 2;
  CU_SHARED(Tile, tile, [1]);
  CU_DYNAMIC_SHARED(memory);
  float* const weights = memory.take<float>(Shape::weight_floats);
  float* const mul = memory.take<float>(MUL ? Shape::ghost_floats : 0);
  float* const add = memory.take<float>(ADD ? Shape::ghost_floats : 0);
  T* const window = memory.take<T>(Shape::rows * Shape::stride);

  const Layout& m = args.layout;
  const int head = blockIdx.x % m.heads, slot = blockIdx.x / m.heads, slots = gridDim.x / m.heads;
  const int lane = threadIdx.x % (CHANNELS / 2), row = threadIdx.x / (CHANNELS / 2) % kTileRows;
  const int col = threadIdx.x / (CHANNELS / 2) / kTileRows * Shape::run;
#pragma unroll 1
  for (int index = slot; index < m.tiles; index += slots) {
    __syncthreads();  // the previous tile is no longer read
    if (threadIdx.x == 0) *tile = locate_tile(m, index);
    __syncthreads();
    if (TRANSPOSED) {
      transposed_softmax_tile<T, K, THREADS>(weights, args.logits, m, *tile, head, args.lse);
    } else {
      softmax_tile<T, K, THREADS>(weights, args.logits, m, *tile, head, nullptr);
    }
#pragma unroll 1
    for (int c0 = 0; c0 < m.head_channels; c0 += CHANNELS) {
      const int first = head * m.head_channels + c0, channels = m.head_channels - c0;
      if (c0 > 0) __syncthreads();  // the previous channels are no longer read
      if (index == slot || m.head_channels > CHANNELS) {
        if (MUL) load_ghost<K, CHANNELS, 0, TRANSPOSED, THREADS>(mul, args.ghost_mul, first, channels);
        if (ADD) load_ghost<K, CHANNELS, 0, TRANSPOSED, THREADS>(add, args.ghost_add, first, channels);
      }
      load_window<T, Shape::rows, Shape::cols, CHANNELS, Shape::stride, 16, THREADS>(window, args.input, m, *tile, -R,
                                                                                     -R, first, channels);
      __syncthreads();
      Pair sum[Shape::run] = {};
      sum_taps<T, K, MUL, ADD>(sum, window + row * Shape::stride + col * CHANNELS + 2 * lane,
                               weights + row * kTileCols + col, mul + 2 * lane, add + 2 * lane);
      write_run(sum, args.output, m, *tile, row, col, first + 2 * lane, channels - 2 * lane);
    }
  }
}

}  // namespace elsa::cuda
