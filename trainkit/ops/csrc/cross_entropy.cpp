// Softmax cross-entropy of rows of logits: CPU kernels, and the ops for both devices.
#include "cross_entropy.h"

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "common/tensor.h"

namespace tk {
namespace {

constexpr int64_t kLanes = 32;   // independent sums, so that the compiler may vectorise them
constexpr int64_t kPiece = 1024;  // elements that are read twice, the second time from the nearest cache

// `piece` as A: the logits themselves where they are of that type, else a copy in `buffer`.
template <class T>
const Accum<T>* widened(const T* piece, int64_t num, Accum<T>* buffer) {
  if constexpr (std::is_same_v<T, Accum<T>>) {
    return piece;
  } else {
    for (int64_t i = 0; i < num; ++i) buffer[i] = widen(piece[i]);
    return buffer;
  }
}

template <class A>
A maximum_of(const A* x, int64_t num) {
  A lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = -INFINITY;
  int64_t i = 0;
  for (; i + kLanes <= num; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  A maximum = -INFINITY;
  for (int64_t l = 0; l < kLanes; ++l) maximum = lanes[l] > maximum ? lanes[l] : maximum;
  for (; i < num; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  return maximum;
}

template <class A>
A sum_of_exp(const A* x, int64_t num, A shift) {
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= num; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += softmax_exp(x[i + l] - shift);
  }
  A sum = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  for (; i < num; ++i) sum += softmax_exp(x[i] - shift);
  return sum;
}

template <class T>
LogSumExp<Accum<T>> log_sum_exp(const T* row, int64_t classes) {
  using A = Accum<T>;
  A buffer[kPiece];
  LogSumExp<A> total;
  for (int64_t begin = 0; begin < classes; begin += kPiece) {
    const int64_t num = std::min(kPiece, classes - begin);
    const A* x = widened(row + begin, num, buffer);
    LogSumExp<A> part{maximum_of(x, num), 0};
    part.sum = sum_of_exp(x, num, part.shift());
    total.add(part);
  }
  return total;
}

// `out` may be `row`.
template <class T>
void backward_row(const T* row, int64_t label, int64_t classes, CrossEntropyGradient<Accum<T>> gradient, T* out) {
  const Accum<T> at_label = gradient.of_label(widen(row[label]));
  for (int64_t i = 0; i < classes; ++i) out[i] = narrow<T>(gradient.of_other(widen(row[i])));
  out[label] = narrow<T>(at_label);
}

int64_t rows_a_thread(int64_t classes) { return 1 + (1 << 15) / std::max<int64_t>(classes, 1); }

void check_labels(const int64_t* labels, int64_t rows, int64_t classes, int64_t ignore_index) {
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(labels[r] == ignore_index || (labels[r] >= 0 && labels[r] < classes),
                    "trainkit.ops.cross_entropy: labels[", r, "] is ", labels[r], "; it must be 0 to ", classes - 1,
                    " or ignore_index=", ignore_index);
  }
}

std::tuple<Tensor, Tensor> allocate(const Tensor& logits, const Tensor& labels) {
  check_contiguous(logits, "logits");
  check_contiguous(labels, "labels");
  const ScalarType accum = accum_dtype(logits);
  return {unset(logits, {logits.size(0)}, accum), unset(logits, {logits.size(0), 2}, accum)};
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& logits, const Tensor& labels, int64_t ignore_index, bool) {
  auto [losses, statistics] = allocate(logits, labels);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const int64_t* label = data<int64_t>(labels);
  check_labels(label, rows, classes, ignore_index);
  TK_DISPATCH(dtype_of(logits), T, {
    const T* x = data<T>(logits);
    Accum<T>* to_losses = mutable_data<Accum<T>>(losses);
    auto* of_row = mutable_data<Statistics<Accum<T>>>(statistics);
    parallel_for(rows, rows_a_thread(classes), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        to_losses[r] = 0;
        of_row[r] = {};
        if (label[r] == ignore_index) continue;
        const auto total = log_sum_exp(x + r * classes, classes);
        to_losses[r] = total.loss(widen(x[r * classes + label[r]]));
        of_row[r] = {total.shift(), total.sum};
      }
    });
  });
  return {losses, statistics};
}

