// From a type known at run time to the launch code of that type.
#include "cu_compat.h"
#include "launch.h"

namespace elsa::cuda {

template <typename T>
const char* forward_typed(const Problem& p, const Inputs& in, void* out, void* stream);
template <typename T>
const char* backward_typed(const Problem& p, const void* grad_out, const Inputs& in, const Gradients& grads,
                           void* workspace, void* stream);
template <typename T>
size_t workspace_typed(const Problem& p, bool mul, bool add);

namespace {
template <typename T>
struct Tag {
  using type = T;
};

template <typename Call>
auto with_type(Type type, Call call) {
  switch (type) {
    case Type::f64:
      return call(Tag<double>());
    case Type::f16:
      return call(Tag<__half>());
    case Type::bf16:
      return call(Tag<__nv_bfloat16>());
    default:
      return call(Tag<float>());
  }
}
}  // namespace

size_t workspace_bytes(const Problem& p, Type type, bool mul, bool add) {
  return with_type(type, [&](auto tag) { return workspace_typed<typename decltype(tag)::type>(p, mul, add); });
}

const char* forward(const Problem& p, Type type, const Inputs& in, void* out, void* stream) {
  return with_type(type, [&](auto tag) { return forward_typed<typename decltype(tag)::type>(p, in, out, stream); });
}

const char* backward(const Problem& p, Type type, const void* grad_out, const Inputs& in, const Gradients& grads,
                     void* workspace, void* stream) {
  return with_type(type, [&](auto tag) {
    return backward_typed<typename decltype(tag)::type>(p, grad_out, in, grads, workspace, stream);
  });
}

}  // namespace elsa::cuda
