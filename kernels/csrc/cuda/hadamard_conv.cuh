// The specialised convolution: forward with bias and GELU, and the gradient of query and key.
#pragma once
#include "hadamard_engines.cuh"

namespace elsa::cuda::hadamard {

template <typename T, int K, int W>
struct ConvShape {
  using Engine = typename EngineOf<T, K, W>::type;
  static constexpr int rows = kRows + K - 1;
  __host__ __device__ static constexpr int window_cols(int cols) { return cols + K - 1; }
  // The window takes the place of the chunk's weights, the sums that of the window that they were made from.
  __host__ __device__ static constexpr size_t plane_floats(int cols) {
    const size_t window = size_t(window_elements<T>(rows, window_cols(cols))) * sizeof(T) / sizeof(float);
    const size_t sums = size_t(kRows) * cols * kSumStride;
    constexpr size_t weights = size_t(kChunk) * W * K * K * sizeof(T) / sizeof(float);
    return window > sums && window > weights ? window : sums > weights ? sums : weights;
  }
  __host__ __device__ static constexpr size_t shared_bytes(int cols) {
    return (plane_floats(cols) + Engine::shared_floats) * sizeof(float);
  }
};

template <typename T>
struct ConvArgs {
  Layout layout;  // channels: of query and of key; vectors: pieces of four can be moved whole
  int cols;       // positions in a row of a tile: 16 or 32
  bool backward;
  int64_t packed_stride;
  float scale;
  const T *packed, *weight;
  const T* bias;                       // forward; null when absent
  T *local, *before;                   // forward; `before` is null when not wanted
  const T *grad_local, *known_before;  // backward
  T* grad_packed;                      // backward: query and key
};

template <typename T>
__device__ __forceinline__ void finish_forward(const ConvArgs<T>& a, Quad z, int64_t at, int channel) {
  const bool whole = a.layout.vectors;
  T* const before = a.before;
  if (a.bias) {
    const Quad bias = widen(load_piece(a.bias + channel, whole));
#pragma unroll
    for (int k = 0; k < kPiece; ++k) z.x[k] += bias.x[k];
  }
  if (before) store_piece(before + at * a.layout.channels + channel, z, whole);
#pragma unroll
  for (int k = 0; k < kPiece; ++k) z.x[k] = gelu(z.x[k]);
  store_piece(a.local + at * a.layout.channels + channel, z, whole);
}

template <typename T>
__device__ __forceinline__ void finish_backward(const ConvArgs<T>& a, const Quad& grad, int64_t at, int channel) {
  const bool whole = a.layout.vectors;
  const int64_t query_at = at * a.packed_stride + channel, key_at = query_at + a.layout.channels;
  const Quad query = widen(load_piece(a.packed + query_at, whole)), key = widen(load_piece(a.packed + key_at, whole));
  Quad dquery, dkey;
#pragma unroll
  for (int k = 0; k < kPiece; ++k) {
    const float scaled = grad.x[k] * a.scale;
    dquery.x[k] = scaled * key.x[k], dkey.x[k] = scaled * query.x[k];
  }
  store_piece(a.grad_packed + query_at, dquery, whole);
  store_piece(a.grad_packed + key_at, dkey, whole);
}

// Four channels' sums at one position, tap by tap: slow, for the tiles that an engine cannot take.
template <typename T, int K, int W>
__device__ __forceinline__ Quad sum_taps(const ConvArgs<T>& a, const Window<T, W>& window, int row, int col, int piece,
                                         int first) {
  const int group = piece * kPiece / W, out = piece * kPiece % W;
  const GroupWeights<T, K, W> weights{a.weight + int64_t(first + group * W) * W * K * K, a.backward};
  Quad sum{};
#pragma unroll 1
  for (int tap = 0; tap < K * K; ++tap) {
    const T* from = window.at(row + tap / K, group, col + tap % K);
#pragma unroll 1
    for (int in = 0; in < W; ++in) {
      const float value = load(from[in]);
#pragma unroll
      for (int k = 0; k < kPiece; ++k) sum.x[k] += load(weights(out + k, in, tap / K, tap % K)) * value;
    }
  }
  return sum;
}

// `get(row, col, piece)`: four channels' sums at one position of the tile.
template <typename T, typename Get>
__device__ __forceinline__ void finish(const ConvArgs<T>& a, const Place& place, Get get) {
  const int shift = a.cols == kMaxCols ? 5 : 4;
#pragma unroll 2
  for (int n = threadIdx.x; n < kRows * a.cols * kPieces; n += blockDim.x) {
    const int channel = place.first + n % kPieces * kPiece, row = n / kPieces >> shift, col = n / kPieces & (a.cols - 1);
    const int64_t at = position(a.layout, place.tile, row, col);
    if (at < 0 || channel >= a.layout.channels) continue;
    const Quad quad = get(row, col, n % kPieces);
    if (a.backward) {
      finish_backward(a, quad, at, channel);
    } else {
      finish_forward(a, quad, at, channel);
    }
  }
}

// Stages the window; true where it holds something that is not finite, if that matters to the engine.
template <typename T, int K, int W>
__device__ __forceinline__ bool load_conv_window(const ConvArgs<T>& a, const Window<T, W>& window,
                                                 const Place& place) {
  using Shape = ConvShape<T, K, W>;
  bool strange = false;
  const auto seen = [&](const Quad& quad) {
    if constexpr (Shape::Engine::only_finite) {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) strange |= !(fabsf(load(store<T>(quad.x[k]))) < INFINITY);
    }
  };
  const int cols = Shape::window_cols(a.cols);
  if (a.backward) {
    const Maps<T> maps{a.grad_local, a.known_before, a.layout.channels};
    stage<Shape::rows, Shape::Engine::batch>(window, cols, K / 2, maps, place, ActivationGradient(), seen);
  } else {
    const Maps<T> maps{a.packed, a.packed + a.layout.channels, a.packed_stride};
    stage<Shape::rows, Shape::Engine::batch>(window, cols, K / 2, maps, place, Product{a.scale}, seen);
  }
  return __syncthreads_count(strange) > 0;
}

