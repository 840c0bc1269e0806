// The emulator itself: warp operations against their definition, identities, and every error it must report.
// With an argument, one deliberate fault for the sanitizer that the program was built with: `overrun` or `race`.
#include "../../../kernels/csrc/cuda/cu_compat.h"

#include <cstdio>
#include <string>

namespace {

int failures = 0;
void expect(bool condition, int line, const char* text) {
  if (condition) return;
  std::printf("FAILED line %d: %s\n", line, text);
  ++failures;
}
#define EXPECT(condition) expect(condition, __LINE__, #condition)

constexpr unsigned kAll = 0xffffffffu;
#ifdef __SANITIZE_THREAD__
constexpr bool kThreadSanitizer = true;  // reports the threads that an error abandons as races
#else
constexpr bool kThreadSanitizer = false;
#endif

__global__ void warp_operations(int* out) {
  const int t = int(threadIdx.x);
  int* r = out + t * 10;
  r[0] = __shfl_sync(kAll, t, 3);
  r[1] = __shfl_sync(kAll, t, 1, 8);
  r[2] = __shfl_up_sync(kAll, t, 2);
  r[3] = __shfl_up_sync(kAll, t, 2, 8);
  r[4] = __shfl_down_sync(kAll, t, 5);
  r[5] = __shfl_down_sync(kAll, t, 5, 8);
  r[6] = __shfl_xor_sync(kAll, t, 1);
  r[7] = __shfl_xor_sync(kAll, t, 4, 4);
  r[8] = int(__ballot_sync(kAll, t % 3 == 0));
  r[9] = __syncthreads_count(t % 2);
}
__global__ void half_warps(int* out) {
  const int t = int(threadIdx.x);
  int v = t;
  if (t < 16) {
    for (int d = 8; d; d /= 2) v += __shfl_xor_sync(0x0000ffffu, v, d);
  } else {
    for (int d = 8; d; d /= 2) v += __shfl_xor_sync(0xffff0000u, v, d);
  }
  out[t] = v;
}
__global__ void reverse(int* out, int n, int overrun) {
  CU_DYNAMIC_SHARED(memory);
  int* const s = memory.take<int>(size_t(n));
  s[int(threadIdx.x) + (int(threadIdx.x) == n - 1 ? overrun : 0)] = int(threadIdx.x);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = s[n - 1 - int(threadIdx.x)];
}
__global__ void identities(long* out) {
  const long block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * long(blockIdx.z));
  const long thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * long(threadIdx.z));
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}
__global__ void bad_mask(int* out) {
  if (threadIdx.x == 5) out[0] = __shfl_sync(1u, 1, 0);
}
__global__ void divergent_barrier(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void divergent_warp(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
  } else {
    out[threadIdx.x] = __shfl_sync(kAll, 2, 0);
  }
}
__global__ void missing_lanes(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
  __syncthreads();
}
__global__ void too_much_shared(int* out) {
  CU_SHARED(int, big, [60000]);
  out[0] = big[0];
}
__global__ void uninitialised(float* out) {
  CU_SHARED(float, s, [32]);
  out[threadIdx.x] = s[threadIdx.x];
}
__global__ void early_return(int* out) {
  if (threadIdx.x > 3) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void race(int* out) {
  CU_SHARED(int, s, [1]);
  if (threadIdx.x == 0) s[0] = 1;
  out[threadIdx.x] = s[0];
}

template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const cuemu::Error& e) {
    return e.what();
  }
  return "";
}
bool has(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

int out[1024 * 10];

void test_warp_operations() {
  constexpr int kThreads = 50;  // the second warp has 18 lanes
  CU_LAUNCH(warp_operations, 1, kThreads, 0, nullptr, out);
  for (int t = 0; t < kThreads; ++t) {
    const int *r = out + t * 10, warp = t / 32 * 32, lane = t - warp, live = warp ? kThreads - 32 : 32;
    const auto from = [&](int source) { return source < live ? warp + source : -1; };
    EXPECT(r[0] == warp + 3);
    EXPECT(r[1] == from(lane / 8 * 8 + 1));
    EXPECT(r[2] == (lane < 2 ? t : t - 2));
    EXPECT(r[3] == (lane % 8 < 2 ? t : t - 2));
    EXPECT(r[4] == (lane + 5 > 31 ? t : from(lane + 5)));
    EXPECT(r[5] == (lane % 8 + 5 > 7 ? t : from(lane + 5)));
    EXPECT(r[6] == from(lane ^ 1));
    EXPECT(r[7] == ((lane ^ 4) / 4 > lane / 4 ? t : from(lane ^ 4)));
    unsigned ballot = 0;
    for (int i = 0; i < live; ++i) ballot |= unsigned((warp + i) % 3 == 0) << i;
    EXPECT(unsigned(r[8]) == ballot);
    EXPECT(r[9] == kThreads / 2);
  }
  CU_LAUNCH(half_warps, 1, 32, 0, nullptr, out);
  for (int t = 0; t < 32; ++t) EXPECT(out[t] == (t < 16 ? 120 : 376));
}

void test_grid_and_shared() {
  static long ids[1440];
  CU_LAUNCH(identities, dim3(3, 4, 5), dim3(4, 3, 2), 0, nullptr, ids);
  for (long i = 0; i < 1440; ++i) EXPECT(ids[i] == i / 24 * 1000 + i % 24);
  CU_LAUNCH(reverse, 2, 64, 64 * sizeof(int), nullptr, out, 64, 0);
  for (int t = 0; t < 128; ++t) EXPECT(out[t] == 63 - t % 64);
  static float numbers[32];
  CU_LAUNCH(uninitialised, 1, 32, 0, nullptr, numbers);
  for (float x : numbers) EXPECT(x != x);
}

void test_errors() {
  EXPECT(has(error_of([] { CU_LAUNCH(bad_mask, 1, 32, 0, nullptr, out); }), "not in mask"));
  EXPECT(has(error_of([] { CU_LAUNCH(divergent_barrier, 1, 64, 0, nullptr, out); }), "divergent __syncthreads"));
  EXPECT(has(error_of([] { CU_LAUNCH(divergent_warp, 1, 32, 0, nullptr, out); }), "divergent warp operation"));
  EXPECT(has(error_of([] { CU_LAUNCH(missing_lanes, 1, 32, 0, nullptr, out); }), "deadlock"));
  EXPECT(has(error_of([] { CU_LAUNCH(too_much_shared, 1, 32, 0, nullptr, out); }), "too much shared memory"));
  EXPECT(has(error_of([] { CU_LAUNCH(early_return, 1, 32, 0, nullptr, out); }), "returned"));
  EXPECT(has(error_of([] { CU_LAUNCH(reverse, 1, 64, 64, nullptr, out, 64, 0); }), "than launched with"));
  EXPECT(has(error_of([] { CU_LAUNCH(reverse, 1, 64, 50000, nullptr, out, 64, 0); }), "48 KiB"));
  EXPECT(cudaFuncSetAttribute(reverse, cudaFuncAttributeMaxDynamicSharedMemorySize, 50000) == cudaSuccess);
  EXPECT(error_of([] { CU_LAUNCH(reverse, 1, 64, 50000, nullptr, out, 64, 0); }).empty());
  EXPECT(has(error_of([] { CU_LAUNCH(reverse, 1, 2000, 8000, nullptr, out, 64, 0); }), "bad block size"));
  EXPECT(has(error_of([] { CU_LAUNCH(reverse, dim3(1, 70000), 64, 256, nullptr, out, 64, 0); }), "bad grid size"));
  CU_LAUNCH(reverse, 1, 1024, 4096, nullptr, out, 1024, 0);  // and it still works after the errors
  EXPECT(out[0] == 1023);
}

void test_halves() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {  // every number survives the way to float and back
    const __half h{uint16_t(bits)};
    const __nv_bfloat16 b{uint16_t(bits)};
    if (__half2float(h) == __half2float(h)) EXPECT(__float2half_rn(__half2float(h)).bits == bits);
    if (__bfloat162float(b) == __bfloat162float(b)) EXPECT(__float2bfloat16_rn(__bfloat162float(b)).bits == bits);
  }
  EXPECT(__float2half_rn(1.00048828125f).bits == 0x3c00);  // ties to even: down
  EXPECT(__float2half_rn(1.00146484375f).bits == 0x3c02);  // and up
  EXPECT(__float2half_rn(65519.f).bits == 0x7bff && __float2half_rn(65520.f).bits == 0x7c00);
  EXPECT(__float2half_rn(2.9802322e-8f).bits == 0 && __float2half_rn(3.1e-8f).bits == 1);
  EXPECT(__float2bfloat16_rn(1.00390625f).bits == 0x3f80 && __float2bfloat16_rn(1.01171875f).bits == 0x3f82);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "";
  if (fault == "overrun") CU_LAUNCH(reverse, 1, 64, 64 * sizeof(int), nullptr, out, 64, 1);
  if (fault == "race") CU_LAUNCH(race, 1, 64, 0, nullptr, out);
  if (!fault.empty()) return 0;
  test_warp_operations();
  test_grid_and_shared();
  if (!kThreadSanitizer) test_errors();
  test_halves();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
