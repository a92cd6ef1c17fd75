// CPU kernels of bias + leaky ReLU + pixel norm, and the ops' registration for both devices.
#include "pixel_norm.h"

#include <cmath>
#include <limits>
#include <tuple>

#include "common/tensor.h"

namespace tk {
namespace {

// Pixels of a sample that are normalized at once. Their channels are visited twice, the second time from a buffer:
// in x they are a power of two apart, which a cache holds badly.
constexpr int64_t kBuffer = 96 * 1024;

template <class A>
int64_t tile_of(const PixelNormShape& shape, int num_rows) {
  const int64_t fitting = kBuffer / (int64_t(sizeof(A)) * num_rows * shape.channels);
  return std::min(shape.inner, std::max<int64_t>(fitting / 16 * 16, 64));
}

// f(offset of the tile's first pixel in channel 0, number of its pixels), over all tiles.
template <class F>
void for_tiles(const PixelNormShape& shape, int64_t tile, const F& f) {
  const int64_t num = (shape.inner + tile - 1) / tile;
  const int64_t grain = 32768 / (tile * shape.channels);
  parallel_for(shape.batch * num, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % num * tile;
      f(i / num * shape.channels * shape.inner + first, std::min(tile, shape.inner - first));
    }
  });
}

template <class A>
void root(A* r, int64_t n, A channels, A eps) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) r[i] = A(1) / std::sqrt(r[i] / channels + eps);
}

// -- one pixel in a row of channels: inner is 1 ------------------------------------------------------------------------

// f(offset of the row) over all rows.
template <class F>
void for_rows(const PixelNormShape& shape, const F& f) {
  parallel_for(shape.batch, 32768 / shape.channels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i * shape.channels);
  });
}

template <class T>
void forward_rows(const PixelNormShape& shape, const PixelNormOptions& options, const T* x, const Accum<T>* bias,
                  T* y) {
  using A = Accum<T>;
  const Rectifier<A> f{A(options.slope), A(options.clamp)};
  const int64_t C = shape.channels;
  const std::vector<A> zeros(bias ? 0 : C, A(0));
  const A* __restrict b = bias ? bias : zeros.data();
  for_rows(shape, [&](int64_t at) {
    const T* __restrict from = x + at;
    T* __restrict to = y + at;
    A squares(0);
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < C; ++c) {
      const A a = f(load(from, c) + b[c]);
      squares += a * a;
    }
    const A r = A(1) / std::sqrt(squares / A(C) + A(options.eps));
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) store(to, c, f(load(from, c) + b[c]) * r);
  });
}

template <class T>
void backward_rows(const PixelNormShape& shape, const PixelNormOptions& options, const T* g, const T* x,
                   const Accum<T>* bias, T* grad_x) {
  if (shape.inner == 1) return backward_rows(shape, options, g, x, bias, grad_x);
  using A = Accum<T>;
  const Rectifier<A> f{A(options.slope), A(options.clamp)};
  const int64_t C = shape.channels;
  const std::vector<A> zeros(bias ? 0 : C, A(0));
  const A* __restrict b = bias ? bias : zeros.data();
  for_rows(shape, [&](int64_t at) {
    const T* __restrict x_row = x + at;
    const T* __restrict g_row = g + at;
    T* __restrict to = grad_x + at;
    A squares(0), S(0);
#pragma omp simd reduction(+ : squares, S)
    for (int64_t c = 0; c < C; ++c) {
      const A a = f(load(x_row, c) + b[c]);
      squares += a * a;
      S += load(g_row, c) * a;
    }
    const A r = A(1) / std::sqrt(squares / A(C) + A(options.eps)), of_a = -r * r * r / A(C) * S;
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) {
      const A u = load(x_row, c) + b[c];
      store(to, c, f.derivative(u) * (r * load(g_row, c) + of_a * f(u)));
    }
  });
}

// -- pixels in a row, channels apart -----------------------------------------------------------------------------------

