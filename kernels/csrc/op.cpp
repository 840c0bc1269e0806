// Defines the operators. Every backend registers its implementation for its own dispatch key; fake kernels, autograd and
// the autocast rule are registered from Python (kernels/library.py).
#include "schema.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(elsa, m) {
  m.def(elsa::kForwardSchema);
  m.def(elsa::kBackwardSchema);
  m.def(elsa::kHadamardForwardSchema);
  m.def(elsa::kHadamardBackwardSchema);
  m.def(elsa::kGeluForwardSchema);
  m.def(elsa::kGeluBackwardSchema);
}
