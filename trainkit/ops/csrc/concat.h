// Concatenation with bias and activation, and the appended minibatch standard deviation: definitions, CUDA launchers.
//
// Minibatch standard deviation of x [B, F] with M = B/N groups, sample i in group i mod M; e = x - mean over the group:
//   d[j, f] = sqrt(mean over the group of e^2 + 1e-8),  s[j] = mean over f of d[j, f]
// With t[j] = the sum of the gradients of the channel that s[j] fills, the gradient in x is g + t e / (N F d), and that
// of sum(v (g + t e / (N F d))) is, with V = sum over the group of v e,
//   v in g,  sum over f of V / d / (N F) in t,  t / (N F) ((v - mean v) / d - V e / (N d^3)) in x.
#pragma once

#include "common/types.h"

namespace tk {

constexpr int kMaxParts = 8;
constexpr double kStddevEps = 1e-8;

// Part i is [outer, channels[i], inner], at channel starts[i] of the result [outer, total, inner].
struct ConcatParts {
  int num;
  const void* from[kMaxParts];
  int64_t starts[kMaxParts], channels[kMaxParts];
  int64_t outer, total, inner;
};

// A slope of 0 is a ReLU, also of -infinity. A NaN stays one.
template <class A>
TK_HD A activated(A u, A slope) {
  const A below = slope == A(0) && u <= A(0) ? A(0) : slope * u;
  return u > A(0) ? u : below;
}

// x: [num_groups * group, channels, pixels]; the result has one more channel.
struct StddevShape {
  int64_t num_groups, group, channels, pixels;

  TK_HD int64_t features() const { return channels * pixels; }
  TK_HD int64_t row() const { return (channels + 1) * pixels; }  // elements of a sample of the result
};

template <class A>
struct StddevTerms {
  A t, mean_v, V, d;  // of one feature of a group
  A count, all;       // N and N F

  TK_HD A in_x(A v, A e) const { return t / all * ((v - mean_v) / d - V * e / (count * d * d * d)); }
};

}  // namespace tk

extern "C" {
// bias: [total] of Accum<T>, or null.
int tk_concat_cuda(tk::DType, tk::ConcatParts, double slope, const float* bias, void* y, void* stream);
int tk_minibatch_stddev_cuda(tk::DType, tk::StddevShape, const void* x, void* y, void* stream);
int tk_minibatch_stddev_backward_cuda(tk::DType, tk::StddevShape, const void* g, const void* x, void* grad_x,
                                      void* stream);
int tk_minibatch_stddev_backward_backward_cuda(tk::DType, tk::StddevShape, const void* v, const void* g, const void* x,
                                               void* grad_g, void* grad_x, void* stream);
}
