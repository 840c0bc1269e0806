// The Hadamard convolution on device tensors, as op_device.h does it for the other operator.
#pragma once
#include "../hadamard_checks.h"
#include "hadamard_launch.h"
#include "op_device.h"

namespace elsa::device {

template <class Stream>
std::tuple<Tensor, Tensor> hadamard_forward(const Tensor& packed, const Tensor& weight, const OptionalTensor& bias,
                                            double scale, int64_t dilation, bool save, Stream stream) {
  const HadamardProblem p = check_hadamard_forward(packed, weight, bias, dilation);
  const Tensor in = contiguous(packed), w = contiguous(weight);
  const OptionalTensor b = contiguous_or_none(bias);
  const ScalarType type = packed.scalar_type();
  const std::vector<int64_t> shape{p.batch, p.height, p.width, p.channels};
  Tensor local = new_tensor(in, shape, type), before = new_tensor(in, save ? shape : std::vector<int64_t>{0}, type);
  if (p.batch == 0) return {local, before};
  const cuda::HadamardInputs inputs{in.const_data_ptr(), w.const_data_ptr(), data_or_null(b), scale};
  const cuda::HadamardOutputs outputs{local.mutable_data_ptr(), save ? before.mutable_data_ptr() : nullptr};
  check_launch(cuda::hadamard_forward(p, storage_type(type), inputs, outputs, stream()));
  return {local, before};
}

template <class Stream>
std::tuple<Tensor, Tensor, Tensor> hadamard_backward(const Tensor& grad_local, const OptionalTensor& grad_rest,
                                                     const Tensor& packed, const Tensor& weight, const Tensor& before,
                                                     double scale, int64_t dilation, Stream stream) {
  const HadamardProblem p = check_hadamard_backward(grad_local, grad_rest, packed, weight, before, dilation);
  const Tensor g = contiguous(grad_local), in = contiguous(packed), w = contiguous(weight), z = contiguous(before);
  const OptionalTensor rest = contiguous_or_none(grad_rest);
  const ScalarType type = packed.scalar_type();
  Tensor grad_packed = torch::stable::empty_like(in);
  if (p.batch == 0) {
    return {grad_packed, torch::stable::new_zeros(w, {p.channels, p.group_width, p.kernel, p.kernel}, type),
            torch::stable::new_zeros(w, {p.channels}, type)};
  }
  Tensor grad_weight = torch::stable::empty_like(w), grad_bias = new_tensor(w, {p.channels}, type);
  const ScalarType acc = accumulation_type(type);
  const int64_t bytes = int64_t(cuda::hadamard_workspace_bytes(p, storage_type(type)));
  Tensor workspace = new_tensor(in, {bytes / (acc == ScalarType::Double ? 8 : 4)}, acc);
  const cuda::HadamardInputs inputs{in.const_data_ptr(), w.const_data_ptr(), nullptr, scale};
  const cuda::HadamardSaved saved{g.const_data_ptr(), data_or_null(rest), z.const_data_ptr()};
  const cuda::HadamardGradients grads{grad_packed.mutable_data_ptr(), grad_weight.mutable_data_ptr(),
                                      grad_bias.mutable_data_ptr()};
  check_launch(cuda::hadamard_backward(p, storage_type(type), inputs, saved, grads, workspace.mutable_data_ptr(),
                                       stream()));
  return {grad_packed, grad_weight, grad_bias};
}

}  // namespace elsa::device
