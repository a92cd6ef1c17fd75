// CPU kernels of bias_activation.h, and the functions over tensors that an op is made of. Sees torch.
#pragma once

#include "bias_activation.h"
#include "common/draw.h"
#include "common/partials.h"

namespace tk {

// A tile of a row: where its operands lie, with zeros for no bias and ones for no dropout.
template <class T>
class RowTile {
 public:
  using A = Accum<T>;

  explicit RowTile(const BiasActivationArgs& args) : args_(args) {
    std::fill(zeros_, zeros_ + kMaskTile, A(0));
    if (!args.mask.drops()) std::fill(factors_, factors_ + kMaskTile, A(1));
  }

  const A* factors(int64_t row, int64_t column, int64_t count) {
    if (!args_.mask.drops()) return factors_;
    const int64_t sample = row / args_.rows_per_sample, first = row % args_.rows_per_sample * args_.num_columns + column;
    return draw_factors(args_.mask, args_.mask.positions[sample], first, count, factors_);
  }

  const A* of_columns(const void* values, int64_t column) const {
    return values ? static_cast<const A*>(values) + column : zeros_;
  }

 private:
  const BiasActivationArgs& args_;
  A zeros_[kMaskTile], factors_[kMaskRoom];
};

// run(row, column, count, at) for every tile of rows [begin, end); `at` is the offset of its first element.
template <class F>
void for_tiles(const BiasActivationArgs& args, int64_t begin, int64_t end, const F& run) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < args.num_columns; column += kMaskTile)
      run(row, column, std::min(kMaskTile, args.num_columns - column), row * args.num_columns + column);
}

template <class Activation, class T>
void activation_forward(const BiasActivationArgs& args) {
  parallel_for(args.num_rows, 32768 / std::max<int64_t>(args.num_columns, 1), [&](int64_t begin, int64_t end) {
    RowTile<T> tile(args);
    for_tiles(args, begin, end, [&](int64_t row, int64_t column, int64_t count, int64_t at) {
      const Accum<T>* factors = tile.factors(row, column, count);
      const Accum<T>* bias = tile.of_columns(args.bias, column);
      const T* __restrict x = static_cast<const T*>(args.x) + at;
      T* __restrict y = static_cast<T*>(args.y) + at;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(Activation::f(widen(x[i]) + bias[i]) * factors[i]);
    });
  });
}

template <class Activation, class T>
void activation_backward(const BiasActivationArgs& args) {
  using A = Accum<T>;
  sum_rows<A>(args.num_rows, args.num_columns, {static_cast<A*>(args.dbias)}, [&](int64_t begin, int64_t end, A* sums) {
    RowTile<T> tile(args);
    for_tiles(args, begin, end, [&](int64_t row, int64_t column, int64_t count, int64_t at) {
      const A* factors = tile.factors(row, column, count);
      const A* bias = tile.of_columns(args.bias, column);
      const T* __restrict x = static_cast<const T*>(args.x) + at;
      const T* __restrict grad = static_cast<const T*>(args.grad) + at;
      T* __restrict dx = static_cast<T*>(args.dx) + at;
      A* __restrict sum = sums + column;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A value = widen(grad[i]) * factors[i] * Activation::df(widen(x[i]) + bias[i]);
        dx[i] = narrow<T>(value);
        sum[i] += value;
      }
    });
  });
}

// The derivative of dx and dbias, which are weighted with grad_dx and grad_dbias.
template <class Activation, class T>
void activation_second(const BiasActivationArgs& args) {
  using A = Accum<T>;
  sum_rows<A>(args.num_rows, args.num_columns, {static_cast<A*>(args.dbias)}, [&](int64_t begin, int64_t end, A* sums) {
    RowTile<T> tile(args);
    for_tiles(args, begin, end, [&](int64_t row, int64_t column, int64_t count, int64_t at) {
      const A* factors = tile.factors(row, column, count);
      const A* bias = tile.of_columns(args.bias, column);
      const A* of_sum = tile.of_columns(args.grad_dbias, column);
      const T* __restrict x = static_cast<const T*>(args.x) + at;
      const T* __restrict grad = static_cast<const T*>(args.grad) + at;
      const T* __restrict grad_dx = static_cast<const T*>(args.grad_dx) + at;
      T* __restrict dgrad = static_cast<T*>(args.dgrad) + at;
      T* __restrict dx = static_cast<T*>(args.dx) + at;
      A* __restrict sum = sums + column;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A at_x = widen(x[i]) + bias[i], weight = (widen(grad_dx[i]) + of_sum[i]) * factors[i];
        const A value = weight * widen(grad[i]) * Activation::ddf(at_x);
        dgrad[i] = narrow<T>(weight * Activation::df(at_x));
        dx[i] = narrow<T>(value);
        sum[i] += value;
      }
    });
  });
}

template <class Activation>
void run_activation(const BiasActivationArgs& args, Pass pass) {
  TK_DISPATCH(args.dtype, T, {
    switch (pass) {
      case Pass::forward:
        activation_forward<Activation, T>(args);
        break;
      case Pass::backward:
        activation_backward<Activation, T>(args);
        break;
      case Pass::second:
        activation_second<Activation, T>(args);
        break;
    }
  });
}

// -- over tensors ------------------------------------------------------------------------------------------------------

