// What a user's activation A (f, df and ddf, as in activations.h) is compiled into: ops for CPU and CUDA.
//
// The generated .cpp says TK_USER_ACTIVATION(name, A), and the .cu TK_USER_ACTIVATION_CUDA(name, A).
#pragma once

#include "functions.h"

namespace tk {

// Order 0: f(x).  1: g * df(x).  2: g * h * ddf(x).
template <class A, int kOrder, class T>
TK_HD T activate(T x, T g, T h) {
  if constexpr (kOrder == 0) return A::template f<T>(x);
  if constexpr (kOrder == 1) return g * A::template df<T>(x);
  return g * h * A::template ddf<T>(x);
}

}  // namespace tk

#if defined(__CUDACC__)

#include <cuda_runtime.h>

namespace tk {

constexpr int kActivationThreads = 256;

// The first num_vectors * kVector<T> elements 16 bytes at a time, the rest one by one.
template <class A, int kOrder, class T>
__global__ void __launch_bounds__(kActivationThreads)
    activate_kernel(const T* x, const T* g, const T* h, T* out, int64_t n, int64_t num_vectors) {
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t v = first; v < num_vectors; v += stride) {
    Accum<T> xs[kVector<T>], gs[kVector<T>] = {}, hs[kVector<T>] = {};
    load_vector(x, v, xs);
    if constexpr (kOrder > 0) load_vector(g, v, gs);
    if constexpr (kOrder > 1) load_vector(h, v, hs);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) xs[i] = activate<A, kOrder>(xs[i], gs[i], hs[i]);
    store_vector(out, v, xs);
  }
  for (int64_t i = num_vectors * kVector<T> + first; i < n; i += stride) {
    Accum<T> gi = 0, hi = 0;
    if constexpr (kOrder > 0) gi = load(g, i);
    if constexpr (kOrder > 1) hi = load(h, i);
    store(out, i, activate<A, kOrder>(load(x, i), gi, hi));
  }
}

template <class A, int kOrder, class T>
void launch_activate(const void* x, const void* g, const void* h, void* out, int64_t n, void* stream) {
  const bool aligned = is_aligned(x) && is_aligned(g) && is_aligned(h) && is_aligned(out);  // null is
  const int64_t num_vectors = aligned ? n / kVector<T> : 0;
  const int64_t num_items = aligned ? num_vectors + kVector<T> : n;
  const int64_t wanted = (num_items + kActivationThreads - 1) / kActivationThreads;
  const int num_blocks = int(wanted < (int64_t(1) << 20) ? wanted : int64_t(1) << 20);
  activate_kernel<A, kOrder, T><<<num_blocks, kActivationThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const T*>(x), static_cast<const T*>(g), static_cast<const T*>(h), static_cast<T*>(out), n,
      num_vectors);
}

}  // namespace tk

#define TK_USER_ACTIVATION_CUDA(name, A)                                                                            \
  extern "C" int launch_##name(int order, int dtype, const void* x, const void* g, const void* h, void* out,        \
                               int64_t n, void* stream) {                                                           \
    TK_DISPATCH_CUDA(tk::DType(dtype), T, {                                                                         \
      if (order == 0) tk::launch_activate<A, 0, T>(x, g, h, out, n, stream);                                        \
      if (order == 1) tk::launch_activate<A, 1, T>(x, g, h, out, n, stream);                                        \
      if (order == 2) tk::launch_activate<A, 2, T>(x, g, h, out, n, stream);                                        \
    });                                                                                                             \
    return int(cudaGetLastError());                                                                                 \
  }

#else

#include "tensor.h"

namespace tk {

template <class A, int kOrder, class T>
void activate_cpu(const T* x, const T* g, const T* h, T* out, int64_t n) {
  parallel_for(n, 16384, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Accum<T> gi = 0, hi = 0;
      if constexpr (kOrder > 0) gi = load(g, i);
      if constexpr (kOrder > 1) hi = load(h, i);
      store(out, i, activate<A, kOrder>(load(x, i), gi, hi));
    }
  });
}

