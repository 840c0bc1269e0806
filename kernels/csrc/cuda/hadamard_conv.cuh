// The specialised convolution: forward with bias and GELU, and the gradient of query and key.
#pragma once
#include "hadamard_engines.cuh"

namespace elsa::cuda::hadamard {

template <typename T, int K, int W>
struct ConvShape {
  using Engine = typename EngineOf<T, K, W>::type;
  static constexpr int rows = kRows + K - 1;
  // The window takes the place of the chunk's weights, the sums that of the window that they were made from.
  static constexpr size_t window_floats = size_t(rows) * ConvWindow<T, K, W>::row_stride * sizeof(T) / sizeof(float);
  static constexpr size_t weight_floats = size_t(kChunk) * W * K * K * sizeof(T) / sizeof(float);
  static constexpr size_t sum_floats = size_t(kRows) * kSumRowStride;
  static constexpr size_t larger = window_floats > sum_floats ? window_floats : sum_floats;
  static constexpr size_t plane_floats = larger > weight_floats ? larger : weight_floats;
  static constexpr size_t shared_bytes = (plane_floats + Engine::shared_floats) * sizeof(float);
};

template <typename T>
struct ConvArgs {
  Layout layout;  // channels: of query and of key
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
  if (a.bias) {
    const Quad bias = load_quad(a.bias + channel);
#pragma unroll
    for (int k = 0; k < kPiece; ++k) z.x[k] += bias.x[k];
  }
  if (a.before) store_quad(a.before + at * a.layout.channels + channel, z);
#pragma unroll
  for (int k = 0; k < kPiece; ++k) z.x[k] = gelu(z.x[k]);
  store_quad(a.local + at * a.layout.channels + channel, z);
}

template <typename T>
__device__ __forceinline__ void finish_backward(const ConvArgs<T>& a, const Quad& grad, int64_t at, int channel) {
  const int64_t query_at = at * a.packed_stride + channel, key_at = query_at + a.layout.channels;
  const Quad query = load_quad(a.packed + query_at), key = load_quad(a.packed + key_at);
  Quad dquery, dkey;
#pragma unroll
  for (int k = 0; k < kPiece; ++k) {
    const float scaled = grad.x[k] * a.scale;
    dquery.x[k] = scaled * key.x[k], dkey.x[k] = scaled * query.x[k];
  }
  store_quad(a.grad_packed + query_at, dquery);
  store_quad(a.grad_packed + key_at, dkey);
}

// Four channels' sums at one position, tap by tap: slow, for the tiles that an engine cannot take.
template <typename T, int K, int W>
__device__ __forceinline__ Quad sum_taps(const ConvArgs<T>& a, const ConvWindow<T, K, W>& window, int row, int col,
                                         int piece, int first) {
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
#pragma unroll 1
  for (int n = threadIdx.x; n < kRows * a.cols * kPieces; n += blockDim.x) {
    const int channel = place.first + n % kPieces * kPiece;
    const int row = n / kPieces >> shift, col = n / kPieces & (a.cols - 1);
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
__device__ __forceinline__ bool load_conv_window(const ConvArgs<T>& a, const ConvWindow<T, K, W>& window,
                                                 const Place& place) {
  using Shape = ConvShape<T, K, W>;
  bool strange = false;
  const auto seen = [&](const Quad& quad) {
    if constexpr (Shape::Engine::only_finite) {
#pragma unroll
      for (int k = 0; k < kPiece; ++k) strange |= !(fabsf(load(store<T>(quad.x[k]))) < INFINITY);
    }
  };
  const Maps<T> maps = a.backward ? Maps<T>{a.grad_local, a.known_before, a.layout.channels}
                                  : Maps<T>{a.packed, a.packed + a.layout.channels, a.packed_stride};
  stage<Shape::Engine::batch>(window, Shape::rows, a.cols + K - 1, K / 2, maps, place, Either{a.backward, a.scale},
                              seen);
  return __syncthreads_count(strange) > 0;
}

template <typename T, int K, int W>
__global__ void __launch_bounds__(kMaxThreads, 2) convolve_kernel(ConvArgs<T> a) {
  using Shape = ConvShape<T, K, W>;
  CU_SHARED(Tile, tile, [1]);
  CU_DYNAMIC_SHARED(memory);
  float* const plane = memory.take<float>(Shape::plane_floats);
  const ConvWindow<T, K, W> window{reinterpret_cast<T*>(plane)};

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
    const bool strange = load_conv_window<T, K, W>(a, window, place);
    if (!(Shape::Engine::only_finite && strange)) {
      engine.sum(window);
      __syncthreads();  // the window is no longer read
      engine.write(plane);
      __syncthreads();
    }
    finish(a, place, [&](int row, int col, int piece) {
      if (Shape::Engine::only_finite && strange) return sum_taps<T, K, W>(a, window, row, col, piece, first);
      const float* at = plane + row * kSumRowStride + col * kSumStride + piece * kPiece;
      const Pack<float, kPiece> sum = load_pack<kPiece>(at);
      return Quad{sum.item[0], sum.item[1], sum.item[2], sum.item[3]};
    });
  }
}

}  // namespace elsa::cuda::hadamard
