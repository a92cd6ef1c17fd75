// Softmax cross-entropy of rows of logits: the arithmetic that CPU and CUDA share, and CUDA's launchers.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/activations.h"

namespace tk {

// On a GPU its own: with the polynomial, arithmetic and not memory would be what bounds the forward pass in bf16.
TK_HD float softmax_exp(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  return exp(x);
#endif
}
TK_HD double softmax_exp(double x) { return ::exp(x); }

// The maximum of a part of a row, and the sum of exp(x - maximum) over it. Parts add up in any order.
template <class A>
struct LogSumExp {
  A maximum = -INFINITY;
  A sum = 0;

  // What is taken from the logits before exp: of a part that is all -infinity, nothing, so that its sum is 0, not NaN.
  TK_HD A shift() const { return maximum == A(-INFINITY) ? A(0) : maximum; }

  TK_HD void add(const LogSumExp& part) {
    const A old = maximum;
    maximum = part.maximum > old ? part.maximum : old;
    const A to = shift();
    sum = sum * softmax_exp(old - to) + part.sum * softmax_exp(part.maximum - to);  // exp(-infinity) for what had nothing
  }

  // -log softmax at a class of logit x. Not value() - x: far from 0 that would lose what makes the difference.
  TK_HD A loss(A x) const { return ::log(sum) - (x - shift()); }
};

// What the backward pass needs of a row.
template <class A>
struct Statistics {
  A shift, sum;
};

// The gradient of one row's loss, times `scale`, at a class of logit x.
template <class A>
struct CrossEntropyGradient {
  A shift, factor, scale;

  TK_HD CrossEntropyGradient(Statistics<A> row, A scale) : shift(row.shift), factor(scale / row.sum), scale(scale) {}
  TK_HD A of_other(A x) const { return softmax_exp(x - shift) * factor; }
  TK_HD A of_label(A x) const { return of_other(x) - scale; }
};

}  // namespace tk

// Contiguous [rows, classes]; dtype is a tk::DType, not float64. A label out of range makes its row's loss, and later
// its gradient, NaN: to raise, the host would have to wait. They return int(cudaGetLastError()).
extern "C" int tk_cross_entropy_forward(const void* logits, const int64_t* labels, float* losses,
                                        tk::Statistics<float>* statistics, int64_t rows, int64_t classes, int64_t ignore_index, int32_t dtype,
                                        void* stream);
// grad: one a row, `grad_stride` apart (0: the same for all). out may be logits.
extern "C" int tk_cross_entropy_backward(const float* grad, int64_t grad_stride, const void* logits,
                                         const tk::Statistics<float>* statistics, const int64_t* labels, void* out,
                                         int64_t rows, int64_t classes, int64_t ignore_index, int32_t dtype, void* stream);