void backward_cpu(const Tensor& grad, const Tensor& logits, const Tensor& statistics, const Tensor& labels,
                  int64_t ignore_index, const Tensor& out) {
  const int64_t rows = logits.size(0), classes = logits.size(1), grad_stride = grad.stride(0);
  const int64_t* label = data<int64_t>(labels);
  TK_DISPATCH(dtype_of(logits), T, {
    const T* x = data<T>(logits);
    const Accum<T>* scale = data<Accum<T>>(grad);
    const auto* of_row = data<Statistics<Accum<T>>>(statistics);
    T* to = mutable_data<T>(out);
    parallel_for(rows, rows_a_thread(classes), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* to_row = to + r * classes;
        if (label[r] == ignore_index) {
          std::fill(to_row, to_row + classes, T{});
        } else {
          backward_row(x + r * classes, label[r], classes, {of_row[r], scale[r * grad_stride]}, to_row);
        }
      }
    });
  });
}

#if defined(TRAINKIT_CUDA)

std::tuple<Tensor, Tensor> forward_cuda(const Tensor& logits, const Tensor& labels, int64_t ignore_index, bool) {
  auto [losses, statistics] = allocate(logits, labels);
  const OnDevice device(logits);
  check_launch(tk_cross_entropy_forward(logits.const_data_ptr(), data<int64_t>(labels), mutable_data<float>(losses),
                                        mutable_data<Statistics<float>>(statistics), logits.size(0), logits.size(1), ignore_index,
                                        int32_t(cuda_dtype_of(logits)), device.stream()),
               "cross_entropy");
  return {losses, statistics};
}

void backward_cuda(const Tensor& grad, const Tensor& logits, const Tensor& statistics, const Tensor& labels,
                   int64_t ignore_index, const Tensor& out) {
  const OnDevice device(logits);
  check_launch(tk_cross_entropy_backward(data<float>(grad), grad.stride(0), logits.const_data_ptr(), data<Statistics<float>>(statistics),
                                         data<int64_t>(labels), out.mutable_data_ptr(), logits.size(0), logits.size(1),
                                         ignore_index, int32_t(cuda_dtype_of(logits)), device.stream()),
               "cross_entropy_backward");
}

#endif

using Backward = void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, const Tensor&);

template <Backward* backward>
Tensor backward_new(const Tensor& grad, const Tensor& logits, const Tensor& statistics, const Tensor& labels,
                    int64_t ignore_index) {
  const Tensor out = unset_like(logits);
  backward(grad, logits, statistics, labels, ignore_index, out);
  return out;
}

template <Backward* backward>
void backward_over(const Tensor& grad, const Tensor& logits, const Tensor& statistics, const Tensor& labels,
                   int64_t ignore_index) {
  backward(grad, logits, statistics, labels, ignore_index, logits);
}

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def("cross_entropy(Tensor logits, Tensor labels, int ignore_index, bool in_place) -> (Tensor, Tensor)");
  m.def("cross_entropy_backward(Tensor grad, Tensor logits, Tensor statistics, Tensor labels, int ignore_index) -> Tensor");
  m.def(
      "cross_entropy_backward_(Tensor grad, Tensor(a!) logits, Tensor statistics, Tensor labels, int ignore_index) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&tk::forward_cpu));
  m.impl("cross_entropy_backward", TORCH_BOX(&tk::backward_new<tk::backward_cpu>));
  m.impl("cross_entropy_backward_", TORCH_BOX(&tk::backward_over<tk::backward_cpu>));
}

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) {
  m.impl("cross_entropy", TORCH_BOX(&tk::forward_cuda));
  m.impl("cross_entropy_backward", TORCH_BOX(&tk::backward_new<tk::backward_cuda>));
  m.impl("cross_entropy_backward_", TORCH_BOX(&tk::backward_over<tk::backward_cuda>));
}
#endif
