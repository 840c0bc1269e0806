// How a warp convolves one group of channels over its part of a tile: on tensor cores in half precision, on CUDA cores
// in float. An engine keeps the group's weights and adds up 14 rows by one segment of positions (16 at group width 4, 8
// at width 8); every lane holds 7 × 4 of the sums.
#pragma once
#include "hadamard_mma.cuh"
#include "hadamard_tile.cuh"

#include <cstring>

namespace elsa::cuda::hadamard {

// What an engine reads, halo included.
template <typename T, int K, int W>
using ConvWindow = Window<T, W, kMaxCols + K - 1>;

// Sums leave an engine as [row][position][channel] with four words between positions, without bank conflicts.
constexpr int kSumStride = kChunk + 4, kSumRowStride = kMaxCols * kSumStride;

// The weights of one group as the convolution multiplies with them. Transposed: output and input channel change places
// and the taps are mirrored, which makes it the input's gradient.
template <typename T, int K, int W>
struct GroupWeights {
  static constexpr int size = W * W * K * K;
  const T* base;  // null beyond the last group
  bool transposed;

  __device__ __forceinline__ T operator()(int out, int in, int dy, int dx) const {
    if (!base) return store<T>(0);
    if (transposed) return base[(in * W + out) * K * K + K * K - 1 - dy * K - dx];
    return base[(out * W + in) * K * K + dy * K + dx];
  }
};

// Half precision. A unit is 16 bytes of a group's row: 8 / W positions by W channels. Eight units below each other in
// the upper half of the tile and eight in the lower are the 16 rows of A, a unit's 8 values its columns, and the W
// outputs at the 8 / W positions of a unit the 8 columns of B: at width 4 a unit's two neighbouring positions share
// what is loaded, and K + 1 offsets serve K taps of both. A row of the window is loaded once for all rows of taps.
template <typename T, int K, int W>
struct TensorEngine {
  static constexpr int per_unit = 8 / W, units = (K - 1) / per_unit + 1, segment = 8 * per_unit;
  static constexpr size_t shared_floats = 0;
  static constexpr int batch = K * units > 40 ? 1 : 4;  // of loads, while all weights are in registers
  // Where two positions share a unit, each meets an offset for which it has no tap. Its weight is zero, but zero times
  // infinity is not: tiles with values that are not finite must be summed in another way.
  static constexpr bool only_finite = per_unit > 1;

  uint32_t weights[K][units];  // B: rows 2t, 2t + 1 of each unit, column g
  int group, part;
  float sums[kHalfRows][4];

  // `chunk`: the weights of the block's `channels` channels, in shared memory.
  __device__ __forceinline__ TensorEngine(SharedMemory&, const T* chunk, int channels, bool backward) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    group = warp % (kChunk / W), part = warp / (kChunk / W);
    using Weights = GroupWeights<T, K, W>;
    const Weights of_group{group * W < channels ? chunk + group * Weights::size : nullptr, backward};
#pragma unroll
    for (int dy = 0; dy < K; ++dy) {
#pragma unroll
      for (int u = 0; u < units; ++u) {
        Pack<T, 2> pair;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int dx = u * per_unit + (2 * t + n) / W - g / W;
          pair.item[n] = dx >= 0 && dx < K ? of_group(g % W, (2 * t + n) % W, dy, dx) : store<T>(0);
        }
        memcpy(&weights[dy][u], &pair, 4);
      }
    }
  }

  __device__ __forceinline__ void sum(const ConvWindow<T, K, W>& window) {
#pragma unroll
    for (int k = 0; k < kHalfRows * 4; ++k) sums[k / 4][k % 4] = 0;
    const int lane = threadIdx.x % 32;
    const T* from = window.at(lane / 8 % 2 * kHalfRows, group, part * segment) + (lane % 8 + lane / 16) * 8;
#pragma unroll
    for (int row = 0; row < kHalfRows + K - 1; ++row, from += window.row_stride) {
      uint32_t a[units][2];
#pragma unroll
      for (int u = 0; u + 1 < units; u += 2) load_matrices<4, false>(a[u], from + u * 8);
      if constexpr (units % 2 == 1) load_matrices<2, false>(a[units - 1], from + (units - 1) * 8);
#pragma unroll
      for (int dy = 0; dy < K; ++dy) {
        if (row < dy || row - dy >= kHalfRows) continue;
#pragma unroll
        for (int u = 0; u + 1 < units; u += 2) multiply_matrices<T, 16>(sums[row - dy], a[u], &weights[dy][u]);
        if constexpr (units % 2 == 1) {
          multiply_matrices<T, 8>(sums[row - dy], a[units - 1], &weights[dy][units - 1]);
        }
      }
    }
  }

  __device__ __forceinline__ void write(float* to) const {
    const int g = threadIdx.x % 32 / 4, n = threadIdx.x % 4 * 2;
    to += (part * segment + g * per_unit + n / W) * kSumStride + group * W + n % W;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const float* pair = sums[k % kHalfRows] + k / kHalfRows * 2;
      store_pack(to + k * kSumRowStride, Pack<float, 2>{pair[0], pair[1]});
    }
  }
};