// How dropout is drawn, as the ops take it.
struct Draw {
  double p;
  int64_t key;
  const std::optional<Tensor>& positions;
  int64_t call;
};

// run(args, pass, x): launches a pass on x's device.
using RunActivation = void (*)(const BiasActivationArgs&, int activation, Pass, const Tensor& x);

inline BiasActivationArgs activation_args(const Tensor& x, const std::optional<Tensor>& bias, const Draw& draw) {
  check_contiguous(x, "x");
  STD_TORCH_CHECK(x.dim() > 0, "trainkit: bias_activation_dropout takes x of at least one dimension");
  BiasActivationArgs args{};
  args.x = x.const_data_ptr();
  args.num_columns = x.size(x.dim() - 1);
  args.num_rows = x.numel() / std::max<int64_t>(args.num_columns, 1);
  args.rows_per_sample = std::max<int64_t>(args.num_rows / std::max<int64_t>(x.size(0), 1), 1);
  args.mask = mask_of(x, draw.positions, draw.p, draw.key, draw.call);
  STD_TORCH_CHECK(!args.mask.drops() || x.dim() > 1, "trainkit: dropout takes x of at least two dimensions");
  args.dtype = dtype_of(x);
  if (bias) {
    check_contiguous(*bias, "bias");
    STD_TORCH_CHECK(bias->numel() == args.num_columns, "trainkit: bias must have one number a column");
    STD_TORCH_CHECK(bias->scalar_type() == accum_dtype(x), "trainkit: bias must have the dtype that sums are kept in");
    args.bias = bias->const_data_ptr();
  }
  return args;
}

inline const void* like_x(const Tensor& x, const Tensor& other, const char* name) {
  check_contiguous(other, name);
  check_same_dtype(x, other, name);
  STD_TORCH_CHECK(other.numel() == x.numel(), "trainkit: ", name, " must have the input's shape");
  return other.const_data_ptr();
}

template <RunActivation run>
Tensor bias_activation(const Tensor& x, const std::optional<Tensor>& bias, int64_t activation, double p, int64_t key,
                       const std::optional<Tensor>& positions, int64_t call) {
  BiasActivationArgs args = activation_args(x, bias, {p, key, positions, call});
  Tensor y = unset_like(x);
  args.y = y.mutable_data_ptr();
  if (x.numel() > 0) run(args, int(activation), Pass::forward, x);
  return y;
}

template <RunActivation run>
std::tuple<Tensor, Tensor> bias_activation_backward(const Tensor& grad, const Tensor& x,
                                                    const std::optional<Tensor>& bias, int64_t activation, double p,
                                                    int64_t key, const std::optional<Tensor>& positions, int64_t call) {
  BiasActivationArgs args = activation_args(x, bias, {p, key, positions, call});
  args.grad = like_x(x, grad, "grad");
  Tensor dx = unset_like(x), dbias = unset(x, {args.num_columns}, accum_dtype(x));
  args.dx = dx.mutable_data_ptr();
  args.dbias = dbias.mutable_data_ptr();
  if (x.numel() > 0)
    run(args, int(activation), Pass::backward, x);
  else
    torch::stable::zero_(dbias);
  return {dx, dbias};
}

template <RunActivation run>
std::tuple<Tensor, Tensor, Tensor> bias_activation_second(const Tensor& grad_dx,
                                                          const std::optional<Tensor>& grad_dbias, const Tensor& grad,
                                                          const Tensor& x, const std::optional<Tensor>& bias,
                                                          int64_t activation, double p, int64_t key,
                                                          const std::optional<Tensor>& positions, int64_t call) {
  BiasActivationArgs args = activation_args(x, bias, {p, key, positions, call});
  args.grad = like_x(x, grad, "grad");
  args.grad_dx = like_x(x, grad_dx, "grad_dx");
  if (grad_dbias) {
    check_contiguous(*grad_dbias, "grad_dbias");
    STD_TORCH_CHECK(grad_dbias->numel() == args.num_columns && grad_dbias->scalar_type() == accum_dtype(x),
                    "trainkit: grad_dbias must be as bias is");
    args.grad_dbias = grad_dbias->const_data_ptr();
  }
  Tensor dgrad = unset_like(x), dx = unset_like(x), dbias = unset(x, {args.num_columns}, accum_dtype(x));
  args.dgrad = dgrad.mutable_data_ptr();
  args.dx = dx.mutable_data_ptr();
  args.dbias = dbias.mutable_data_ptr();
  if (x.numel() > 0)
    run(args, int(activation), Pass::second, x);
  else
    torch::stable::zero_(dbias);
  return {dgrad, dx, dbias};
}

#if defined(TRAINKIT_CUDA)

// Gives the launch its stream and the room for its sums.
template <class Launch>
void run_activation_cuda(BiasActivationArgs args, Pass pass, const Tensor& x, const Launch& launch) {
  cuda_dtype_of(x);
  const OnDevice device(x);
  args.num_runs = num_cuda_runs(args.num_rows, args.num_columns);
  const Tensor runs = unset(x, {pass == Pass::forward ? 0 : args.num_runs * args.num_columns}, ScalarType::Float);
  args.runs = runs.mutable_data_ptr();
  check_launch(launch(&args, pass, device.stream()), "bias_activation_dropout");
}

#endif

}  // namespace tk
