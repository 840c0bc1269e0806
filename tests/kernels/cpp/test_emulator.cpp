// The emulator itself: warp operations against their definition, identities, and every error it must report.
// With an argument, one deliberate fault for the sanitizer that the program was built with: `overrun` or `race`.
#include "../../../kernels/csrc/cuda/hadamard_mma.cuh"

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
// The operands' places as the PTX manual numbers them (a0 … a7, b0 … b3, c0 … c3), for A (16, K), B (K, 8), D (16, 8).
template <typename T, int K>
__global__ void matrix_product(const float* a, const float* b, float* d) {
  const int group = int(threadIdx.x) / 4, in_group = int(threadIdx.x) % 4;
  T as[K / 2], bs[K / 4];
  for (int i = 0; i < K / 2; ++i) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
    as[i] = elsa::cuda::store<T>(a[row * K + column]);
  }
  for (int i = 0; i < K / 4; ++i) {
    const int row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
    bs[i] = elsa::cuda::store<T>(b[row * 8 + group]);
  }
  uint32_t a_words[K / 4], b_words[K / 8];
  memcpy(a_words, as, sizeof as), memcpy(b_words, bs, sizeof bs);
  const auto place = [&](int i) -> float& { return d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)]; };
  float ds[4] = {place(0), place(1), place(2), place(3)};
  elsa::cuda::multiply_matrices<T, K>(ds, a_words, b_words);
  for (int i = 0; i < 4; ++i) place(i) = ds[i];
}
// Rows of 8 numbers, number n at place n; lane 8·m + i names the row that is 5 · (8·m + i) modulo 32 rows down.
template <int COUNT, bool TRANSPOSED>
__global__ void matrix_load(uint16_t* out) {
  CU_DYNAMIC_SHARED(memory);
  uint16_t* const s = memory.take<uint16_t>(256);
  for (int n = int(threadIdx.x); n < 256; n += 32) s[n] = uint16_t(n);
  __syncthreads();
  uint32_t words[COUNT];
  elsa::cuda::load_matrices<COUNT, TRANSPOSED>(words, s + threadIdx.x * 5 % 32 * 8);
  memcpy(out + threadIdx.x * COUNT * 2, words, sizeof words);
}
__global__ void matrix_load_unaligned(uint16_t* out) {
  CU_DYNAMIC_SHARED(memory);
  uint16_t* const s = memory.take<uint16_t>(512);
  uint32_t words[2];
  elsa::cuda::load_matrices<2, false>(words, s + threadIdx.x * 4);
  out[threadIdx.x] = uint16_t(words[0]);
}
__global__ void matrix_load_global(uint16_t* out) {
  uint32_t words[2];
  elsa::cuda::load_matrices<2, false>(words, out);
  out[threadIdx.x] = uint16_t(words[0]);
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

template <typename T, int K>
void test_matrix_product() {
  float a[16 * K], b[K * 8], d[16 * 8], expected[16 * 8];
  for (int n = 0; n < 16 * K; ++n) a[n] = float(n * 7 % 23 - 11);
  for (int n = 0; n < K * 8; ++n) b[n] = float(n * 5 % 19 - 9);
  for (int n = 0; n < 16 * 8; ++n) d[n] = expected[n] = float(n);
  for (int n = 0; n < 16 * 8 * K; ++n) expected[n / K] += a[n / K / 8 * K + n % K] * b[n % K * 8 + n / K % 8];
  CU_LAUNCH((matrix_product<T, K>), 1, 32, 0, nullptr, a, b, d);
  for (int n = 0; n < 16 * 8; ++n) EXPECT(d[n] == expected[n]);  // small integers: exact
}

template <int COUNT, bool TRANSPOSED>
void test_matrix_load() {
  static uint16_t words[32 * COUNT * 2];
  CU_LAUNCH((matrix_load<COUNT, TRANSPOSED>), 1, 32, 512, nullptr, words);
  for (int n = 0; n < 32 * COUNT * 2; ++n) {
    const int lane = n / (COUNT * 2), matrix = n / 2 % COUNT, pair = lane % 4 * 2 + n % 2;
    const int row = TRANSPOSED ? pair : lane / 4, column = TRANSPOSED ? lane / 4 : pair;
    EXPECT(words[n] == (8 * matrix + row) * 5 % 32 * 8 + column);
  }
}

void test_matrices() {
  test_matrix_product<__half, 16>();
  test_matrix_product<__half, 8>();
  test_matrix_product<__nv_bfloat16, 16>();
  test_matrix_product<__nv_bfloat16, 8>();
  test_matrix_load<2, false>();
  test_matrix_load<2, true>();
  test_matrix_load<4, false>();
  test_matrix_load<4, true>();
}

void test_errors() {
  alignas(16) static uint16_t words[64];
  EXPECT(has(error_of([] { CU_LAUNCH(matrix_load_unaligned, 1, 32, 1024, nullptr, words); }), "aligned"));
  EXPECT(has(error_of([] { CU_LAUNCH(matrix_load_global, 1, 32, 0, nullptr, words); }), "not in shared memory"));
  EXPECT(has(error_of([] { CU_LAUNCH(matrix_load_global, 1, 24, 0, nullptr, words); }), "lanes are missing"));
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
  test_matrices();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
