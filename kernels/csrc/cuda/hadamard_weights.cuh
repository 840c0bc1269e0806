// The specialised gradient of weight and bias: sums over positions of grad_local · GELU'(before) at one position times
// query · key · scale at its neighbours. A block loops over its tiles with the sums in registers and writes one slot of
// partial sums, which reduce.cuh adds up in a fixed order.
#pragma once
#include "hadamard_mma.cuh"
#include "hadamard_tile.cuh"

namespace elsa::cuda::hadamard {

// Half precision, on tensor cores. D = A · B with the positions as the inner dimension: eight units
// (hadamard_engines.cuh) of a row in the upper half of the tile and eight in the lower. Rows of A are the 16 values of
// two neighbouring units of the product, columns of B the 8 values of a unit of the gradient; both lie in memory the
// other way round, hence the transposing loads. At width 4 the even and the odd positions have sums of their own.
template <typename T, int K, int W>
struct TensorSums {
  static constexpr int per_unit = 8 / W, units = (K - 1) / per_unit + 1, segment = 8 * per_unit;
  // The warps of a group share the pairs of units in a row of taps, one each, and if there are more warps the segments.
  static constexpr int pairs = (units + 1) / 2, warps = kMaxThreads / 32 / (kChunk / W);
  static constexpr int shares = warps > 2 && pairs > 2 ? 4 : pairs > 1 ? 2 : 1, parts = warps / shares;
  static_assert(pairs <= shares && shares * parts == warps, "a pair each");
  static constexpr int max_cols = kMaxCols;
  using Products = Window<T, W, max_cols + K - 1>;
  using Grads = Window<T, W, max_cols>;

  float sums[K][4] = {};
  int group, share, part;

  __device__ __forceinline__ TensorSums() {
    const int warp = threadIdx.x / 32, others = warp / (kChunk / W);
    group = warp % (kChunk / W), share = others % shares, part = others / shares;
  }

  __device__ __forceinline__ void add(const Products& products, const Grads& grads, int cols) {
    const int unit = threadIdx.x % 8 * 8, quarter = threadIdx.x % 32 / 8;
    // The last unit stands in for one after it, whose sums are not used.
    const int wanted = 2 * share + quarter % 2, own = wanted < units ? wanted : units - 1;
#pragma unroll 1
    for (int start = part * segment; start < cols && share < pairs; start += parts * segment) {
      uint32_t b[kHalfRows][2];
      const T* grad = grads.at(quarter % 2 * kHalfRows, group, start) + unit;
#pragma unroll
      for (int row = 0; row < kHalfRows; ++row) load_matrices<2, true>(b[row], grad + row * grads.row_stride);
      const T* from = products.at(quarter / 2 * kHalfRows, group, start) + unit + own * 8;
#pragma unroll
      for (int row = 0; row < kHalfRows + K - 1; ++row, from += products.row_stride) {
        uint32_t a[4];
        load_matrices<4, true>(a, from);
#pragma unroll
        for (int dy = 0; dy < K; ++dy) {
          if (row >= dy && row - dy < kHalfRows) multiply_matrices<T, 16>(sums[dy], a, b[row - dy]);
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
      for (int k = 0; k < 4; ++k) {
        const int u = share * 2 + k / 2, dx = u * per_unit + g / W - n / W;
        if (u < units && dx >= 0 && dx < K) put(group, n % W + k % 2, g % W, dy, dx, sums[dy][k]);
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
  using Products = Window<float, W, max_cols + K - 1>;
  using Grads = Window<float, W, max_cols>;

  float sums[K][4][2] = {};
  int group, in, out, dy, part, parts;

  __device__ __forceinline__ ScalarSums() {
    const int task = threadIdx.x % tasks;
    out = task % (W / 2) * 2, in = task / (W / 2) % (W / 4) * 4;
    group = task / (W / 2 * (W / 4)) % (kChunk / W), dy = task / (2 * W);
    part = threadIdx.x / tasks, parts = blockDim.x / tasks;  // threads beyond the last part have nothing to do
  }

  __device__ __forceinline__ void add(const Products& products, const Grads& grads, int cols) {
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
  static constexpr size_t products = size_t(rows) * Sums::Products::row_stride;
  static constexpr size_t grads = size_t(kRows) * Sums::Grads::row_stride;
  static constexpr size_t bias_floats = size_t(kMaxThreads) * kPiece;
  static constexpr size_t shared_bytes = (products + grads) * sizeof(T) + bias_floats * sizeof(float);
};

// Adds up what the threads have seen of each channel, in their order.
__device__ __forceinline__ void write_bias(const float* shared, float* partial, int channels) {
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
  const typename Shape::Sums::Products products{memory.take<T>(Shape::products)};
  const typename Shape::Sums::Grads grads{memory.take<T>(Shape::grads)};
  // A thread stages the same four channels of every position, so it can add up the bias' gradient as they pass.
  float* const bias_sums = memory.take<float>(Shape::bias_floats);
  float* const bias = bias_sums + threadIdx.x * kPiece;
  store_quad(bias, Quad{});

  const Layout& m = a.layout;
  const int chunks = (m.channels + kChunk - 1) / kChunk;
  const int first = int(blockIdx.x % chunks) * kChunk, slot = blockIdx.x / chunks, slots = gridDim.x / chunks;
  typename Shape::Sums sums;
#pragma unroll 1
  for (int index = slot; index < m.tiles; index += slots) {
    __syncthreads();  // the previous tile is no longer read
    if (threadIdx.x == 0) *tile = locate_tile(m, index, kRows, a.cols);
    __syncthreads();
    const Maps<T> inputs{a.packed, a.packed + m.channels, a.packed_stride}, outputs{a.grad_local, a.before, m.channels};
    const Place place{m, *tile, first};
    stage<2>(products, Shape::rows, a.cols + K - 1, K / 2, inputs, place, Product{a.scale}, [](const Quad&) {});
    stage<2>(grads, kRows, a.cols, 0, outputs, place, ActivationGradient(), [&](const Quad& quad) {
      const Quad sum = load_quad(bias);
      store_quad(bias, Quad{sum.x[0] + quad.x[0], sum.x[1] + quad.x[1], sum.x[2] + quad.x[2], sum.x[3] + quad.x[3]});
    });
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
  write_bias(bias_sums, partial + int64_t(m.channels) * W * K * K + first, m.channels - first);
}

}  // namespace elsa::cuda::hadamard
