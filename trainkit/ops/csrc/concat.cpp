// CPU kernels of concatenation and minibatch standard deviation, and their registration for both devices.
#include "concat.h"

#include <cmath>
#include <tuple>

#include "common/tensor.h"

namespace tk {
namespace {

template <class T>
void concat(const ConcatParts& parts, double slope_, const Accum<T>* bias, T* y) {
  using A = Accum<T>;
  parallel_for(parts.outer, 32768 / (parts.total * parts.inner), [&](int64_t begin, int64_t end) {
    const A slope(slope_);  // in a register, so that the loop vectorises
    for (int64_t o = begin; o < end; ++o) {
      for (int p = 0; p < parts.num; ++p) {
        const int64_t length = parts.channels[p] * parts.inner;
        const T* __restrict from = static_cast<const T*>(parts.from[p]) + o * length;
        T* __restrict to = y + (o * parts.total + parts.starts[p]) * parts.inner;
        for (int64_t c = 0; c < parts.channels[p]; ++c) {
          const A b = bias ? bias[parts.starts[p] + c] : A(0);
          const int64_t first = c * parts.inner, last = first + parts.inner;
#pragma omp simd
          for (int64_t i = first; i < last; ++i) store(to, i, activated(load(from, i) + b, slope));
        }
      }
    }
  });
}

// -- minibatch standard deviation -------------------------------------------------------------------------------------

constexpr int64_t kTile = 512;

// Mean and deviation of `n` features of a group; x points at the first one in the group's first sample.
template <class T>
void deviations(const StddevShape& s, const T* x, int64_t n, Accum<T>* __restrict mean, Accum<T>* __restrict d) {
  using A = Accum<T>;
  const int64_t step = s.num_groups * s.features();
  std::fill_n(mean, n, A(0));
  std::fill_n(d, n, A(0));
  for (int64_t k = 0; k < s.group; ++k) {
    const T* __restrict row = x + k * step;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) mean[i] += load(row, i);
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) mean[i] /= A(s.group);
  for (int64_t k = 0; k < s.group; ++k) {
    const T* __restrict row = x + k * step;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A e = load(row, i) - mean[i];
      d[i] += e * e;
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) d[i] = std::sqrt(d[i] / A(s.group) + A(kStddevEps));
}

// The sum over group and pixels of the gradient of the appended channel.
template <class T>
Accum<T> appended_gradient(const StddevShape& s, const T* g, int64_t j) {
  Accum<T> t(0);
  for (int64_t k = 0; k < s.group; ++k) {
    const T* last = g + (k * s.num_groups + j) * s.row() + s.features();
    for (int64_t i = 0; i < s.pixels; ++i) t += load(last, i);
  }
  return t;
}

template <class A>
A sum_of(const A* values, int64_t n) {
  A sum(0);
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += values[i];
  return sum;
}

// Sets the appended channel of all samples of group j.
template <class T>
void fill(const StddevShape& s, T* y, int64_t j, Accum<T> value) {
  for (int64_t k = 0; k < s.group; ++k)
    std::fill_n(y + (k * s.num_groups + j) * s.row() + s.features(), s.pixels, narrow<T>(value));
}

// f(first feature, number of features) over tiles.
template <class F>
void for_features(const StddevShape& s, const F& f) {
  for (int64_t first = 0; first < s.features(); first += kTile) f(first, std::min(kTile, s.features() - first));
}

template <class T>
void stddev(const StddevShape& s, const T* x, T* y) {
  using A = Accum<T>;
  parallel_for(s.num_groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      A mean[kTile], d[kTile], sum(0);
      for_features(s, [&](int64_t first, int64_t n) {
        deviations(s, x + j * s.features() + first, n, mean, d);
        sum += sum_of(d, n);
        for (int64_t k = 0; k < s.group; ++k) {
          const int64_t sample = k * s.num_groups + j;
          std::copy_n(x + sample * s.features() + first, n, y + sample * s.row() + first);
        }
      });
      fill(s, y, j, sum / A(s.features()));
    }
  });
}

