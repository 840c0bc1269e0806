// The operators' schemas, for the library that defines it and for those that define it again elsewhere (tests do).
//
// kernels/library.py compares what a library defines with the signatures of the fake kernels that stand for it.
#pragma once

namespace elsa {

// value (B, H, W, C) and logits (B, H, W, G·K²) in one of float16, bfloat16, float32, float64; ghosts (C, K²) in the
// accumulation type: float64 for float64, else float32. Returns (B, H, W, C) in value's type.
constexpr const char* kForwardSchema =
    "attention_forward(Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, int num_heads, "
    "int kernel_size, int dilation) -> Tensor";

// Returns the gradients of value, logits, ghost_mul, ghost_add; that of an absent ghost has no elements.
constexpr const char* kBackwardSchema =
    "attention_backward(Tensor grad_out, Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, "
    "int num_heads, int kernel_size, int dilation) -> (Tensor, Tensor, Tensor, Tensor)";

// packed (B, H, W, D) = [query (C_q) | key (C_q) | rest], weight (C_q, width, K, K) as a convolution's with C_q / width
// groups, bias (C_q,), all of one of the four types. Returns local = GELU(before) and before = the convolution of
// query · key · scale, both (B, H, W, C_q) in that type; before has shape (0,) unless `save`.
constexpr const char* kHadamardForwardSchema =
    "hadamard_forward(Tensor packed, Tensor weight, Tensor? bias, float scale, int dilation, bool save) -> "
    "(Tensor, Tensor)";

// grad_local and before (B, H, W, C_q), grad_rest (B, H, W, D - 2·C_q). Returns the gradients of packed (that of the
// rest is grad_rest, zeros where it is absent), weight and bias, in packed's type.
constexpr const char* kHadamardBackwardSchema =
    "hadamard_backward(Tensor grad_local, Tensor? grad_rest, Tensor packed, Tensor weight, Tensor before, float scale, "
    "int dilation) -> (Tensor, Tensor, Tensor)";

// before of any shape and of one of the four types. Returns GELU(before), of normal distribution and not of tanh.
constexpr const char* kGeluForwardSchema = "gelu_forward(Tensor before) -> Tensor";

// Returns the gradient of before, and GELU(before) again.
constexpr const char* kGeluBackwardSchema = "gelu_backward(Tensor grad_local, Tensor before) -> (Tensor, Tensor)";

}  // namespace elsa
