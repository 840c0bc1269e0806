#include "target_plain.h"

#include "forward.h"

namespace elsa::cpu {
const KernelTable<ForwardArguments> plain_forward = plain::forward_table;
}