template <typename T, int K, int W>
__global__ void __launch_bounds__(kMaxThreads, 2) convolve_kernel(ConvArgs<T> a) {
  using Shape = ConvShape<T, K, W>;
  CU_SHARED(Tile, tile, [1]);
  CU_DYNAMIC_SHARED(memory);
  float* const plane = memory.take<float>(Shape::plane_floats(a.cols));
  const Window<T, W> window(reinterpret_cast<T*>(plane), Shape::window_cols(a.cols));

  const int chunks = (a.layout.channels + kChunk - 1) / kChunk;
  const int first = int(blockIdx.x % chunks) * kChunk, slot = blockIdx.x / chunks, slots = gridDim.x / chunks;
  const int channels = a.layout.channels - first < kChunk ? a.layout.channels - first : kChunk;
  T* const weights = reinterpret_cast<T*>(plane);  // for the engine, which reads them in an order of its own
  for (int n = threadIdx.x; n < channels * (W * K * K); n += blockDim.x) {
    weights[n] = a.weight[int64_t(first) * (W * K * K) + n];
  }
  __syncthreads();
  typename Shape::Engine engine(memory, weights, channels, a.backward);
#pragma unroll 1
  for (int index = slot; index < a.layout.tiles; index += slots) {
    __syncthreads();  // the weights, or the sums of the previous tile, are no longer read
    if (threadIdx.x == 0) *tile = locate_tile(a.layout, index, kRows, a.cols);
    __syncthreads();
    const Place place{a.layout, *tile, first};
    const bool strange = load_conv_window<T, K>(a, window, place);
    if constexpr (Shape::Engine::only_finite) {
      if (strange) {
        finish(a, place, [&](int row, int col, int piece) {
          return sum_taps<T, K>(a, window, row, col, piece, first);
        });
        continue;
      }
    }
    engine.sum(window);
    __syncthreads();  // the window is no longer read
    engine.write(plane, a.cols);
    __syncthreads();
    finish(a, place, [&](int row, int col, int piece) {
      const float* at = plane + (row * a.cols + col) * kSumStride + piece * kPiece;
      const Pack<float, kPiece> sum = load_pack<kPiece>(at);
      return Quad{sum.item[0], sum.item[1], sum.item[2], sum.item[3]};
    });
  }
}

}  // namespace elsa::cuda::hadamard
