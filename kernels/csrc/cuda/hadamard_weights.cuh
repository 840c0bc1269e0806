// The specialised gradient of weight and bias: sums over positions of grad_local · GELU'(before) at one position times
// query · key · scale at its neighbours. A block loops over its tiles with the sums in registers and writes one slot of
// partial sums, which reduce.cuh adds up in a fixed order.
#pragma once
#include "hadamard_mma.cuh"
#include "hadamard_tile.cuh"

namespace elsa::cuda::hadamard {

// A lane owns four channels of every position that it stages, so it can add up the bias' gradient as they pass.
struct BiasSum {
  float* sums;
  __device__ __forceinline__ void operator()(const Quad& quad) const {
#pragma unroll
    for (int k = 0; k < kPiece; ++k) sums[k] += quad.x[k];
  }
};

// Half precision, on tensor cores. D = A · B with the positions as the inner dimension: eight units
// (hadamard_engines.cuh) of a row in the upper half of the tile and eight in the lower. Rows of A are the 16 values of
// two neighbouring units of the product, columns of B the 8 values of a unit of the gradient; both lie in memory the
// other way round, hence the transposing loads. At width 4 the even and the odd positions have sums of their own.
template <typename T, int K, int W>
struct TensorSums {
  static constexpr int per_unit = 8 / W, units = (K - 1) / per_unit + 1, segment = 8 * per_unit;
  static constexpr int blocks = (units + 1) / 2;             // pairs of units in a row of taps
  static constexpr int shares = K * blocks > 16 ? 2 : 1;     // warps that share them, for the registers' sake
  static constexpr int mine = blocks / shares;
  static_assert(blocks % shares == 0, "equal shares");
  static constexpr int max_cols = kMaxCols;

  float sums[K][mine][4] = {};
  int group, share, part, parts;  // a warp's group, its pairs of units, its segments of a row: part, part + parts, …

  __device__ __forceinline__ explicit TensorSums(int cols) {
    const int warp = threadIdx.x / 32, others = warp / (kChunk / W);
    group = warp % (kChunk / W), share = others % shares, part = others / shares, parts = cols / segment / shares;
  }

  __device__ __forceinline__ void add(const Window<T, W>& products, const Window<T, W>& grads, int cols) {
    const int lane = threadIdx.x % 32, unit = lane % 8 * 8, quarter = lane / 8;
#pragma unroll 1
    for (int start = part * segment; start < cols; start += parts * segment) {
      uint32_t b[kHalfRows][2];
      const T* grad = grads.at(quarter % 2 * kHalfRows, group, start) + unit;
#pragma unroll
      for (int row = 0; row < kHalfRows; ++row) load_matrices<2, true>(b[row], grad + row * grads.row_stride());
      const T* from = products.at(quarter / 2 * kHalfRows, group, start) + unit + share * mine * 16;
#pragma unroll
      for (int row = 0; row < kHalfRows + K - 1; ++row, from += products.row_stride()) {
#pragma unroll
        for (int n = 0; n < mine; ++n) {
          // The last unit of an odd number stands in for the one after it; its second sums are not used.
          const bool odd = units % 2 == 1 && share * mine + n == blocks - 1;
          uint32_t a[4];
          load_matrices<4, true>(a, from + (2 * n + (odd ? 0 : quarter % 2)) * 8);
#pragma unroll
          for (int dy = 0; dy < K; ++dy) {
            if (row < dy || row - dy >= kHalfRows) continue;
            multiply_matrices<T, 16>(sums[dy][n], a, b[row - dy]);
          }
        }
      }
    }
  }

  // Several warps have sums of the same weights: they take turns.
  __device__ __forceinline__ int turns() const { return parts * per_unit; }
  __device__ __forceinline__ int turn() const { return part * per_unit + threadIdx.x % 4 * 2 / W; }
  template <typename Put>
  __device__ __forceinline__ void each(Put put) const {
    const int g = threadIdx.x % 32 / 4, n = threadIdx.x % 4 * 2;
#pragma unroll
    for (int dy = 0; dy < K; ++dy) {
#pragma unroll
      for (int k = 0; k < mine * 4; ++k) {
        const int u = (share * mine + k / 4) * 2 + k % 4 / 2, dx = u * per_unit + g / W - n / W;
        if (u < units && dx >= 0 && dx < K) put(group, n % W + k % 2, g % W, dy, dx, sums[dy][k / 4][k % 4]);
      }
    }
  }
};

// Float: a thread owns K neighbouring taps of four input and two output channels, and every so many rows of the tile.
// Per four positions it loads 4 + K − 1 vectors of products and four pairs of gradients for 32 · K multiply-adds.
template <int K, int W>
struct ScalarSums {
  static constexpr int tasks = 2 * K * W, run = 4;
  static constexpr int max_cols = 16;  // so that two blocks fit

  float sums[K][4][2] = {};
  int group, in, out, dy, part, parts;

  __device__ __forceinline__ explicit ScalarSums(int) {
    const int task = threadIdx.x % tasks;
    out = task % (W / 2) * 2, in = task / (W / 2) % (W / 4) * 4;
    group = task / (W / 2 * (W / 4)) % (kChunk / W), dy = task / (2 * W);
    part = threadIdx.x / tasks, parts = blockDim.x / tasks;  // threads beyond the last part have nothing to do
  }

