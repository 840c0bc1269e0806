// Grid arithmetic: which kernel runs, with how many blocks and how much shared memory. Included once per storage type.
#pragma once
#include "aggregate.cuh"
#include "generic.cuh"
#include "gradients.cuh"
#include "launch.h"
#include "launcher.cuh"
#include "reduce.cuh"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <type_traits>

namespace elsa::cuda {

// A block may use 99 KiB on every supported architecture (164 or more per multiprocessor where it matters).
constexpr size_t kSharedLimit = size_t(99) << 10;
// Enough blocks to fill any device several times over; each then loops over tiles and loads its ghost weights once.
constexpr int64_t kMaxBlocks = 8192;

template <typename T>
struct Launch : ProblemLauncher<Problem> {
  using A = Acc<T>;
  using ProblemLauncher::ProblemLauncher;

  Layout layout(std::initializer_list<const void*> pointers) const {
    Layout m;
    m.height = int(p.height), m.width = int(p.width), m.channels = int(p.channels), m.heads = int(p.heads);
    m.head_channels = int(p.head_dim()), m.dilation = int(dilation());
    m.phases_y = std::min(m.dilation, m.height), m.phases_x = std::min(m.dilation, m.width);
    m.tiles_y = tiles_along(m.height, m.dilation, kTileRows), m.tiles_x = tiles_along(m.width, m.dilation, kTileCols);
    m.tiles = int(tile_count());
    m.vectors = p.head_dim() * sizeof(T) % 16 == 0;
    for (const void* pointer : pointers) m.vectors = m.vectors && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    return m;
  }

  int64_t tile_count() const { return ProblemLauncher::tile_count(kTileRows, kTileCols); }

  // The specialised kernels compute coordinates inside an image and tile numbers in 32 bits (offsets in 64).
  bool specialised() const {
    return !std::is_same<T, double>::value && with_kernel_size(p.kernel, [](auto) {}) == nullptr &&
           std::max(p.height, p.width) < (1 << 24) && p.channels < (1 << 24) &&
           tile_count() <= std::numeric_limits<int>::max() / 2;
  }
  bool specialised_gradients(bool mul, int ghosts) const {
    return specialised() && gradient_shared(mul, ghosts) <= kSharedLimit;
  }
  size_t gradient_shared(bool mul, int ghosts) const {
    size_t bytes = 0;
    const char* refusal = with_kernel_size(p.kernel, [&](auto k) {
      bytes = GradientShape<T, decltype(k)::value>::shared_bytes(mul, ghosts, int(p.head_dim()));
    });
    return refusal ? std::numeric_limits<size_t>::max() : bytes;
  }

  // How many blocks per head sum ghost gradients. Depends on shapes alone, so results are the same on every device.
  int64_t ghost_slots(int ghosts) const {
    const int64_t bytes = ghosts * p.channels * p.taps() * int64_t(sizeof(A));
    return std::clamp<int64_t>(int64_t(kPartialBytes) / bytes, 1, std::max<int64_t>(tile_count(), 1));
  }
  static int ghost_sums(bool mul, bool add) { return mul ? 2 : add ? 1 : 0; }

  template <typename Call>
  void specialise(Call call) {
    if (const char* refusal = with_kernel_size(p.kernel, call)) error = refusal;
  }

  template <int K, bool TRANSPOSED>
  void aggregate(const AggregateArgs<T>& args) {
    using Shape = AggregateShape<T, K>;
    const int64_t slots = std::min<int64_t>(args.layout.tiles, (kMaxBlocks + p.heads - 1) / p.heads);
    const bool mul = args.ghost_mul, add = args.ghost_add;
    const auto kernel = mul   ? aggregate_kernel<T, K, true, true, TRANSPOSED>
                        : add ? aggregate_kernel<T, K, false, true, TRANSPOSED>
                              : aggregate_kernel<T, K, false, false, TRANSPOSED>;
    run(kernel, slots * p.heads, Shape::threads, Shape::shared_bytes(mul ? 2 : add ? 1 : 0), args);
  }
  template <bool TRANSPOSED>
  void aggregate(const AggregateArgs<T>& args) {
    specialise([&](auto k) { this->template aggregate<decltype(k)::value, TRANSPOSED>(args); });
  }

  template <int K>
  void gradients(const GradientArgs<T>& args, int64_t slots, size_t shared) {
    const auto kernel = args.ghost_mul ? gradient_kernel<T, K, true> : gradient_kernel<T, K, false>;
    run(kernel, slots * p.heads, GradientShape<T, K>::threads, shared, args);
  }

  GenericArgs<T> generic(const Inputs& in) const {
    GenericArgs<T> a{};
    a.batch = p.batch, a.height = p.height, a.width = p.width, a.channels = p.channels, a.heads = p.heads;
    a.head_channels = p.head_dim(), a.dilation = dilation();
    a.kernel = int(p.kernel), a.taps = int(p.taps());
    a.value = static_cast<const T*>(in.value), a.logits = static_cast<const T*>(in.logits);
    a.ghost_mul = static_cast<const A*>(in.ghost_mul), a.ghost_add = static_cast<const A*>(in.ghost_add);
    return a;
  }
  template <typename Kernel>
  void run_generic(Kernel kernel, int64_t warps, const GenericArgs<T>& args) {
    run(kernel, std::min<int64_t>((warps + kGenericWarps - 1) / kGenericWarps, 1 << 20), kGenericThreads, 0, args);
  }
  int64_t chunk_warps() const { return p.positions() * p.heads * ((p.head_dim() + 31) / 32); }

