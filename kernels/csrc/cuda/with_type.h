// From a storage type known at run time to the type itself.
#pragma once
#include "cu_compat.h"
#include "launch.h"

namespace elsa::cuda {

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

}  // namespace elsa::cuda
