// Grid arithmetic of the Hadamard convolution: which kernel runs, with how many blocks and how much shared memory.
// Included once per storage type.
#pragma once
#include "hadamard_conv.cuh"
#include "hadamard_generic.cuh"
#include "hadamard_launch.h"
#include "hadamard_weights.cuh"
#include "launcher.cuh"
#include "reduce.cuh"

#include <algorithm>
#include <initializer_list>
#include <limits>

namespace elsa::cuda {

// Enough blocks to fill any device several times over; each loads its weights once and loops over tiles.
constexpr int64_t kMaxConvBlocks = 2048;

inline bool has_tensor_cores() {  // with these instructions
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 8;
}

template <typename T>
struct HadamardLaunch : ProblemLauncher<HadamardProblem> {
  using A = Acc<T>;
  using ProblemLauncher::ProblemLauncher;

  int64_t chunks() const { return (p.channels + hadamard::kChunk - 1) / hadamard::kChunk; }
  int64_t weights() const { return p.channels * p.group_width * p.taps(); }

  // 16 positions a row where that leaves a fifth less of them empty than 32.
  int cols() const {
    const int64_t narrow = tiles_along(p.width, dilation(), 16) * 16, wide = tiles_along(p.width, dilation(), 32) * 32;
    return narrow * 5 < wide * 4 ? 16 : 32;
  }
  int64_t tile_count(int cols) const { return ProblemLauncher::tile_count(hadamard::kRows, cols); }
  Layout layout(int cols) const {
    Layout m{};
    m.height = int(p.height), m.width = int(p.width), m.channels = int(p.channels), m.dilation = int(dilation());
    m.phases_y = std::min(m.dilation, m.height), m.phases_x = std::min(m.dilation, m.width);
    m.tiles_y = tiles_along(m.height, m.dilation, hadamard::kRows), m.tiles_x = tiles_along(m.width, m.dilation, cols);
    m.tiles = int(tile_count(cols));
    return m;
  }
  // Four neighbouring channels can be moved at a time.
  bool aligned(std::initializer_list<const void*> pointers) const {
    bool result = p.packed % hadamard::kPiece == 0 && p.channels % hadamard::kPiece == 0;
    for (const void* x : pointers) {
      result = result && reinterpret_cast<uintptr_t>(x) % (hadamard::kPiece * sizeof(T)) == 0;
    }
    return result;
  }

  // As the other operator's: 32-bit coordinates inside an image and tile numbers.
  bool specialised(std::initializer_list<const void*> pointers) const {
    if (std::is_same<T, double>::value || (sizeof(T) == 2 && !has_tensor_cores()) || !aligned(pointers)) return false;
    return with_kernel_size(p.kernel, [](auto) {}) == nullptr && (p.group_width == 4 || p.group_width == 8) &&
           std::max(p.height, p.width) < (1 << 24) && p.channels < (1 << 24) &&
           tile_count(16) <= std::numeric_limits<int>::max() / 2;
  }
  // Calls `call` with kernel size and group width as constants.
  template <typename Call>
  void specialise(Call call) {
    const char* refusal = with_kernel_size(p.kernel, [&](auto kernel) {
      if (p.group_width == 4) {
        call(kernel, std::integral_constant<int, 4>());
      } else {
        call(kernel, std::integral_constant<int, 8>());
      }
    });
    if (refusal) error = refusal;
  }

  // How many blocks per chunk of channels sum the parameters' gradients. Depends on shapes alone, so results are the
  // same on every device.
  int64_t slots() const {
    const int64_t bytes = (weights() + p.channels) * int64_t(sizeof(A));
    return std::clamp<int64_t>(int64_t(kPartialBytes) / bytes, 1, tile_count(weight_cols()));
  }
  int weight_cols() const { return std::is_same<T, float>::value ? 16 : cols(); }

  hadamard::ConvArgs<T> conv_args(const HadamardInputs& in) const {
    hadamard::ConvArgs<T> a{};
    a.cols = cols(), a.layout = layout(a.cols);
    a.packed_stride = p.packed, a.scale = float(in.scale);
    a.packed = static_cast<const T*>(in.packed), a.weight = static_cast<const T*>(in.weight);
    return a;
  }
  void convolve(const hadamard::ConvArgs<T>& a) {
    if constexpr (!std::is_same<T, double>::value) {
      specialise([&](auto k, auto w) {
        using Shape = hadamard::ConvShape<T, decltype(k)::value, decltype(w)::value>;
        const int64_t slots = std::min<int64_t>(a.layout.tiles, (kMaxConvBlocks + chunks() - 1) / chunks());
        run(hadamard::convolve_kernel<T, decltype(k)::value, decltype(w)::value>, slots * chunks(),
            a.cols * hadamard::kThreadsPerCol, Shape::shared_bytes, a);
      });
    }
  }

  void sum_weights(const HadamardInputs& in, const HadamardSaved& saved, A* partial) {
    if constexpr (!std::is_same<T, double>::value) {
      hadamard::WeightArgs<T> a{};
      a.cols = weight_cols(), a.layout = layout(a.cols);
      a.packed_stride = p.packed, a.scale = float(in.scale), a.partial = partial;
      a.packed = static_cast<const T*>(in.packed), a.grad_local = static_cast<const T*>(saved.grad_local);
      a.before = static_cast<const T*>(saved.before);
      specialise([&](auto k, auto w) {
        using Shape = hadamard::WeightShape<T, decltype(k)::value, decltype(w)::value>;
        run(hadamard::weight_gradient_kernel<T, decltype(k)::value, decltype(w)::value>, slots() * chunks(),
            hadamard::kMaxThreads, Shape::shared_bytes, a);
      });
    }
  }

