// Prints what the launch code of the Hadamard convolution asks for, per specialised kernel, from the kernels' own
// constants: type, K, group width, kernel, dynamic shared bytes. Compiled by hadamard_cuda_report.py with the host
// compiler.
#include "../../kernels/csrc/cuda/hadamard_conv.cuh"
#include "../../kernels/csrc/cuda/hadamard_weights.cuh"

#include <cstdio>

using namespace elsa::cuda::hadamard;

template <typename T, int K, int W>
void print(const char* type) {
  std::printf("%s %d %d convolve %zu\n", type, K, W, ConvShape<T, K, W>::shared_bytes);
  std::printf("%s %d %d weight_gradient %zu\n", type, K, W, WeightShape<T, K, W>::shared_bytes);
}

template <typename T>
void print_all(const char* type) {
  print<T, 3, 4>(type), print<T, 3, 8>(type);
  print<T, 5, 4>(type), print<T, 5, 8>(type);
  print<T, 7, 4>(type), print<T, 7, 8>(type);
}

int main() {
  print_all<float>("float");
  print_all<__half>("__half");
  print_all<__nv_bfloat16>("__nv_bfloat16");
}