template <class T>
void forward(const PixelNormShape& shape, const PixelNormOptions& options, const T* x, const Accum<T>* bias, T* y) {
  if (shape.inner == 1) return forward_rows(shape, options, x, bias, y);
  using A = Accum<T>;
  const Rectifier<A> shared{A(options.slope), A(options.clamp)};
  const int64_t tile = tile_of<A>(shape, 1);
  for_tiles(shape, tile, [&](int64_t start, int64_t n) {
    const Rectifier<A> f = shared;  // in registers
    thread_local std::vector<A> memory;
    memory.resize((shape.channels + 1) * tile);
    A* __restrict r = memory.data();
    std::fill_n(r, n, A(0));
    for (int64_t c = 0; c < shape.channels; ++c) {
      const T* __restrict row = x + start + c * shape.inner;
      A* __restrict kept = memory.data() + (c + 1) * tile;
      const A b = bias ? bias[c] : A(0);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A a = f(load(row, i) + b);
        kept[i] = a;
        r[i] += a * a;
      }
    }
    root(r, n, A(shape.channels), A(options.eps));
    for (int64_t c = 0; c < shape.channels; ++c) {
      T* __restrict row = y + start + c * shape.inner;
      const A* __restrict kept = memory.data() + (c + 1) * tile;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) store(row, i, kept[i] * r[i]);
    }
  });
}

template <class T>
void backward(const PixelNormShape& shape, const PixelNormOptions& options, const T* g, const T* x,
              const Accum<T>* bias, T* grad_x) {
  using A = Accum<T>;
  const Rectifier<A> shared{A(options.slope), A(options.clamp)};
  const int64_t tile = tile_of<A>(shape, 2), C = shape.channels;
  for_tiles(shape, tile, [&](int64_t start, int64_t n) {
    const Rectifier<A> f = shared;  // in registers
    thread_local std::vector<A> memory;
    memory.resize(2 * (C + 1) * tile);
    A* __restrict r = memory.data();
    A* __restrict S = r + tile;
    std::fill_n(r, 2 * tile, A(0));
    for (int64_t c = 0; c < C; ++c) {
      const T* __restrict x_row = x + start + c * shape.inner;
      const T* __restrict g_row = g + start + c * shape.inner;
      A* __restrict kept = memory.data() + 2 * (c + 1) * tile;
      const A b = bias ? bias[c] : A(0);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A u = load(x_row, i) + b, gi = load(g_row, i), a = f(u);
        kept[i] = u;
        kept[tile + i] = gi;
        r[i] += a * a;
        S[i] += gi * a;
      }
    }
    root(r, n, A(C), A(options.eps));
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) S[i] *= -r[i] * r[i] * r[i] / A(C);
    for (int64_t c = 0; c < C; ++c) {
      T* __restrict row = grad_x + start + c * shape.inner;
      const A* __restrict kept = memory.data() + 2 * (c + 1) * tile;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A u = kept[i];
        store(row, i, f.derivative(u) * (r[i] * kept[tile + i] + S[i] * f(u)));
      }
    }
  });
}

// The sums of a pixel over channels that the second order needs, and what follows from them.
template <class T>
void backward_backward(const PixelNormShape& shape, const PixelNormOptions& options, const T* v, const T* g, const T* x,
                       const Accum<T>* bias, T* grad_g, T* grad_x) {
  using A = Accum<T>;
  const Rectifier<A> shared{A(options.slope), A(options.clamp)};
  const int64_t tile = tile_of<A>(shape, 3), C = shape.channels;
  for_tiles(shape, tile, [&](int64_t start, int64_t n) {
    const Rectifier<A> f = shared;  // in registers
    thread_local std::vector<A> memory;
    memory.resize(4 * tile);
    A* __restrict r = memory.data();
    A* __restrict S = r + tile;
    A* __restrict R = S + tile;
    A* __restrict P = R + tile;
    std::fill_n(r, 4 * tile, A(0));
    for (int64_t c = 0; c < C; ++c) {
      const int64_t at = start + c * shape.inner;
      const T* __restrict x_row = x + at;
      const T* __restrict g_row = g + at;
      const T* __restrict v_row = v + at;
      const A b = bias ? bias[c] : A(0);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A u = load(x_row, i) + b, gi = load(g_row, i), a = f(u), w = f.derivative(u) * load(v_row, i);
        r[i] += a * a;
        S[i] += gi * a;
        R[i] += w * a;
        P[i] += w * gi;
      }
    }
    root(r, n, A(C), A(options.eps));
    for (int64_t c = 0; c < C; ++c) {
      const int64_t at = start + c * shape.inner;
      const T* __restrict x_row = x + at;
      const T* __restrict g_row = g + at;
      const T* __restrict v_row = v + at;
      T* __restrict grad_g_row = grad_g + at;
      T* __restrict grad_x_row = grad_x + at;
      const A b = bias ? bias[c] : A(0);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const A u = load(x_row, i) + b, a = f(u), m = f.derivative(u), w = m * load(v_row, i);
        const SecondTerms<A> terms(r[i], A(C), S[i], R[i], P[i]);
        store(grad_g_row, i, terms.in_g(w, a));
        store(grad_x_row, i, m * terms.in_a(a, load(g_row, i), w));
      }
    }
  });
}

