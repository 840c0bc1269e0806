// The operator on device tensors: checks, allocation, launch. Shared by the CUDA library and the emulated one, which
// differ in the stream alone.
#pragma once
#include "../checks.h"
#include "launch.h"

#include <tuple>
#include <vector>

namespace elsa::device {

using OptionalTensor = std::optional<Tensor>;
using torch::stable::contiguous;

inline cuda::Type storage_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return cuda::Type::f64;
    case ScalarType::Half:
      return cuda::Type::f16;
    case ScalarType::BFloat16:
      return cuda::Type::bf16;
    default:
      return cuda::Type::f32;
  }
}

inline OptionalTensor contiguous_or_none(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(contiguous(*tensor)) : std::nullopt;
}
inline const void* data_or_null(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

// What is absent has a gradient without elements.
inline Tensor new_ghost_gradient(const Tensor& value, const Problem& p, bool present) {
  const ScalarType type = accumulation_type(value.scalar_type());
  if (!present) return new_tensor(value, {0}, type);
  if (p.batch == 0) return torch::stable::new_zeros(value, std::vector<int64_t>{p.channels, p.taps()}, type);
  return new_tensor(value, {p.channels, p.taps()}, type);
}

inline void check_launch(const char* error) {
  if (error) refuse("the CUDA kernel could not be launched: ", error);
}

// `stream` is called once the arguments are known to be good.
template <class Stream>
Tensor forward(const Tensor& value, const Tensor& logits, const OptionalTensor& ghost_mul,
               const OptionalTensor& ghost_add, int64_t num_heads, int64_t kernel_size, int64_t dilation,
               Stream stream) {
  const Problem p = check_forward(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation);
  const Tensor v = contiguous(value), l = contiguous(logits);
  const OptionalTensor mul = contiguous_or_none(ghost_mul), add = contiguous_or_none(ghost_add);
  Tensor out = torch::stable::empty_like(v);
  if (p.batch == 0) return out;
  const cuda::Inputs in{v.const_data_ptr(), l.const_data_ptr(), data_or_null(mul), data_or_null(add)};
  check_launch(cuda::forward(p, storage_type(v.scalar_type()), in, out.mutable_data_ptr(), stream()));
  return out;
}

template <class Stream>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const Tensor& logits,
                                                    const OptionalTensor& ghost_mul, const OptionalTensor& ghost_add,
                                                    int64_t num_heads, int64_t kernel_size, int64_t dilation,
                                                    Stream stream) {
  const Problem p = check_backward(grad_out, value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation);
  const Tensor g = contiguous(grad_out), v = contiguous(value), l = contiguous(logits);
  const OptionalTensor mul = contiguous_or_none(ghost_mul), add = contiguous_or_none(ghost_add);
  Tensor dvalue = torch::stable::empty_like(v), dlogits = torch::stable::empty_like(l);
  Tensor dmul = new_ghost_gradient(v, p, mul.has_value()), dadd = new_ghost_gradient(v, p, add.has_value());
  if (p.batch == 0) return {dvalue, dlogits, dmul, dadd};

  const cuda::Type type = storage_type(v.scalar_type());
  const ScalarType acc = accumulation_type(v.scalar_type());
  const int64_t bytes = int64_t(cuda::workspace_bytes(p, type, mul.has_value(), add.has_value()));
  Tensor workspace = new_tensor(v, {bytes / (acc == ScalarType::Double ? 8 : 4)}, acc);
  const cuda::Inputs in{v.const_data_ptr(), l.const_data_ptr(), data_or_null(mul), data_or_null(add)};
  const cuda::Gradients grads{dvalue.mutable_data_ptr(), dlogits.mutable_data_ptr(),
                              mul ? dmul.mutable_data_ptr() : nullptr, add ? dadd.mutable_data_ptr() : nullptr};
  check_launch(cuda::backward(p, type, g.const_data_ptr(), in, grads, workspace.mutable_data_ptr(), stream()));
  return {dvalue, dlogits, dmul, dadd};
}

}  // namespace elsa::device