// Float: a lane owns four output channels of seven positions below each other. Per column of taps and four input
// channels it loads 7 + K − 1 vectors of values, and per tap four of weights for 7 · 16 multiply-adds.
template <int K, int W>
struct ScalarEngine {
  using Weights = GroupWeights<float, K, W>;
  static constexpr int lanes = 64 / W, segment = lanes;
  static constexpr size_t shared_floats = size_t(kChunk) / W * Weights::size;
  static constexpr int batch = 2;
  static constexpr bool only_finite = false;

  const float* weights;  // [input / 4][dx][dy][input % 4][output]
  int group, part, col, half, out;
  float sums[kHalfRows][4];

  __device__ __forceinline__ ScalarEngine(SharedMemory& memory, const float* chunk, int channels, bool backward) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    group = warp % (kChunk / W), part = warp / (kChunk / W);
    col = lane % lanes, half = lane / lanes % 2, out = lane / lanes / 2 * 4;
    float* const shared = memory.take<float>(shared_floats);
    weights = shared + group * Weights::size;
    for (int n = threadIdx.x; n < int(shared_floats); n += blockDim.x) {
      const int o = n % W, i = n / W % 4, dy = n / (W * 4) % K, dx = n / (W * 4 * K) % K;
      const int quarter = n / (W * 4 * K * K) % (W / 4), of = n / Weights::size;
      const Weights of_group{of * W < channels ? chunk + of * Weights::size : nullptr, backward};
      shared[n] = of_group(o, quarter * 4 + i, dy, dx);
    }
  }

  __device__ __forceinline__ void sum(const ConvWindow<float, K, W>& window) {
#pragma unroll
    for (int k = 0; k < kHalfRows * 4; ++k) sums[k / 4][k % 4] = 0;
    const float* w = weights + out;
#pragma unroll 1
    for (int in = 0; in < W; in += 4) {
#pragma unroll 1
      for (int dx = 0; dx < K; ++dx) {
        const float* from = window.at(half * kHalfRows, group, part * segment + col + dx) + in;
        Pack<float, 4> x[kHalfRows + K - 1];
#pragma unroll
        for (int row = 0; row < kHalfRows + K - 1; ++row) x[row] = load_pack<4>(from + row * window.row_stride);
#pragma unroll
        for (int dy = 0; dy < K; ++dy) {
#pragma unroll
          for (int i = 0; i < 4; ++i, w += W) {
            const Pack<float, 4> tap = load_pack<4>(w);
#pragma unroll
            for (int row = 0; row < kHalfRows; ++row) {
#pragma unroll
              for (int o = 0; o < 4; ++o) sums[row][o] += x[row + dy].item[i] * tap.item[o];
            }
          }
        }
      }
    }
  }

  __device__ __forceinline__ void write(float* to) const {
    to += half * kHalfRows * kSumRowStride + (part * segment + col) * kSumStride + group * W + out;
#pragma unroll
    for (int row = 0; row < kHalfRows; ++row) {
      store_pack(to + row * kSumRowStride, Pack<float, 4>{sums[row][0], sums[row][1], sums[row][2], sums[row][3]});
    }
  }
};

template <typename T, int K, int W>
struct EngineOf {
  using type = TensorEngine<T, K, W>;
};
template <int K, int W>
struct EngineOf<float, K, W> {
  using type = ScalarEngine<K, W>;
};

}  // namespace elsa::cuda::hadamard
