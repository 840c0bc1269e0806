// Kernels for every type, kernel size, dilation and head size, for what the specialised ones do not take. One warp
// works on one position and head; no shared memory. Lanes are taps while the softmax is computed and channels while
// values are summed; a tap's weight travels by a shuffle.
#pragma once
#include "tile.cuh"

namespace elsa::cuda {

constexpr int kGenericThreads = 256, kGenericWarps = kGenericThreads / 32;

template <typename T>
struct GenericArgs {
  int64_t batch, height, width, channels, heads, head_channels, dilation;
  int kernel, taps;
  const T *value, *logits, *grad_out;
  const Acc<T>* ghost_mul;
  const Acc<T>* ghost_add;
  T *out, *dlogits;
  Acc<T>* lse;
  Acc<T>* partial;
  int64_t slots;
  int ghosts;  // planes of a partial sum: dmul and dadd, or only dadd

  __device__ int64_t pixels() const { return batch * height * width; }
};

__device__ __forceinline__ int64_t warp_index() {
  return int64_t(blockIdx.x) * kGenericWarps + threadIdx.x / 32;
}
__device__ __forceinline__ int64_t warp_count() {
  return int64_t(gridDim.x) * kGenericWarps;
}

template <typename A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kWarpMask, x, d);
  return x;
}

// A position by its coordinates; divided once, since 64-bit division is slow.
struct Site {
  int64_t image, y, x;
};
template <typename T>
__device__ __forceinline__ Site locate(const GenericArgs<T>& a, int64_t pixel) {
  const int64_t row = pixel / a.width, image = row / a.height;
  return {image, row - image * a.height, pixel - row * a.width};
}

// The position that tap `tap` looks at from `site`, or with `sign` −1 the one that looks at it; −1 outside the map.
template <typename T>
__device__ __forceinline__ int64_t neighbour(const GenericArgs<T>& a, const Site& site, int tap, int sign) {
  const int64_t y = site.y + sign * (tap / a.kernel - a.kernel / 2) * a.dilation;
  const int64_t x = site.x + sign * (tap % a.kernel - a.kernel / 2) * a.dilation;
  if (y < 0 || y >= a.height || x < 0 || x >= a.width) return -1;
  return (site.image * a.height + y) * a.width + x;
}

// Log of the sum of exponentials of one row of logits, in all lanes.
template <typename T>
__device__ __forceinline__ Acc<T> log_sum_exp(const T* __restrict__ row, int taps) {
  const int lane = threadIdx.x % 32;
  Acc<T> top = -INFINITY, sum = 0;
  for (int tap = lane; tap < taps; tap += 32) top = larger(top, Acc<T>(load(row[tap])));
#pragma unroll
  for (int d = 16; d > 0; d /= 2) top = larger(top, __shfl_xor_sync(kWarpMask, top, d));
  for (int tap = lane; tap < taps; tap += 32) sum += exponential(load(row[tap]) - top);
  return top + logarithm(warp_sum(sum));
}

// Σ_t (a·mul + add) · input of one channel per lane. Transposed, the weights are those of the positions that look here.
template <bool TRANSPOSED, typename T>
__device__ __forceinline__ Acc<T> sum_channel(const GenericArgs<T>& a, const T* __restrict__ input, int64_t pixel,
                                              int64_t head, int64_t channel, bool active, Acc<T> norm, bool with_add) {
  const int lane = threadIdx.x % 32;
  const Site site = locate(a, pixel);
  Acc<T> sum = 0;
  for (int first = 0; first < a.taps; first += 32) {
    Acc<T> weight = 0;
    if (first + lane < a.taps) {
      const int64_t from = TRANSPOSED ? neighbour(a, site, first + lane, -1) : pixel;
      if (from >= 0) {
        const int64_t row = from * a.heads + head;
        weight = exponential(load(a.logits[row * a.taps + first + lane]) - (TRANSPOSED ? a.lse[row] : norm));
      }
    }
    for (int k = 0; k < 32 && first + k < a.taps; ++k) {
      Acc<T> factor = __shfl_sync(kWarpMask, weight, k);
      const int tap = first + k;
      const int64_t at = neighbour(a, site, tap, TRANSPOSED ? -1 : 1);
      if (at < 0 || !active) continue;
      if (a.ghost_mul) factor *= a.ghost_mul[channel * a.taps + tap];
      if (a.ghost_add && with_add) factor += a.ghost_add[channel * a.taps + tap];
      sum += factor * load(input[at * a.channels + channel]);
    }
  }
  return sum;
}

