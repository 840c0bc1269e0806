// What every compiled backend asks of its arguments before it reads one of them, in one place.
//
// The Python door words the same refusals for its callers; these are for whoever calls torch.ops.elsa directly, and
// they run first, so that no shape reaches a kernel unchecked. A refusal is a std::runtime_error (RuntimeError in
// Python) that names the offending values.
#pragma once

#include "problem.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace elsa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  message << "elsa: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    default: return "a type other than float16, bfloat16, float32 and float64";
  }
}

// Half-precision storage is computed in float32, float64 in itself; ghosts are handed over in this type.
inline ScalarType accumulation_type(ScalarType storage) {
  return storage == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  bool equal = tensor.dim() == static_cast<int64_t>(expected.size());
  int64_t axis = 0;
  for (int64_t size : expected) equal = equal && tensor.size(axis++) == size;
  if (equal) return;
  std::ostringstream text;
  const char* separator = "";
  for (int64_t size : expected) {
    text << separator << size;
    separator = ", ";
  }
  refuse(name, " must have shape [", text.str(), "], got ", shape_of(tensor));
}

inline void check_same_device(const char* name, const Tensor& tensor, const Tensor& other,
                              const char* other_name = "value") {
  const bool same = tensor.is_cpu() == other.is_cpu() && tensor.is_cuda() == other.is_cuda() &&
                    tensor.get_device_index() == other.get_device_index();
  if (!same) refuse(name, " and ", other_name, " must be on one device");
}

inline void check_dtype(const char* name, const Tensor& tensor, ScalarType expected) {
  if (tensor.scalar_type() != expected)
    refuse(name, " must have dtype ", dtype_name(expected), ", got ", dtype_name(tensor.scalar_type()));
}

inline void check_storage(const char* name, const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::Half &&
      dtype != ScalarType::BFloat16)
    refuse(name, " must be float16, bfloat16, float32 or float64");
}

inline void check_window(int64_t kernel_size, int64_t dilation) {
  if (kernel_size < 1 || kernel_size % 2 == 0) refuse("kernel_size must be odd and positive, got ", kernel_size);
  // K² and d·K must stay far from the end of 64 bits; a larger kernel than this cannot be meant.
  if (kernel_size > 1023) refuse("kernel_size must be at most 1023, got ", kernel_size);
  if (dilation < 1) refuse("dilation must be at least 1, got ", dilation);
  if (dilation > (int64_t{1} << 31)) refuse("dilation must be at most 2^31, got ", dilation);
}

inline void check_ghost(const char* name, const std::optional<Tensor>& ghost, const Tensor& value, const Problem& p) {
  if (!ghost) return;
  check_same_device(name, *ghost, value);
  check_dtype(name, *ghost, accumulation_type(value.scalar_type()));
  check_shape(name, *ghost, {p.channels, p.taps()});
}

// Arguments of attention_forward: value (B, H, W, C), logits (B, H, W, G·K²), ghosts (C, K²) in the accumulation type.
inline Problem check_forward(const Tensor& value, const Tensor& logits, const std::optional<Tensor>& ghost_mul,
                             const std::optional<Tensor>& ghost_add, int64_t num_heads, int64_t kernel_size,
                             int64_t dilation) {
  if (num_heads < 1) refuse("num_heads must be at least 1, got ", num_heads);
  check_window(kernel_size, dilation);
  check_storage("value", value);
  if (value.dim() != 4) refuse("value must be [B, H, W, C], got shape ", shape_of(value));

  Problem p{};
  p.batch = value.size(0), p.height = value.size(1), p.width = value.size(2), p.channels = value.size(3);
  p.heads = num_heads, p.kernel = kernel_size, p.dilation = dilation;
  if (p.height < 1 || p.width < 1 || p.channels < 1)
    refuse("value needs at least one position and one channel, got shape ", shape_of(value));
  if (p.channels % num_heads != 0)
    refuse("num_heads must divide the channels: ", p.channels, " channels, ", num_heads, " heads");

  check_same_device("logits", logits, value);
  check_dtype("logits", logits, value.scalar_type());
  check_shape("logits", logits, {p.batch, p.height, p.width, p.heads * p.taps()});
  check_ghost("ghost_mul", ghost_mul, value, p);
  check_ghost("ghost_add", ghost_add, value, p);
  return p;
}

// Arguments of attention_backward: those of the forward and the output's gradient, shaped and typed like value.
inline Problem check_backward(const Tensor& grad_out, const Tensor& value, const Tensor& logits,
                              const std::optional<Tensor>& ghost_mul, const std::optional<Tensor>& ghost_add,
                              int64_t num_heads, int64_t kernel_size, int64_t dilation) {
  const Problem p = check_forward(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation);
  check_same_device("grad_out", grad_out, value);
  check_dtype("grad_out", grad_out, value.scalar_type());
  check_shape("grad_out", grad_out, {p.batch, p.height, p.width, p.channels});
  return p;
}

}  // namespace elsa
