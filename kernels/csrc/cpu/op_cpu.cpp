// The host side of the CPU kernels: checks, packing of the ghosts, division of the work, and registration.
#include "dispatch.h"
#include "host.h"

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

namespace elsa::cpu {
namespace {

template <class Arguments>
Geometry geometry_of(const Problem& p, const Tensor& value, const Kernel<Arguments>& kernel, int64_t rows_per_slot,
                     int64_t most_slots) {
  Geometry g{};
  g.height = p.height, g.width = p.width, g.channels = p.channels;
  g.heads = p.heads, g.head_dim = p.head_dim(), g.kernel = p.kernel, g.taps = p.taps();
  divide_dilated(p, g);
  const int64_t rows = g.images * g.image_rows;
  g.slots = std::clamp<int64_t>(std::min(ceil_div(kUnits, g.heads), rows / rows_per_slot), 1, most_slots);
  g.ghost_stride = ceil_div(p.head_dim(), kernel.lanes) * kernel.lanes;
  g.ghost_pairs = kernel.ghost_pairs(g);
  g.value_batch = value.stride(0), g.value_row = value.stride(1), g.value_column = value.stride(2);
  return g;
}

// Value as the kernels read it: a slice of the channels of a wider map stays where it is.
Tensor with_neighbouring_channels(const Tensor& value) {
  return value.stride(3) == 1 || value.size(3) == 1 ? value : torch::stable::contiguous(value);
}

int64_t ghost_elements(const Geometry& g) { return g.heads * g.taps * g.ghost_stride; }

// Where the channels of a head lie in a packed ghost: Geometry::ghost_pairs.
std::vector<int64_t> places(const Geometry& g) {
  std::vector<int64_t> place(static_cast<std::size_t>(g.ghost_stride));
  const int64_t pairs = std::max<int64_t>(g.ghost_pairs, 1), odd = pairs / 2;
  for (int64_t c = 0; c < g.ghost_stride; ++c) place[c] = c - c % pairs + c % 2 * odd + c % pairs / 2;
  return place;
}

// (C, K²) → [head][tap][channel], so that neighbouring channels are one vector; zeros fill up the last one.
template <class A>
void pack_ghost(const Geometry& g, const A* from, A* to) {
  const std::vector<int64_t> place = places(g);
  for (int64_t head = 0; head < g.heads; ++head)
    for (int64_t c = 0; c < g.ghost_stride; ++c) {
      A* packed = to + head * g.taps * g.ghost_stride + place[c];
      const A* taps = from + (head * g.head_dim + c) * g.taps;
      for (int64_t t = 0; t < g.taps; ++t) packed[t * g.ghost_stride] = c < g.head_dim ? taps[t] : A(0);
    }
}

// The sum over the slots, in their order, in the layout of the argument.
template <class A>
void unpack_gradient(const Geometry& g, const A* partial, A* to) {
  const std::vector<int64_t> place = places(g);
  const int64_t elements = ghost_elements(g);
  constexpr int64_t kSums = 1 << 16;  // fewer are done before another thread has woken up
  const int64_t grain = ceil_div(kSums, g.slots * g.taps * g.ghost_stride);
  torch::stable::parallel_for(0, g.heads, grain, [&](int64_t first, int64_t last) {
    for (int64_t head = first; head < last; ++head)
      for (int64_t t = 0; t < g.taps; ++t)
        for (int64_t c = 0; c < g.head_dim; ++c) {
          A sum = 0;
          for (int64_t slot = 0; slot < g.slots; ++slot)
            sum += partial[slot * elements + (head * g.taps + t) * g.ghost_stride + place[c]];
          to[(head * g.head_dim + c) * g.taps + t] = sum;
        }
  });
}

// A ghost as the kernels read it; empty where it is absent.
class PackedGhost {
 public:
  PackedGhost(const Geometry& g, const std::optional<Tensor>& ghost) {
    if (!ghost) return;
    const Tensor dense = torch::stable::contiguous(*ghost);
    if (dense.scalar_type() == ScalarType::Double) pack(g, static_cast<const double*>(dense.const_data_ptr()));
    else pack(g, static_cast<const float*>(dense.const_data_ptr()));
  }
  const void* get() const { return buffer_ ? buffer_->get() : nullptr; }

 private:
  template <class A>
  void pack(const Geometry& g, const A* from) {
    buffer_ = std::make_unique<Buffer>(ghost_elements(g) * static_cast<int64_t>(sizeof(A)));
    pack_ghost(g, from, static_cast<A*>(buffer_->get()));
  }
  std::unique_ptr<Buffer> buffer_;
};

// One array of sums per slot for the gradient of a ghost, and that gradient; both empty where the ghost is absent.
class GhostGradient {
 public:
  GhostGradient(const Geometry& g, const std::optional<Tensor>& ghost, const Tensor& value)
      : gradient_(torch::stable::new_empty(value, {ghost ? g.channels : 0, ghost ? g.taps : 0},
                                           accumulation_type(value.scalar_type()))) {
    if (!ghost) return;
    const int64_t bytes = g.slots * ghost_elements(g) * (is_double() ? 8 : 4);
    partial_ = std::make_unique<Buffer>(bytes);
    std::fill_n(static_cast<char*>(partial_->get()), bytes, 0);
  }
  void* partial() const { return partial_ ? partial_->get() : nullptr; }
  Tensor reduce(const Geometry& g) const {
    if (!partial_) return gradient_;
    if (is_double()) unpack_gradient(g, static_cast<const double*>(partial()), gradient_.mutable_data_ptr<double>());
    else unpack_gradient(g, static_cast<const float*>(partial()), gradient_.mutable_data_ptr<float>());
    return gradient_;
  }

