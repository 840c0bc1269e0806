// The Hadamard convolution for every type, kernel size, group width and dilation, for what the specialised kernels do
// not take. One thread per position and channel, no shared memory.
//
// Backward in steps that leave their results in the gradient of packed: the activation's gradient where query's will
// be, the convolution's where key's will be, and both replaced by the product rule.
#pragma once
#include "hadamard_tile.cuh"

namespace elsa::cuda::hadamard {

constexpr int kGenericThreads = 256;

template <typename T>
struct GenericArgs {
  int64_t height, width, positions, packed_stride, channels, group_width, kernel, dilation;
  Acc<T> scale;
  const T *packed, *weight, *bias;                 // bias may be null
  const T *grad_local, *grad_rest, *known_before;  // grad_rest may be null
  T *local, *before, *grad_packed;                 // before may be null
  Acc<T>* partial;                                 // [slot][weight as it is, then bias]
  int64_t slots;
};

struct Task {
  int64_t index, step;
  __device__ __forceinline__ Task()
      : index(int64_t(blockIdx.x) * blockDim.x + threadIdx.x), step(int64_t(gridDim.x) * blockDim.x) {}
};

// Taps of an axis that lie on the map, seen from coordinate `at`: those that look at it mirrored are as many.
struct Reach {
  int64_t begin, end;
  __device__ __forceinline__ Reach(int64_t at, int64_t size, int64_t kernel, int64_t dilation) {
    const int64_t half = kernel / 2, before = at / dilation, after = (size - 1 - at) / dilation;
    begin = half > before ? half - before : 0;
    end = after < half ? half + after + 1 : kernel;
  }
};

// Σ over taps and the group's channels. Forward from query · key · scale; backward from the activation's gradient, with
// input and output channel exchanged and the taps mirrored.
template <bool BACKWARD, typename T>
__device__ __forceinline__ Acc<T> convolve_one(const GenericArgs<T>& a, int64_t pixel, int64_t channel) {
  const int64_t x = pixel % a.width, row = pixel / a.width, y = row % a.height, taps = a.kernel * a.kernel;
  const int64_t group = channel / a.group_width * a.group_width, half = a.kernel / 2;
  const Reach rows(y, a.height, a.kernel, a.dilation), cols(x, a.width, a.kernel, a.dilation);
  Acc<T> sum = 0;
  for (int64_t dy = rows.begin; dy < rows.end; ++dy) {
    for (int64_t dx = cols.begin; dx < cols.end; ++dx) {
      const int64_t at = pixel + ((dy - half) * a.width + dx - half) * a.dilation, tap = dy * a.kernel + dx;
      for (int64_t k = 0; k < a.group_width; ++k) {
        if (BACKWARD) {
          const T weight = a.weight[((group + k) * a.group_width + channel - group) * taps + taps - 1 - tap];
          sum += load(weight) * load(a.grad_packed[at * a.packed_stride + group + k]);
        } else {
          const T* packed = a.packed + at * a.packed_stride + group + k;
          const Acc<T> product = load(packed[0]) * load(packed[a.channels]) * a.scale;
          sum += load(a.weight[(channel * a.group_width + k) * taps + tap]) * product;
        }
      }
    }
  }
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kGenericThreads) generic_forward_kernel(GenericArgs<T> a) {
  const Task task;
  for (int64_t n = task.index; n < a.positions * a.channels; n += task.step) {
    Acc<T> z = convolve_one<false>(a, n / a.channels, n % a.channels);
    if (a.bias) z += load(a.bias[n % a.channels]);
    if (a.before) a.before[n] = store<T>(z);
    a.local[n] = store<T>(gelu(z));
  }
}

template <typename T>
__global__ void __launch_bounds__(kGenericThreads) generic_activation_kernel(GenericArgs<T> a) {
  const Task task;
  for (int64_t n = task.index; n < a.positions * a.channels; n += task.step) {
    const Acc<T> grad = load(a.grad_local[n]) * gelu_slope(load(a.known_before[n]));
    a.grad_packed[n / a.channels * a.packed_stride + n % a.channels] = store<T>(grad);
  }
}

template <typename T>
__global__ void __launch_bounds__(kGenericThreads) generic_backward_kernel(GenericArgs<T> a) {
  const Task task;
  for (int64_t n = task.index; n < a.positions * a.channels; n += task.step) {
    const Acc<T> sum = convolve_one<true>(a, n / a.channels, n % a.channels);
    a.grad_packed[n / a.channels * a.packed_stride + a.channels + n % a.channels] = store<T>(sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kGenericThreads) generic_product_rule_kernel(GenericArgs<T> a) {
  const Task task;
  for (int64_t n = task.index; n < a.positions * a.channels; n += task.step) {
    const int64_t query = n / a.channels * a.packed_stride + n % a.channels, key = query + a.channels;
    const Acc<T> grad = load(a.grad_packed[key]) * a.scale;
    a.grad_packed[query] = store<T>(grad * load(a.packed[key]));
    a.grad_packed[key] = store<T>(grad * load(a.packed[query]));
  }
}

// The part of packed's gradient that passes by, a warp per position; also beside the specialised kernels.
template <typename T, int N>
__global__ void __launch_bounds__(kGenericThreads) rest_kernel(GenericArgs<T> a) {
  const int64_t packs = (a.packed_stride - 2 * a.channels) / N;
  const Task task;
  for (int64_t pixel = task.index / 32; pixel < a.positions; pixel += task.step / 32) {
    T* const to = a.grad_packed + pixel * a.packed_stride + 2 * a.channels;
    for (int64_t n = threadIdx.x % 32; n < packs; n += 32) {
      Pack<T, N> pack;
      if (a.grad_rest) {
        pack = load_pack<N>(a.grad_rest + (pixel * packs + n) * N);
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) pack.item[k] = store<T>(0);
      }
      store_pack(to + n * N, pack);
    }
  }
}

// Partial sums of one slot's positions; the activation's gradient is read from packed's.
template <typename T>
__global__ void __launch_bounds__(kGenericThreads) generic_weight_kernel(GenericArgs<T> a) {
  const int64_t taps = a.kernel * a.kernel, weights = a.channels * a.group_width * taps, half = a.kernel / 2;
  const int64_t per_slot = weights + a.channels, share = (a.positions + a.slots - 1) / a.slots;
  const Task task;
  for (int64_t n = task.index; n < a.slots * per_slot; n += task.step) {
    const int64_t slot = n / per_slot, place = n % per_slot;
    const int64_t begin = slot * share, end = begin + share < a.positions ? begin + share : a.positions;
    const bool bias = place >= weights;
    const int64_t channel = bias ? place - weights : place / (a.group_width * taps);
    const int64_t in = channel / a.group_width * a.group_width + place / taps % a.group_width;
    const int64_t down = (place % taps / a.kernel - half) * a.dilation, right = (place % a.kernel - half) * a.dilation;
    Acc<T> sum = 0;
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const Acc<T> grad = load(a.grad_packed[pixel * a.packed_stride + channel]);
      const int64_t y = pixel / a.width % a.height + down, x = pixel % a.width + right;
      if (bias) {
        sum += grad;
      } else if (y >= 0 && y < a.height && x >= 0 && x < a.width) {
        const T* packed = a.packed + (pixel + down * a.width + right) * a.packed_stride + in;
        sum += grad * (load(packed[0]) * load(packed[a.channels]) * a.scale);
      }
    }
    a.partial[n] = sum;
  }
}

}  // namespace elsa::cuda::hadamard