// out from value, or, transposed, the gradient of value from that of out (then `lse` is read).
template <typename T, bool TRANSPOSED>
__global__ void __launch_bounds__(kGenericThreads) generic_aggregate_kernel(GenericArgs<T> a) {
  const int lane = threadIdx.x % 32;
  const int64_t chunks = (a.head_channels + 31) / 32, tasks = a.pixels() * a.heads * chunks;
  for (int64_t task = warp_index(); task < tasks; task += warp_count()) {
    const int64_t chunk = task % chunks, head = task / chunks % a.heads, pixel = task / chunks / a.heads;
    const int64_t in_head = chunk * 32 + lane, channel = head * a.head_channels + in_head;
    Acc<T> norm = 0;
    if (!TRANSPOSED) norm = log_sum_exp(a.logits + (pixel * a.heads + head) * a.taps, a.taps);
    const T* input = TRANSPOSED ? a.grad_out : a.value;
    const bool active = in_head < a.head_channels;
    const Acc<T> sum = sum_channel<TRANSPOSED>(a, input, pixel, head, channel, active, norm, true);
    if (active) a.out[pixel * a.channels + channel] = store<T>(sum);
  }
}

// The gradient of the logits, and `lse`. Σ_t a·da is the output gradient times the output without the additive ghost.
template <typename T>
__global__ void __launch_bounds__(kGenericThreads) generic_dlogits_kernel(GenericArgs<T> a) {
  const int lane = threadIdx.x % 32;
  const int taps = a.taps;
  const int64_t tasks = a.pixels() * a.heads;
  for (int64_t task = warp_index(); task < tasks; task += warp_count()) {
    const int64_t head = task % a.heads, pixel = task / a.heads, first = head * a.head_channels;
    const T *logits = a.logits + task * taps, *grad = a.grad_out + pixel * a.channels + first;
    const Acc<T> norm = log_sum_exp(logits, taps);
    if (lane == 0) a.lse[task] = norm;
    Acc<T> mean = 0;
    for (int64_t c0 = 0; c0 < a.head_channels; c0 += 32) {
      const bool active = c0 + lane < a.head_channels;
      const Acc<T> sum = sum_channel<false>(a, a.value, pixel, head, first + c0 + lane, active, norm, false);
      if (active) mean += sum * load(grad[c0 + lane]);
    }
    mean = warp_sum(mean);
    const Site site = locate(a, pixel);
    for (int tap = 0; tap < taps; ++tap) {
      const int64_t at = neighbour(a, site, tap, 1);
      Acc<T> dot = 0;
      for (int64_t c = lane; c < a.head_channels && at >= 0; c += 32) {
        const Acc<T> mul = a.ghost_mul ? a.ghost_mul[(first + c) * taps + tap] : 1;
        dot += load(grad[c]) * mul * load(a.value[at * a.channels + first + c]);
      }
      dot = warp_sum(dot);
      if (lane == 0) a.dlogits[task * taps + tap] = store<T>(exponential(load(logits[tap]) - norm) * (dot - mean));
    }
  }
}

// Partial sums of the ghost gradients, (slots, ghosts, C, K²): a warp sums 32 channels of one tap over a slot's
// positions.
template <typename T>
__global__ void __launch_bounds__(kGenericThreads) generic_dghost_kernel(GenericArgs<T> a) {
  const int lane = threadIdx.x % 32;
  const int taps = a.taps;
  const int64_t chunks = (a.head_channels + 31) / 32, per_slot = a.heads * chunks * taps;
  const int64_t share = (a.pixels() + a.slots - 1) / a.slots;
  for (int64_t task = warp_index(); task < a.slots * per_slot; task += warp_count()) {
    const int tap = int(task % taps);
    const int64_t chunk = task / taps % chunks, head = task / taps / chunks % a.heads;
    const int64_t slot = task / per_slot, in_head = chunk * 32 + lane, channel = head * a.head_channels + in_head;
    const int64_t begin = slot * share, end = begin + share < a.pixels() ? begin + share : a.pixels();
    Acc<T> dmul = 0, dadd = 0;
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t at = neighbour(a, locate(a, pixel), tap, 1), row = pixel * a.heads + head;
      if (at < 0 || in_head >= a.head_channels) continue;
      const Acc<T> e = load(a.grad_out[pixel * a.channels + channel]) * load(a.value[at * a.channels + channel]);
      dadd += e;
      if (a.ghost_mul) dmul += e * exponential(load(a.logits[row * taps + tap]) - a.lse[row]);
    }
    if (in_head < a.head_channels) {
      Acc<T>* to = a.partial + (slot * a.ghosts * a.channels + channel) * taps + tap;
      to[(a.ghosts - 1) * a.channels * taps] = dadd;
      if (a.ghosts == 2) to[0] = dmul;
    }
  }
}

}  // namespace elsa::cuda
