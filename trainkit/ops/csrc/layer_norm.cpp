#include "layer_norm.h"

#include <cmath>

#include "common/draw.h"
#include "common/partials.h"

namespace tk {
namespace {

// Factors of a row's tile, or ones.
template <class A>
class Factors {
 public:
  explicit Factors(const LayerNormArgs& args) : args_(args) { std::fill(room_, room_ + kMaskTile, A(1)); }

  const A* of(int64_t row, int64_t column, int64_t count) {
    if (!args_.mask.drops()) return room_;
    const int64_t sample = row / args_.rows_per_sample, first = row % args_.rows_per_sample * args_.num_columns + column;
    return draw_factors(args_.mask, args_.mask.positions[sample], first, count, room_);
  }

 private:
  const LayerNormArgs& args_;
  A room_[kMaskRoom];
};

// sums = residual + x * factors, stored rounded and kept as it was stored; returns the sum of all.
template <class T>
Accum<T> add_row(const LayerNormArgs& args, int64_t row, Factors<Accum<T>>& drawn, Accum<T>* __restrict kept) {
  using A = Accum<T>;
  const int64_t size = args.num_columns;
  A total = 0;
  for (int64_t column = 0; column < size; column += kMaskTile) {
    const int64_t count = std::min(kMaskTile, size - column), at = row * size + column;
    const A* factors = drawn.of(row, column, count);
    const T* __restrict x = static_cast<const T*>(args.x) + at;
    const T* __restrict residual = static_cast<const T*>(args.residual) + at;
    T* __restrict summed = static_cast<T*>(args.summed) + at;
    A* __restrict to = kept + column;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; ++i) {
      const A sum = widen(residual[i]) + widen(x[i]) * factors[i];
      summed[i] = narrow<T>(sum);
      to[i] = widen(narrow<T>(sum));  // no variable of type T: a struct of two bytes keeps the loop from vectorising
      total += to[i];
    }
  }
  return total;
}

template <class T>
void forward_rows(const LayerNormArgs& args, int64_t begin, int64_t end) {
  using A = Accum<T>;
  const int64_t size = args.num_columns;
  std::vector<A> row_room(static_cast<size_t>(size));
  A* __restrict kept = row_room.data();
  Factors<A> drawn(args);
  const A* __restrict weight = static_cast<const A*>(args.weight);
  const A* __restrict bias = static_cast<const A*>(args.bias);
  for (int64_t row = begin; row < end; ++row) {
    const A mean = add_row<T>(args, row, drawn, kept) / A(size);
    A squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; ++i) squares += (kept[i] - mean) * (kept[i] - mean);
    const A rstd = A(1) / std::sqrt(squares / A(size) + A(args.eps));
    T* __restrict normed = static_cast<T*>(args.normed) + row * size;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) normed[i] = narrow<T>((kept[i] - mean) * rstd * weight[i] + bias[i]);
    static_cast<A*>(args.mean)[row] = mean;
    static_cast<A*>(args.rstd)[row] = rstd;
  }
}

// What a row's gradient has in common over its columns.
template <class A>
struct RowMeans {
  A of_grad, of_product;  // the means of grad * weight, and of that times the normalised row
};

template <class T>
RowMeans<Accum<T>> add_to_sums(const LayerNormArgs& args, int64_t row, Accum<T> mean, Accum<T> rstd,
                               Accum<T>* __restrict weight_sums, Accum<T>* __restrict bias_sums) {
  using A = Accum<T>;
  const int64_t size = args.num_columns;
  const T* __restrict grad = static_cast<const T*>(args.grad) + row * size;
  const T* __restrict summed = static_cast<const T*>(args.summed) + row * size;
  const A* __restrict weight = static_cast<const A*>(args.weight);
  A first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
  for (int64_t i = 0; i < size; ++i) {
    const A g = widen(grad[i]), unit = (widen(summed[i]) - mean) * rstd;
    weight_sums[i] += g * unit;
    bias_sums[i] += g;
    first += g * weight[i];
    second += g * weight[i] * unit;
  }
  return {first / A(size), second / A(size)};
}

