#include "target_plain.h"

#include "backward.h"

namespace elsa::cpu {
const KernelTable<BackwardArguments> plain_backward = plain::backward_table;
}