template <class T>
void stddev_backward(const StddevShape& s, const T* g, const T* x, T* grad_x) {
  using A = Accum<T>;
  parallel_for(s.num_groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      A mean[kTile], d[kTile];
      const A t = appended_gradient(s, g, j) / A(s.group * s.features());
      for_features(s, [&](int64_t first, int64_t n) {
        deviations(s, x + j * s.features() + first, n, mean, d);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) d[i] = t / d[i];
        for (int64_t k = 0; k < s.group; ++k) {
          const int64_t sample = k * s.num_groups + j;
          const T* __restrict x_row = x + sample * s.features() + first;
          const T* __restrict g_row = g + sample * s.row() + first;
          T* __restrict to = grad_x + sample * s.features() + first;
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) store(to, i, load(g_row, i) + d[i] * (load(x_row, i) - mean[i]));
        }
      });
    }
  });
}

template <class T>
void stddev_backward_backward(const StddevShape& s, const T* v, const T* g, const T* x, T* grad_g, T* grad_x) {
  using A = Accum<T>;
  const A count(s.group), all(s.group * s.features());
  parallel_for(s.num_groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      A mean[kTile], d[kTile], mean_v[kTile], V[kTile], in_t(0);
      const A t = appended_gradient(s, g, j);
      for_features(s, [&](int64_t first, int64_t n) {
        deviations(s, x + j * s.features() + first, n, mean, d);
        std::fill_n(mean_v, n, A(0));
        std::fill_n(V, n, A(0));
        for (int64_t k = 0; k < s.group; ++k) {
          const int64_t sample = k * s.num_groups + j, at = sample * s.features() + first;
          const T* __restrict x_row = x + at;
          const T* __restrict v_row = v + at;
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) {
            mean_v[i] += load(v_row, i) / count;
            V[i] += load(v_row, i) * (load(x_row, i) - mean[i]);
          }
          std::copy_n(v_row, n, grad_g + sample * s.row() + first);
        }
        for (int64_t k = 0; k < s.group; ++k) {
          const int64_t at = (k * s.num_groups + j) * s.features() + first;
          const T* __restrict x_row = x + at;
          const T* __restrict v_row = v + at;
          T* __restrict to = grad_x + at;
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) {
            const StddevTerms<A> terms{t, mean_v[i], V[i], d[i], count, all};
            store(to, i, terms.in_x(load(v_row, i), load(x_row, i) - mean[i]));
          }
        }
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) V[i] /= d[i];
        in_t += sum_of(V, n);
      });
      fill(s, grad_g, j, in_t / all);
    }
  });
}

// -- ops, for CPU and CUDA --------------------------------------------------------------------------------------------

Tensor concat_op(std::vector<Tensor> tensors, int64_t dim, std::optional<Tensor> bias, double slope) {
  STD_TORCH_CHECK(!tensors.empty() && int64_t(tensors.size()) <= kMaxParts, "trainkit: concat takes 1 to 8 tensors");
  const Tensor& x = tensors[0];
  STD_TORCH_CHECK(0 <= dim && dim < x.dim(), "trainkit: concat has no such dimension");
  std::vector<int64_t> shape = shape_of(x);
  ConcatParts parts{int(tensors.size()), {}, {}, {}, 1, 0, 1};
  for (int64_t i = 0; i < x.dim(); ++i) (i < dim ? parts.outer : parts.inner) *= i == dim ? 1 : shape[i];
  for (int p = 0; p < parts.num; ++p) {
    const Tensor& part = tensors[p];
    check_contiguous(part, "a tensor");
    check_same_dtype(x, part, "a tensor");
    shape[dim] = part.dim() == x.dim() ? part.size(dim) : 0;
    STD_TORCH_CHECK(part.dim() == x.dim() && shape_of(part) == shape, "trainkit: concat's tensors differ in shape");
    parts.from[p] = part.const_data_ptr();
    parts.starts[p] = parts.total;
    parts.channels[p] = shape[dim];
    parts.total += shape[dim];
  }
  shape[dim] = parts.total;
  if (bias) {
    check_contiguous(*bias, "bias");
    STD_TORCH_CHECK(bias->scalar_type() == accum_dtype(x) && bias->numel() == parts.total,
                    "trainkit: bias must have one element a channel, float64 for float64 and float32 otherwise");
  }
  Tensor y = unset(x, shape);
  if (y.numel() == 0) return y;
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_concat_cuda(cuda_dtype_of(x), parts, slope, bias ? data<float>(*bias) : nullptr,
                                y.mutable_data_ptr(), device.stream()),
                 "concat");
    return y;
  }
#endif
  TK_DISPATCH(dtype_of(x), T,
              { concat<T>(parts, slope, bias ? data<Accum<T>>(*bias) : nullptr, mutable_data<T>(y)); });
  return y;
}

