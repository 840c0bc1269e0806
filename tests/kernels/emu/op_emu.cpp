// The operators as torch.ops.elsa_emu on CPU tensors, computed by the emulated CUDA kernels.
#include "../../../kernels/csrc/cuda/hadamard_op_device.h"
#include "../../../kernels/csrc/schema.h"

namespace elsa {
namespace {

using device::OptionalTensor;

void* no_stream() {
  return nullptr;
}

Tensor forward(const Tensor& value, const Tensor& logits, const OptionalTensor& ghost_mul,
               const OptionalTensor& ghost_add, int64_t num_heads, int64_t kernel_size, int64_t dilation) {
  return device::forward(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, no_stream);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const Tensor& logits,
                                                    const OptionalTensor& ghost_mul, const OptionalTensor& ghost_add,
                                                    int64_t num_heads, int64_t kernel_size, int64_t dilation) {
  return device::backward(grad_out, value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, no_stream);
}

std::tuple<Tensor, Tensor> hadamard_forward(const Tensor& packed, const Tensor& weight, const OptionalTensor& bias,
                                            double scale, int64_t dilation, bool save) {
  return device::hadamard_forward(packed, weight, bias, scale, dilation, save, no_stream);
}

std::tuple<Tensor, Tensor, Tensor> hadamard_backward(const Tensor& grad_local, const OptionalTensor& grad_rest,
                                                     const Tensor& packed, const Tensor& weight, const Tensor& before,
                                                     double scale, int64_t dilation) {
  return device::hadamard_backward(grad_local, grad_rest, packed, weight, before, scale, dilation, no_stream);
}

}  // namespace
}  // namespace elsa

STABLE_TORCH_LIBRARY(elsa_emu, m) {
  m.def(elsa::kForwardSchema);
  m.def(elsa::kBackwardSchema);
  m.def(elsa::kHadamardForwardSchema);
  m.def(elsa::kHadamardBackwardSchema);
}
STABLE_TORCH_LIBRARY_IMPL(elsa_emu, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&elsa::forward));
  m.impl("attention_backward", TORCH_BOX(&elsa::backward));
  m.impl("hadamard_forward", TORCH_BOX(&elsa::hadamard_forward));
  m.impl("hadamard_backward", TORCH_BOX(&elsa::hadamard_backward));
}