template <class T>
void backward_rows(const LayerNormArgs& args, int64_t begin, int64_t end, Accum<T>* sums) {
  using A = Accum<T>;
  const int64_t size = args.num_columns;
  Factors<A> drawn(args);
  const std::vector<T> zeros(static_cast<size_t>(args.grad_summed ? 0 : size), T{});
  std::vector<T> unused(static_cast<size_t>(args.dx ? 0 : std::min(size, kMaskTile)));
  for (int64_t row = begin; row < end; ++row) {
    const A mean = static_cast<const A*>(args.mean)[row], rstd = static_cast<const A*>(args.rstd)[row];
    const RowMeans<A> means = add_to_sums<T>(args, row, mean, rstd, sums, sums + size);
    for (int64_t column = 0; column < size; column += kMaskTile) {
      const int64_t count = std::min(kMaskTile, size - column), at = row * size + column;
      const A* factors = drawn.of(row, column, count);
      const T* __restrict grad = static_cast<const T*>(args.grad) + at;
      const T* __restrict summed = static_cast<const T*>(args.summed) + at;
      const T* __restrict other =
          args.grad_summed ? static_cast<const T*>(args.grad_summed) + at : zeros.data() + column;
      const A* __restrict weight = static_cast<const A*>(args.weight) + column;
      T* __restrict dresidual = static_cast<T*>(args.dresidual) + at;
      T* __restrict dx = args.dx ? static_cast<T*>(args.dx) + at : unused.data();
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A unit = (widen(summed[i]) - mean) * rstd;
        const A value = rstd * (widen(grad[i]) * weight[i] - means.of_grad - unit * means.of_product) + widen(other[i]);
        dresidual[i] = narrow<T>(value);
        dx[i] = narrow<T>(value * factors[i]);
      }
    }
  }
}

// -- over tensors ------------------------------------------------------------------------------------------------------

LayerNormArgs arguments(const Tensor& rows, const Tensor& weight, double p, int64_t key,
                        const std::optional<Tensor>& positions, int64_t call) {
  check_contiguous(rows, "x");
  check_contiguous(weight, "weight");
  STD_TORCH_CHECK(rows.dim() > 0, "trainkit: dropout_residual_layer_norm takes x of at least one dimension");
  LayerNormArgs args{};
  args.num_columns = rows.size(rows.dim() - 1);
  args.num_rows = rows.numel() / std::max<int64_t>(args.num_columns, 1);
  args.rows_per_sample = std::max<int64_t>(args.num_rows / std::max<int64_t>(rows.size(0), 1), 1);
  args.mask = mask_of(rows, positions, p, key, call);
  STD_TORCH_CHECK(!args.mask.drops() || rows.dim() > 1, "trainkit: dropout takes x of at least two dimensions");
  args.dtype = dtype_of(rows);
  STD_TORCH_CHECK(weight.numel() == args.num_columns && weight.scalar_type() == accum_dtype(rows),
                  "trainkit: weight must have one number a column, of the dtype that sums are kept in");
  args.weight = weight.const_data_ptr();
  return args;
}

const void* like_rows(const Tensor& rows, const Tensor& other, const char* name) {
  check_contiguous(other, name);
  check_same_dtype(rows, other, name);
  STD_TORCH_CHECK(other.numel() == rows.numel(), "trainkit: ", name, " must have the input's shape");
  return other.const_data_ptr();
}

using Run = void (*)(LayerNormArgs&, const Tensor& rows);

template <Run run>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                                   const Tensor& bias, double eps, double p, int64_t key,
                                                   const std::optional<Tensor>& positions, int64_t call) {
  LayerNormArgs args = arguments(x, weight, p, key, positions, call);
  check_contiguous(bias, "bias");
  STD_TORCH_CHECK(bias.numel() == args.num_columns && bias.scalar_type() == accum_dtype(x),
                  "trainkit: bias must be as weight is");
  Tensor normed = unset_like(x), summed = unset_like(x);
  Tensor mean = unset(x, {args.num_rows}, accum_dtype(x)), rstd = unset(x, {args.num_rows}, accum_dtype(x));
  args.eps = eps;
  args.x = x.const_data_ptr();
  args.residual = like_rows(x, residual, "residual");
  args.bias = bias.const_data_ptr();
  args.normed = normed.mutable_data_ptr();
  args.summed = summed.mutable_data_ptr();
  args.mean = mean.mutable_data_ptr();
  args.rstd = rstd.mutable_data_ptr();
  if (x.numel() > 0) run(args, x);
  return {normed, summed, mean, rstd};
}