  __device__ __forceinline__ void add(const Window<float, W>& products, const Window<float, W>& grads, int cols) {
#pragma unroll 1
    for (int row = part; row < kRows && part < parts; row += parts) {
      const float *from = products.at(row + dy, group, 0) + in, *grad = grads.at(row, group, 0) + out;
#pragma unroll 1
      for (int col = 0; col < cols; col += run, from += run * W, grad += run * W) {
        Pack<float, 4> x[run + K - 1];
#pragma unroll
        for (int n = 0; n < run + K - 1; ++n) x[n] = load_pack<4>(from + n * W);
#pragma unroll
        for (int n = 0; n < run; ++n) {
          const Pair g = load_pair(grad + n * W);
#pragma unroll
          for (int k = 0; k < K * 4; ++k) {
            sums[k / 4][k % 4][0] += x[n + k / 4].item[k % 4] * g.x;
            sums[k / 4][k % 4][1] += x[n + k / 4].item[k % 4] * g.y;
          }
        }
      }
    }
  }

  __device__ __forceinline__ int turns() const { return parts; }
  __device__ __forceinline__ int turn() const { return part; }
  template <typename Put>
  __device__ __forceinline__ void each(Put put) const {
#pragma unroll
    for (int k = 0; k < K * 8; ++k) put(group, out + k % 2, in + k / 2 % 4, dy, k / 8, sums[k / 8][k / 2 % 4][k % 2]);
  }
};

template <typename T, int K, int W>
struct SumsOf {
  using type = TensorSums<T, K, W>;
};
template <int K, int W>
struct SumsOf<float, K, W> {
  using type = ScalarSums<K, W>;
};

template <typename T>
struct WeightArgs {
  Layout layout;
  int cols;
  int64_t packed_stride;
  float scale;
  const T *packed, *grad_local, *before;
  float* partial;  // [slot][weight as it is, then bias]
};

template <typename T, int K, int W>
struct WeightShape {
  using Sums = typename SumsOf<T, K, W>::type;
  static constexpr int rows = kRows + K - 1;
  __host__ __device__ static constexpr size_t products(int cols) {
    return size_t(window_elements<T>(rows, cols + K - 1));
  }
  __host__ __device__ static constexpr size_t grads(int cols) { return size_t(window_elements<T>(kRows, cols)); }
  __host__ __device__ static constexpr size_t bias_floats(int cols) { return size_t(cols) * kThreadsPerCol * kPiece; }
  __host__ __device__ static constexpr size_t shared_bytes(int cols) {
    return (products(cols) + grads(cols)) * sizeof(T) + bias_floats(cols) * sizeof(float);
  }
};

// Adds up what the threads have seen of each channel, in their order.
__device__ __forceinline__ void write_bias(float* shared, const float (&sums)[kPiece], float* partial, int channels) {
#pragma unroll
  for (int k = 0; k < kPiece; ++k) shared[threadIdx.x * kPiece + k] = sums[k];
  __syncthreads();
  if (int(threadIdx.x) >= kChunk || int(threadIdx.x) >= channels) return;
  float sum = 0;
  for (int n = threadIdx.x; n < int(blockDim.x) * kPiece; n += kChunk) sum += shared[n];
  partial[threadIdx.x] = sum;
}

template <typename T, int K, int W>
__global__ void __launch_bounds__(kMaxThreads, 2) weight_gradient_kernel(WeightArgs<T> a) {
  using Shape = WeightShape<T, K, W>;
  CU_SHARED(Tile, tile, [1]);
  CU_DYNAMIC_SHARED(memory);
  const Window<T, W> products(memory.take<T>(Shape::products(a.cols)), a.cols + K - 1);
  const Window<T, W> grads(memory.take<T>(Shape::grads(a.cols)), a.cols);
  float* const bias = memory.take<float>(Shape::bias_floats(a.cols));

  const Layout& m = a.layout;
  const int chunks = (m.channels + kChunk - 1) / kChunk;
  const int first = int(blockIdx.x % chunks) * kChunk, slot = blockIdx.x / chunks, slots = gridDim.x / chunks;
  typename Shape::Sums sums(a.cols);
  float bias_sums[kPiece] = {};
#pragma unroll 1
  for (int index = slot; index < m.tiles; index += slots) {
    __syncthreads();  // the previous tile is no longer read
    if (threadIdx.x == 0) *tile = locate_tile(m, index, kRows, a.cols);
    __syncthreads();
    const Maps<T> inputs{a.packed, a.packed + m.channels, a.packed_stride};
    const Maps<T> outputs{a.grad_local, a.before, m.channels};
    const Place place{m, *tile, first};
    stage<Shape::rows, 2>(products, a.cols + K - 1, K / 2, inputs, place, Product{a.scale}, [](const Quad&) {});
    stage<kRows, 2>(grads, a.cols, 0, outputs, place, ActivationGradient(), BiasSum{bias_sums});
    __syncthreads();
    sums.add(products, grads, a.cols);
  }

  float* const partial = a.partial + slot * (int64_t(m.channels) * (W * K * K + 1));
#pragma unroll 1
  for (int turn = 0; turn < sums.turns(); ++turn) {
    if (sums.turn() == turn) {
      sums.each([&](int group, int out, int in, int dy, int dx, float sum) {
        const int channel = first + group * W + out;
        if (channel >= m.channels) return;
        float& to = partial[(int64_t(channel) * W + in) * K * K + dy * K + dx];
        to = turn == 0 ? sum : to + sum;
      });
    }
    __syncthreads();
  }
  write_bias(bias, bias_sums, partial + int64_t(m.channels) * W * K * K + first, m.channels - first);
}

}  // namespace elsa::cuda::hadamard
