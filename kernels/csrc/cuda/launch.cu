// From a type known at run time to the launch code of that type.
#include "with_type.h"

namespace elsa::cuda {

template <typename T>
const char* forward_typed(const Problem& p, const Inputs& in, void* out, void* stream);
template <typename T>
const char* backward_typed(const Problem& p, const void* grad_out, const Inputs& in, const Gradients& grads,
                           void* workspace, void* stream);
template <typename T>
size_t workspace_typed(const Problem& p, bool mul, bool add);

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