// dresidual, dx (without elements where there are no positions: it equals dresidual), dweight, dbias
template <Run run>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const std::optional<Tensor>& grad_summed,
                                                    const Tensor& summed, const Tensor& mean, const Tensor& rstd,
                                                    const Tensor& weight, double p, int64_t key,
                                                    const std::optional<Tensor>& positions, int64_t call) {
  LayerNormArgs args = arguments(summed, weight, p, key, positions, call);
  check_contiguous(mean, "mean");
  check_contiguous(rstd, "rstd");
  Tensor dresidual = unset_like(summed), dx = positions ? unset_like(summed) : unset(summed, {0});
  Tensor dweight = unset_like(weight), dbias = unset_like(weight);
  args.grad = like_rows(summed, grad, "grad");
  if (grad_summed) args.grad_summed = like_rows(summed, *grad_summed, "grad_summed");
  args.summed = summed.mutable_data_ptr();
  args.mean = mean.mutable_data_ptr();
  args.rstd = rstd.mutable_data_ptr();
  args.dresidual = dresidual.mutable_data_ptr();
  args.dx = positions ? dx.mutable_data_ptr() : nullptr;
  args.dweight = dweight.mutable_data_ptr();
  args.dbias = dbias.mutable_data_ptr();
  if (summed.numel() > 0) {
    run(args, summed);
  } else {
    torch::stable::zero_(dweight);
    torch::stable::zero_(dbias);
  }
  return {dresidual, dx, dweight, dbias};
}

void forward_cpu(LayerNormArgs& args, const Tensor&) {
  TK_DISPATCH(args.dtype, T, {
    parallel_for(args.num_rows, 16384 / args.num_columns,
                 [&](int64_t begin, int64_t end) { forward_rows<T>(args, begin, end); });
  });
}

void backward_cpu(LayerNormArgs& args, const Tensor&) {
  TK_DISPATCH(args.dtype, T, {
    using A = Accum<T>;
    sum_rows<A>(args.num_rows, args.num_columns, {static_cast<A*>(args.dweight), static_cast<A*>(args.dbias)},
                [&](int64_t begin, int64_t end, A* sums) { backward_rows<T>(args, begin, end, sums); });
  });
}

#if defined(TRAINKIT_CUDA)

void forward_cuda(LayerNormArgs& args, const Tensor& x) {
  cuda_dtype_of(x);
  const OnDevice device(x);
  check_launch(tk_layer_norm_cuda(&args, device.stream()), "dropout_residual_layer_norm");
}

void backward_cuda(LayerNormArgs& args, const Tensor& summed) {
  cuda_dtype_of(summed);
  const OnDevice device(summed);
  args.num_runs = num_cuda_runs_of(args.num_rows);
  const Tensor runs = unset(summed, {2 * args.num_runs * args.num_columns}, ScalarType::Float);
  args.runs = runs.mutable_data_ptr();
  check_launch(tk_layer_norm_backward_cuda(&args, device.stream()), "dropout_residual_layer_norm_backward");
}

#endif

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def(
      "dropout_residual_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, float p, int key,"
      " Tensor? positions, int call) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "dropout_residual_layer_norm_backward(Tensor grad, Tensor? grad_summed, Tensor summed, Tensor mean, Tensor rstd,"
      " Tensor weight, float p, int key, Tensor? positions, int call) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) {
  m.impl("dropout_residual_layer_norm", TORCH_BOX(&tk::forward<tk::forward_cpu>));
  m.impl("dropout_residual_layer_norm_backward", TORCH_BOX(&tk::backward<tk::backward_cpu>));
}

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) {
  m.impl("dropout_residual_layer_norm", TORCH_BOX(&tk::forward<tk::forward_cuda>));
  m.impl("dropout_residual_layer_norm_backward", TORCH_BOX(&tk::backward<tk::backward_cuda>));
}
#endif