// g null: y = a. Otherwise y = m g.
template <class T>
void rectify(const PixelNormShape& shape, const PixelNormOptions& options, const T* g, const T* x, const Accum<T>* bias,
             T* y) {
  using A = Accum<T>;
  const Rectifier<A> shared{A(options.slope), A(options.clamp)};
  parallel_for(shape.batch * shape.channels, 32768 / shape.inner, [&](int64_t begin, int64_t end) {
    const Rectifier<A> f = shared;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t at = plane * shape.inner;
      const A b = bias ? bias[plane % shape.channels] : A(0);
      const T* __restrict x_row = x + at;
      T* __restrict y_row = y + at;
      if (g) {
        const T* __restrict g_row = g + at;
#pragma omp simd
        for (int64_t i = 0; i < shape.inner; ++i) store(y_row, i, f.derivative(load(x_row, i) + b) * load(g_row, i));
      } else {
#pragma omp simd
        for (int64_t i = 0; i < shape.inner; ++i) store(y_row, i, f(load(x_row, i) + b));
      }
    }
  });
}

using Bias = std::optional<Tensor>;
using Clamp = std::optional<double>;

// What every op of the family takes, checked.
struct Input {
  const Tensor& x;
  const Bias& bias;
  PixelNormShape shape;
  PixelNormOptions options;

  Input(const Tensor& x, const Bias& bias, double slope, Clamp clamp, double eps = 0.0)
      : x(x), bias(bias), options{slope, clamp.value_or(std::numeric_limits<double>::infinity()), eps} {
    STD_TORCH_CHECK(x.dim() >= 2, "trainkit: pixel norm takes [batch, channels, ...]");
    check_contiguous(x, "x");
    shape = {x.size(0), x.size(1), 1};
    for (int64_t i = 2; i < x.dim(); ++i) shape.inner *= x.size(i);
    if (!bias) return;
    check_contiguous(*bias, "bias");
    STD_TORCH_CHECK(bias->scalar_type() == accum_dtype(x) && bias->numel() == shape.channels,
                    "trainkit: bias must have one element a channel, float64 for float64 and float32 otherwise");
  }

  const Input& with(const Tensor& gradient) const {
    check_contiguous(gradient, "a gradient");
    check_same_dtype(x, gradient, "a gradient");
    STD_TORCH_CHECK(gradient.numel() == x.numel(), "trainkit: a gradient has another size than x");
    return *this;
  }

  bool is_empty() const { return x.numel() == 0; }

  template <class A>
  const A* bias_as() const {
    return bias ? data<A>(*bias) : nullptr;
  }
};

Tensor pixel_norm(Tensor x, Bias bias, double slope, Clamp clamp, double eps) {
  const Input in(x, bias, slope, clamp, eps);
  Tensor y = unset_like(x);
  if (in.is_empty()) return y;
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_pixel_norm_cuda(cuda_dtype_of(x), in.shape, in.options, x.const_data_ptr(), in.bias_as<float>(),
                                    y.mutable_data_ptr(), device.stream()),
                 "pixel_norm");
    return y;
  }
#endif
  TK_DISPATCH(dtype_of(x), T, {
    forward<T>(in.shape, in.options, data<T>(x), in.bias_as<Accum<T>>(), mutable_data<T>(y));
  });
  return y;
}

Tensor pixel_norm_backward(Tensor g, Tensor x, Bias bias, double slope, Clamp clamp, double eps) {
  const Input in = Input(x, bias, slope, clamp, eps).with(g);
  Tensor grad_x = unset_like(x);
  if (in.is_empty()) return grad_x;
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_pixel_norm_backward_cuda(cuda_dtype_of(x), in.shape, in.options, g.const_data_ptr(),
                                             x.const_data_ptr(), in.bias_as<float>(), grad_x.mutable_data_ptr(),
                                             device.stream()),
                 "pixel_norm_backward");
    return grad_x;
  }