StddevShape shape_in_groups(const Tensor& x, int64_t group) {
  STD_TORCH_CHECK(x.dim() == 4, "trainkit: x must be [batch, channels, height, width]");
  STD_TORCH_CHECK(group > 0 && x.size(0) % group == 0, "trainkit: the samples do not make whole groups");
  check_contiguous(x, "x");
  return {x.size(0) / group, group, x.size(1), x.size(2) * x.size(3)};
}

std::vector<int64_t> appended(const Tensor& x) { return {x.size(0), x.size(1) + 1, x.size(2), x.size(3)}; }

void check_gradient(const Tensor& x, const Tensor& g, int64_t size) {
  check_contiguous(g, "a gradient");
  check_same_dtype(x, g, "a gradient");
  STD_TORCH_CHECK(g.numel() == size, "trainkit: a gradient has another size than its tensor");
}

Tensor stddev_op(Tensor x, int64_t group) {
  const StddevShape shape = shape_in_groups(x, group);
  Tensor y = unset(x, appended(x));
  if (x.numel() == 0) return y;
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_minibatch_stddev_cuda(cuda_dtype_of(x), shape, x.const_data_ptr(), y.mutable_data_ptr(),
                                          device.stream()),
                 "minibatch_stddev");
    return y;
  }
#endif
  TK_DISPATCH(dtype_of(x), T, { stddev<T>(shape, data<T>(x), mutable_data<T>(y)); });
  return y;
}

Tensor stddev_backward_op(Tensor g, Tensor x, int64_t group) {
  const StddevShape shape = shape_in_groups(x, group);
  check_gradient(x, g, shape.num_groups * group * shape.row());
  Tensor grad_x = unset_like(x);
  if (x.numel() == 0) return grad_x;
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_minibatch_stddev_backward_cuda(cuda_dtype_of(x), shape, g.const_data_ptr(), x.const_data_ptr(),
                                                   grad_x.mutable_data_ptr(), device.stream()),
                 "minibatch_stddev_backward");
    return grad_x;
  }
#endif
  TK_DISPATCH(dtype_of(x), T, { stddev_backward<T>(shape, data<T>(g), data<T>(x), mutable_data<T>(grad_x)); });
  return grad_x;
}

std::tuple<Tensor, Tensor> stddev_backward_backward_op(Tensor v, Tensor g, Tensor x, int64_t group) {
  const StddevShape shape = shape_in_groups(x, group);
  check_gradient(x, g, shape.num_groups * group * shape.row());
  check_gradient(x, v, x.numel());
  Tensor grad_g = unset(x, appended(x)), grad_x = unset_like(x);
  if (x.numel() == 0) return {grad_g, grad_x};
#if defined(TRAINKIT_CUDA)
  if (x.is_cuda()) {
    const OnDevice device(x);
    check_launch(tk_minibatch_stddev_backward_backward_cuda(
                     cuda_dtype_of(x), shape, v.const_data_ptr(), g.const_data_ptr(), x.const_data_ptr(),
                     grad_g.mutable_data_ptr(), grad_x.mutable_data_ptr(), device.stream()),
                 "minibatch_stddev_backward_backward");
    return {grad_g, grad_x};
  }
#endif
  TK_DISPATCH(dtype_of(x), T, {
    stddev_backward_backward<T>(shape, data<T>(v), data<T>(g), data<T>(x), mutable_data<T>(grad_g),
                                mutable_data<T>(grad_x));
  });
  return {grad_g, grad_x};
}

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def("concat(Tensor[] tensors, int dim, Tensor? bias, float slope) -> Tensor");
  m.def("minibatch_stddev(Tensor x, int group) -> Tensor");
  m.def("minibatch_stddev_backward(Tensor g, Tensor x, int group) -> Tensor");
  m.def("minibatch_stddev_backward_backward(Tensor v, Tensor g, Tensor x, int group) -> (Tensor, Tensor)");
}

#define TK_IMPLEMENT(m) \
  m.impl("concat", TORCH_BOX(&tk::concat_op)); \
  m.impl("minibatch_stddev", TORCH_BOX(&tk::stddev_op)); \
  m.impl("minibatch_stddev_backward", TORCH_BOX(&tk::stddev_backward_op)); \
  m.impl("minibatch_stddev_backward_backward", TORCH_BOX(&tk::stddev_backward_backward_op))

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) { TK_IMPLEMENT(m); }

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) { TK_IMPLEMENT(m); }
#endif
