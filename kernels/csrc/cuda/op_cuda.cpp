// The operators' CUDA implementation: current device, current stream.
#include "hadamard_op_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

namespace elsa {
namespace {

using device::OptionalTensor;

void* current_stream(int32_t device_index) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return stream;
}

Tensor forward(const Tensor& value, const Tensor& logits, const OptionalTensor& ghost_mul,
               const OptionalTensor& ghost_add, int64_t num_heads, int64_t kernel_size, int64_t dilation) {
  const int32_t index = value.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  return device::forward(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation,
                         [&] { return current_stream(index); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const Tensor& logits,
                                                    const OptionalTensor& ghost_mul, const OptionalTensor& ghost_add,
                                                    int64_t num_heads, int64_t kernel_size, int64_t dilation) {
  const int32_t index = value.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  return device::backward(grad_out, value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation,
                          [&] { return current_stream(index); });
}

std::tuple<Tensor, Tensor> hadamard_forward(const Tensor& packed, const Tensor& weight, const OptionalTensor& bias,
                                            double scale, int64_t dilation, bool save) {
  const int32_t index = packed.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  return device::hadamard_forward(packed, weight, bias, scale, dilation, save, [&] { return current_stream(index); });
}

std::tuple<Tensor, Tensor, Tensor> hadamard_backward(const Tensor& grad_local, const OptionalTensor& grad_rest,
                                                     const Tensor& packed, const Tensor& weight, const Tensor& before,
                                                     double scale, int64_t dilation) {
  const int32_t index = packed.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  return device::hadamard_backward(grad_local, grad_rest, packed, weight, before, scale, dilation,
                                   [&] { return current_stream(index); });
}

}  // namespace
}  // namespace elsa

STABLE_TORCH_LIBRARY_IMPL(elsa, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&elsa::forward));
  m.impl("attention_backward", TORCH_BOX(&elsa::backward));
  m.impl("hadamard_forward", TORCH_BOX(&elsa::hadamard_forward));
  m.impl("hadamard_backward", TORCH_BOX(&elsa::hadamard_backward));
}