#endif
  TK_DISPATCH(dtype_of(x), T, {
    backward<T>(in.shape, in.options, data<T>(g), data<T>(x), in.bias_as<Accum<T>>(), mutable_data<T>(grad_x));
  });
  return grad_x;
}

std::tuple<Tensor, Tensor> pixel_norm_backward_backward(Tensor v, Tensor g, Tensor x, Bias bias, double slope,
                                                        Clamp clamp, double eps) {
  const Input in = Input(x, bias, slope, clamp, eps).with(g).with(v);
  Tensor grad_g = unset_like(x), grad_x = unset_like(x);
  if (in.is_empty()) return {grad_g, grad_x};
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_pixel_norm_backward_backward_cuda(cuda_dtype_of(x), in.shape, in.options, v.const_data_ptr(),
                                                      g.const_data_ptr(), x.const_data_ptr(), in.bias_as<float>(),
                                                      grad_g.mutable_data_ptr(), grad_x.mutable_data_ptr(),
                                                      device.stream()),
                 "pixel_norm_backward_backward");
    return {grad_g, grad_x};
  }
#endif
  TK_DISPATCH(dtype_of(x), T, {
    backward_backward<T>(in.shape, in.options, data<T>(v), data<T>(g), data<T>(x), in.bias_as<Accum<T>>(),
                         mutable_data<T>(grad_g), mutable_data<T>(grad_x));
  });
  return {grad_g, grad_x};
}

Tensor rectified(const Tensor* g, const Input& in) {
  const Tensor& x = in.x;
  Tensor y = unset_like(x);
  if (in.is_empty()) return y;
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_bias_leaky_relu_cuda(cuda_dtype_of(x), in.shape, in.options, g ? g->const_data_ptr() : nullptr,
                                         x.const_data_ptr(), in.bias_as<float>(), y.mutable_data_ptr(),
                                         device.stream()),
                 "bias_leaky_relu");
    return y;
  }
#endif
  TK_DISPATCH(dtype_of(x), T, {
    rectify<T>(in.shape, in.options, g ? data<T>(*g) : nullptr, data<T>(x), in.bias_as<Accum<T>>(),
               mutable_data<T>(y));
  });
  return y;
}

Tensor bias_leaky_relu(Tensor x, Bias bias, double slope, Clamp clamp) {
  return rectified(nullptr, Input(x, bias, slope, clamp));
}

Tensor bias_leaky_relu_backward(Tensor g, Tensor x, Bias bias, double slope, Clamp clamp) {
  return rectified(&g, Input(x, bias, slope, clamp).with(g));
}

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def("pixel_norm(Tensor x, Tensor? bias, float slope, float? clamp, float eps) -> Tensor");
  m.def("pixel_norm_backward(Tensor g, Tensor x, Tensor? bias, float slope, float? clamp, float eps) -> Tensor");
  m.def(
      "pixel_norm_backward_backward(Tensor v, Tensor g, Tensor x, Tensor? bias, float slope, float? clamp, float eps) "
      "-> (Tensor, Tensor)");
  m.def("bias_leaky_relu(Tensor x, Tensor? bias, float slope, float? clamp) -> Tensor");
  m.def("bias_leaky_relu_backward(Tensor g, Tensor x, Tensor? bias, float slope, float? clamp) -> Tensor");
}

#define TK_IMPLEMENT(m) \
  m.impl("pixel_norm", TORCH_BOX(&tk::pixel_norm)); \
  m.impl("pixel_norm_backward", TORCH_BOX(&tk::pixel_norm_backward)); \
  m.impl("pixel_norm_backward_backward", TORCH_BOX(&tk::pixel_norm_backward_backward)); \
  m.impl("bias_leaky_relu", TORCH_BOX(&tk::bias_leaky_relu)); \
  m.impl("bias_leaky_relu_backward", TORCH_BOX(&tk::bias_leaky_relu_backward))

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) { TK_IMPLEMENT(m); }

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) { TK_IMPLEMENT(m); }
#endif