  void forward(const Inputs& in, void* out) {
    if constexpr (!std::is_same<T, double>::value) {
      if (specialised()) {
        AggregateArgs<T> a{};
        a.layout = layout({in.value, out});
        a.input = static_cast<const T*>(in.value), a.logits = static_cast<const T*>(in.logits);
        a.ghost_mul = static_cast<const A*>(in.ghost_mul), a.ghost_add = static_cast<const A*>(in.ghost_add);
        a.output = static_cast<T*>(out);
        return aggregate<false>(a);
      }
    }
    GenericArgs<T> a = generic(in);
    a.out = static_cast<T*>(out);
    run_generic(generic_aggregate_kernel<T, false>, chunk_warps(), a);
  }

  // dlogits, lse and the partial sums of the ghost gradients; returns the number of slots of the latter.
  int64_t backward_logits(const T* grad_out, const Inputs& in, T* dlogits, A* lse, A* partial, int ghosts) {
    const int64_t slots = ghosts ? ghost_slots(ghosts) : 0;
    if constexpr (!std::is_same<T, double>::value) {
      if (specialised_gradients(in.ghost_mul, ghosts)) {
        GradientArgs<T> a{};
        a.layout = layout({in.value, grad_out});
        a.grad_out = grad_out, a.value = static_cast<const T*>(in.value), a.dlogits = dlogits;
        a.logits = static_cast<const T*>(in.logits), a.ghost_mul = static_cast<const A*>(in.ghost_mul);
        a.lse = lse, a.partial = ghosts ? partial : nullptr;
        const size_t shared = gradient_shared(in.ghost_mul, ghosts);
        const int64_t blocks = ghosts ? slots : std::min<int64_t>(a.layout.tiles, (kMaxBlocks + p.heads - 1) / p.heads);
        specialise([&](auto k) { this->template gradients<decltype(k)::value>(a, blocks, shared); });
        return slots;
      }
    }
    GenericArgs<T> a = generic(in);
    a.grad_out = grad_out, a.dlogits = dlogits, a.lse = lse, a.partial = partial;
    a.slots = slots, a.ghosts = ghosts;
    run_generic(generic_dlogits_kernel<T>, p.positions() * p.heads, a);
    if (ghosts) {
      run_generic(generic_dghost_kernel<T>, slots * p.heads * ((p.head_dim() + 31) / 32) * p.taps(), a);
    }
    return slots;
  }

  void backward_value(const T* grad_out, const Inputs& in, T* dvalue, A* lse) {
    if constexpr (!std::is_same<T, double>::value) {
      if (specialised()) {
        AggregateArgs<T> a{};
        a.layout = layout({grad_out, dvalue});
        a.input = grad_out, a.logits = static_cast<const T*>(in.logits), a.lse = lse, a.output = dvalue;
        a.ghost_mul = static_cast<const A*>(in.ghost_mul), a.ghost_add = static_cast<const A*>(in.ghost_add);
        return aggregate<true>(a);
      }
    }
    GenericArgs<T> a = generic(in);
    a.grad_out = grad_out, a.out = dvalue, a.lse = lse;
    run_generic(generic_aggregate_kernel<T, true>, chunk_warps(), a);
  }

  void reduce(const A* partial, void* out, int64_t slots, int ghosts) {
    const int64_t count = p.channels * p.taps(), blocks = (count + kReduceColumns - 1) / kReduceColumns;
    run(reduce_kernel<A>, blocks, kReduceColumns * kReduceGroups, 0, partial, static_cast<A*>(out), count,
        ghosts * count, int(slots));
  }

  void backward(const void* grad_out, const Inputs& in, const Gradients& grads, void* workspace) {
    const T* grad = static_cast<const T*>(grad_out);
    A *partial = static_cast<A*>(workspace), *lse;
    const int ghosts = ghost_sums(in.ghost_mul, in.ghost_add);
    lse = partial + (ghosts ? ghost_slots(ghosts) * ghosts * p.channels * p.taps() : 0);
    const int64_t slots = backward_logits(grad, in, static_cast<T*>(grads.logits), lse, partial, ghosts);
    backward_value(grad, in, static_cast<T*>(grads.value), lse);
    if (in.ghost_mul) reduce(partial, grads.ghost_mul, slots, ghosts);
    if (in.ghost_add) reduce(partial + (ghosts - 1) * p.channels * p.taps(), grads.ghost_add, slots, ghosts);
  }

  size_t workspace_bytes(bool mul, bool add) const {
    const int ghosts = ghost_sums(mul, add);
    const int64_t sums = ghosts ? ghost_slots(ghosts) * ghosts * p.channels * p.taps() : 0;
    return size_t(sums + p.positions() * p.heads) * sizeof(A);
  }
};

template <typename T>
const char* forward_typed(const Problem& p, const Inputs& in, void* out, void* stream) {
  Launch<T> launch(p, stream);
  launch.forward(in, out);
  return launch.error;
}

template <typename T>
const char* backward_typed(const Problem& p, const void* grad_out, const Inputs& in, const Gradients& grads,
                           void* workspace, void* stream) {
  Launch<T> launch(p, stream);
  launch.backward(grad_out, in, grads, workspace);
  return launch.error;
}

template <typename T>
size_t workspace_typed(const Problem& p, bool mul, bool add) {
  return Launch<T>(p, nullptr).workspace_bytes(mul, add);
}

#define ELSA_INSTANTIATE(T)                                                                                           \
  template const char* forward_typed<T>(const Problem&, const Inputs&, void*, void*);                                 \
  template const char* backward_typed<T>(const Problem&, const void*, const Inputs&, const Gradients&, void*, void*); \
  template size_t workspace_typed<T>(const Problem&, bool, bool);

}  // namespace elsa::cuda