// x; g and h too, where they are there, are of one shape and dtype, and contiguous.
inline void check_activation(const Tensor& x, std::initializer_list<const Tensor*> others) {
  check_contiguous(x, "x");
  for (const Tensor* other : others) {
    check_contiguous(*other, "the gradient");
    check_same_dtype(x, *other, "the gradient");
    STD_TORCH_CHECK(shape_of(*other) == shape_of(x), "trainkit: the gradient has another shape than x");
  }
}

template <class A, int kOrder>
Tensor activation_cpu(const Tensor& x, const Tensor* g, const Tensor* h) {
  Tensor out = unset_like(x);
  TK_DISPATCH(dtype_of(x), T, {
    activate_cpu<A, kOrder, T>(data<T>(x), g ? data<T>(*g) : nullptr, h ? data<T>(*h) : nullptr, mutable_data<T>(out),
                               x.numel());
  });
  return out;
}

template <class A>
struct OnCPU {
  static Tensor f(const Tensor& x) {
    check_activation(x, {});
    return activation_cpu<A, 0>(x, nullptr, nullptr);
  }
  static Tensor df(const Tensor& g, const Tensor& x) {
    check_activation(x, {&g});
    return activation_cpu<A, 1>(x, &g, nullptr);
  }
  static Tensor ddf(const Tensor& g, const Tensor& h, const Tensor& x) {
    check_activation(x, {&g, &h});
    return activation_cpu<A, 2>(x, &g, &h);
  }
};

#if defined(TRAINKIT_CUDA)

using ActivationLauncher = int (*)(int, int, const void*, const void*, const void*, void*, int64_t, void*);

inline Tensor activation_cuda(ActivationLauncher launch, int order, const Tensor& x, const Tensor* g, const Tensor* h) {
  Tensor out = unset_like(x);
  const int dtype = int(cuda_dtype_of(x));
  if (x.numel() == 0) return out;
  const OnDevice on(x);
  check_launch(launch(order, dtype, x.const_data_ptr(), g ? g->const_data_ptr() : nullptr,
                      h ? h->const_data_ptr() : nullptr, out.mutable_data_ptr(), x.numel(), on.stream()),
               "activation");
  return out;
}

template <ActivationLauncher kLaunch>
struct OnCUDA {
  static Tensor f(const Tensor& x) {
    check_activation(x, {});
    return activation_cuda(kLaunch, 0, x, nullptr, nullptr);
  }
  static Tensor df(const Tensor& g, const Tensor& x) {
    check_activation(x, {&g});
    return activation_cuda(kLaunch, 1, x, &g, nullptr);
  }
  static Tensor ddf(const Tensor& g, const Tensor& h, const Tensor& x) {
    check_activation(x, {&g, &h});
    return activation_cuda(kLaunch, 2, x, &g, &h);
  }
};

#define TK_USER_ACTIVATION_ON_CUDA(name)                                                                           \
  extern "C" int launch_##name(int, int, const void*, const void*, const void*, void*, int64_t, void*);            \
  STABLE_TORCH_LIBRARY_IMPL(trainkit_user, CUDA, m) {                                                              \
    m.impl(#name, TORCH_BOX(&tk::OnCUDA<&launch_##name>::f));                                                      \
    m.impl(#name "_df", TORCH_BOX(&tk::OnCUDA<&launch_##name>::df));                                               \
    m.impl(#name "_ddf", TORCH_BOX(&tk::OnCUDA<&launch_##name>::ddf));                                             \
  }
#else
#define TK_USER_ACTIVATION_ON_CUDA(name)
#endif

#define TK_USER_ACTIVATION(name, A)                          \
  STABLE_TORCH_LIBRARY_IMPL(trainkit_user, CPU, m) {         \
    m.impl(#name, TORCH_BOX(&tk::OnCPU<A>::f));              \
    m.impl(#name "_df", TORCH_BOX(&tk::OnCPU<A>::df));       \
    m.impl(#name "_ddf", TORCH_BOX(&tk::OnCPU<A>::ddf));     \
  }                                                          \
  TK_USER_ACTIVATION_ON_CUDA(name)

}  // namespace tk

#endif