 private:
  bool is_double() const { return gradient_.scalar_type() == ScalarType::Double; }
  Tensor gradient_;
  std::unique_ptr<Buffer> partial_;
};

template <class Arguments>
void run_units(const Kernel<Arguments>& kernel, const Arguments& arguments) {
  const Geometry& g = arguments.geometry;
  torch::stable::parallel_for(0, g.slots * g.heads, 1, [&](int64_t first, int64_t last) {
    const Buffer scratch(kernel.scratch_bytes(g));
    kernel.run(arguments, first, last, scratch.get());
  });
}

Tensor attention_forward(const Tensor& value, const Tensor& logits, const std::optional<Tensor>& ghost_mul,
                         const std::optional<Tensor>& ghost_add, int64_t num_heads, int64_t kernel_size,
                         int64_t dilation) {
  const Problem p = check_forward(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation);
  Tensor out = torch::stable::new_empty(value, {p.batch, p.height, p.width, p.channels});
  if (p.batch == 0) return out;
  prefer_huge_pages(out);
  const ForwardKernel& kernel = kernel_for(*instruction_sets()[active_set()].forward, value.scalar_type());
  const Tensor read_value = with_neighbouring_channels(value), dense_logits = torch::stable::contiguous(logits);
  const Geometry g = geometry_of(p, read_value, kernel, 7, p.batch * p.height);
  const PackedGhost mul(g, ghost_mul), add(g, ghost_add);
  const ForwardArguments arguments{g,
                                   read_value.const_data_ptr(),
                                   dense_logits.const_data_ptr(),
                                   mul.get(),
                                   add.get(),
                                   out.mutable_data_ptr()};
  run_units(kernel, arguments);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, const Tensor& value, const Tensor& logits, const std::optional<Tensor>& ghost_mul,
    const std::optional<Tensor>& ghost_add, int64_t num_heads, int64_t kernel_size, int64_t dilation) {
  const Problem p = check_backward(grad_out, value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation);
  const BackwardKernel& kernel = kernel_for(*instruction_sets()[active_set()].backward, value.scalar_type());
  // A slot recomputes the softmax of the K - 1 rows around its own, and has its own sums for the ghosts.
  constexpr int64_t kPartialBytes = 4 << 20;
  const int64_t most_slots = std::max<int64_t>(1, kPartialBytes / (p.channels * p.taps() * 8));
  const Tensor read_value = with_neighbouring_channels(value);
  const Geometry g = geometry_of(p, read_value, kernel, 4 * std::max<int64_t>(p.kernel, 4), most_slots);

  Tensor grad_value = torch::stable::new_empty(value, {p.batch, p.height, p.width, p.channels});
  Tensor grad_logits = torch::stable::new_empty(value, {p.batch, p.height, p.width, p.heads * p.taps()});
  prefer_huge_pages(grad_value), prefer_huge_pages(grad_logits);
  const GhostGradient grad_mul(g, ghost_mul, value), grad_add(g, ghost_add, value);
  if (p.batch > 0) {
    const Tensor dense_grad = torch::stable::contiguous(grad_out), dense_logits = torch::stable::contiguous(logits);
    const PackedGhost mul(g, ghost_mul), add(g, ghost_add);
    const BackwardArguments arguments{g,
                                      dense_grad.const_data_ptr(),
                                      read_value.const_data_ptr(),
                                      dense_logits.const_data_ptr(),
                                      mul.get(),
                                      add.get(),
                                      grad_value.mutable_data_ptr(),
                                      grad_logits.mutable_data_ptr(),
                                      grad_mul.partial(),
                                      grad_add.partial()};
    run_units(kernel, arguments);
  }
  return {grad_value, grad_logits, grad_mul.reduce(g), grad_add.reduce(g)};
}

// The instruction set in use: by its index in instruction_sets(). A level of 0 or more chooses one, -1 only asks.
int64_t cpu_isa(int64_t level) {
  if (level >= 0) choose_set(level);
  return active_set();
}

}  // namespace
}  // namespace elsa::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(elsa, m) { m.def("_cpu_isa(int level) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(elsa, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&elsa::cpu::attention_forward));
  m.impl("attention_backward", TORCH_BOX(&elsa::cpu::attention_backward));
}

STABLE_TORCH_LIBRARY_IMPL(elsa, CompositeExplicitAutograd, m) {
  m.impl("_cpu_isa", TORCH_BOX(&elsa::cpu::cpu_isa));
}
