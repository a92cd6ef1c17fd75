// Bias, leaky ReLU, clamp and the norm over channels: the maths of one element and the CUDA launchers.
//
//   u = x + bias;  a = clamp(u > 0 ? u : slope u);  r = (mean over channels of a^2 + eps)^(-1/2);  y = a r
// With m = da/du and S = sum of g a over channels C, the gradient of sum(g y) in u is
//   m (r g - r^3/C S a),
// and for w = m v, T = sum of w a, P = sum of w g, that of sum(v m (r g - r^3/C S a)) is
//   r w - r^3/C T a                                            in g
//   -m r^3/C (a (P - 3 r^2/C S T) + T g + S w)                 in u.
#pragma once

#include "common/types.h"

namespace tk {

template <class A>
struct Rectifier {
  A slope, clamp;  // clamp: infinity for none

  TK_HD A leaky(A u) const { return u > A(0) ? u : slope * u; }
  TK_HD A operator()(A u) const {
    const A l = leaky(u);
    return l > clamp ? clamp : (l < -clamp ? -clamp : l);  // a NaN passes
  }
  TK_HD A derivative(A u) const {
    const A l = leaky(u);
    const A kept = u > A(0) ? A(1) : slope;
    return l > clamp ? A(0) : (l < -clamp ? A(0) : kept);
  }
};

// What a pixel's sums over channels make of its elements. SecondTerms: see the formulas above.
template <class A>
struct SecondTerms {
  A r, of_a, of_g, of_w;

  TK_HD SecondTerms(A r, A channels, A S, A T, A P) : r(r) {
    const A cube = r * r * r / channels;
    of_a = -cube * (P - A(3) * r * r / channels * S * T);
    of_g = -cube * T;
    of_w = -cube * S;
  }
  TK_HD A in_g(A w, A a) const { return r * w + of_g * a; }
  TK_HD A in_a(A a, A g, A w) const { return of_a * a + of_g * g + of_w * w; }
};

// x: [batch, channels, inner], contiguous. bias: [channels] of Accum<T>, or null.
struct PixelNormShape {
  int64_t batch, channels, inner;
};

struct PixelNormOptions {
  double slope, clamp, eps;
};

}  // namespace tk

extern "C" {
int tk_pixel_norm_cuda(tk::DType, tk::PixelNormShape, tk::PixelNormOptions, const void* x, const float* bias, void* y,
                       void* stream);
int tk_pixel_norm_backward_cuda(tk::DType, tk::PixelNormShape, tk::PixelNormOptions, const void* g, const void* x,
                                const float* bias, void* grad_x, void* stream);
int tk_pixel_norm_backward_backward_cuda(tk::DType, tk::PixelNormShape, tk::PixelNormOptions, const void* v,
                                         const void* g, const void* x, const float* bias, void* grad_g, void* grad_x,
                                         void* stream);
// g null: y = a. Otherwise y = m g.
int tk_bias_leaky_relu_cuda(tk::DType, tk::PixelNormShape, tk::PixelNormOptions, const void* g, const void* x,
                            const float* bias, void* y, void* stream);
}