  hadamard::GenericArgs<T> generic_args(const HadamardInputs& in) const {
    hadamard::GenericArgs<T> a{};
    a.height = p.height, a.width = p.width, a.positions = p.positions(), a.packed_stride = p.packed;
    a.channels = p.channels, a.group_width = p.group_width, a.kernel = p.kernel, a.dilation = dilation();
    a.scale = A(in.scale), a.packed = static_cast<const T*>(in.packed), a.weight = static_cast<const T*>(in.weight);
    a.bias = static_cast<const T*>(in.bias);
    return a;
  }
  template <typename Kernel>
  void run_generic(Kernel kernel, int64_t threads, const hadamard::GenericArgs<T>& args) {
    const int64_t blocks = (threads + hadamard::kGenericThreads - 1) / hadamard::kGenericThreads;
    run(kernel, std::min<int64_t>(blocks, 1 << 20), hadamard::kGenericThreads, 0, args);
  }

  void forward(const HadamardInputs& in, const HadamardOutputs& out) {
    if (specialised({in.packed, in.bias, out.local, out.before})) {
      hadamard::ConvArgs<T> a = conv_args(in);
      a.bias = static_cast<const T*>(in.bias), a.local = static_cast<T*>(out.local);
      a.before = static_cast<T*>(out.before);
      return convolve(a);
    }
    hadamard::GenericArgs<T> a = generic_args(in);
    a.local = static_cast<T*>(out.local), a.before = static_cast<T*>(out.before);
    run_generic(hadamard::generic_forward_kernel<T>, p.positions() * p.channels, a);
  }

  void backward(const HadamardInputs& in, const HadamardSaved& saved, const HadamardGradients& grads, void* workspace) {
    A* const partial = static_cast<A*>(workspace);
    hadamard::GenericArgs<T> a = generic_args(in);
    a.grad_local = static_cast<const T*>(saved.grad_local), a.grad_rest = static_cast<const T*>(saved.grad_rest);
    a.known_before = static_cast<const T*>(saved.before), a.grad_packed = static_cast<T*>(grads.packed);
    a.partial = partial, a.slots = slots();
    if (specialised({in.packed, saved.grad_local, saved.before, grads.packed})) {
      hadamard::ConvArgs<T> conv = conv_args(in);
      conv.backward = true, conv.grad_local = a.grad_local, conv.known_before = a.known_before;
      conv.grad_packed = a.grad_packed;
      convolve(conv);
      sum_weights(in, saved, partial);
    } else {
      const int64_t elements = p.positions() * p.channels;
      run_generic(hadamard::generic_activation_kernel<T>, elements, a);
      run_generic(hadamard::generic_weight_kernel<T>, a.slots * (weights() + p.channels), a);
      run_generic(hadamard::generic_backward_kernel<T>, elements, a);
      run_generic(hadamard::generic_product_rule_kernel<T>, elements, a);
    }
    if (p.rest() > 0) {
      const bool whole = aligned({saved.grad_rest, grads.packed});
      const auto kernel = whole ? hadamard::rest_kernel<T, hadamard::kPiece> : hadamard::rest_kernel<T, 1>;
      run_generic(kernel, p.positions() * 32, a);
    }
    reduce(partial, grads.weight, weights());
    reduce(partial + weights(), grads.bias, p.channels);
  }

  void reduce(const A* partial, void* out, int64_t count) {
    const int64_t blocks = (count + kReduceColumns - 1) / kReduceColumns;
    run(reduce_kernel<T>, blocks, kReduceColumns * kReduceGroups, 0, partial, static_cast<T*>(out), count,
        weights() + p.channels, int(slots()));
  }

  size_t workspace_bytes() const { return size_t(slots() * (weights() + p.channels)) * sizeof(A); }
};

template <typename T>
const char* hadamard_forward_typed(const HadamardProblem& p, const HadamardInputs& in, const HadamardOutputs& out,
                                   void* stream) {
  HadamardLaunch<T> launch(p, stream);
  launch.forward(in, out);
  return launch.error;
}

template <typename T>
const char* hadamard_backward_typed(const HadamardProblem& p, const HadamardInputs& in, const HadamardSaved& saved,
                                    const HadamardGradients& grads, void* workspace, void* stream) {
  HadamardLaunch<T> launch(p, stream);
  launch.backward(in, saved, grads, workspace);
  return launch.error;
}

template <typename T>
size_t hadamard_workspace_typed(const HadamardProblem& p) {
  return HadamardLaunch<T>(p, nullptr).workspace_bytes();
}

#define ELSA_INSTANTIATE_HADAMARD(T)                                                                                \
  template const char* hadamard_forward_typed<T>(const HadamardProblem&, const HadamardInputs&,                     \
                                                 const HadamardOutputs&, void*);                                    \
  template const char* hadamard_backward_typed<T>(const HadamardProblem&, const HadamardInputs&,                    \
                                                  const HadamardSaved&, const HadamardGradients&, void*, void*);    \
  template size_t hadamard_workspace_typed<T>(const HadamardProblem&);

}  // namespace elsa::cuda
