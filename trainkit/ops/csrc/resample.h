// Twice and half the size: the operations' definitions, the weights of the blur and the CUDA launchers.
//
//   upsample2     y[2i+a, 2j+b] = scale x[i, j]                        its adjoint: downsample2 with the same scale
//   downsample2   y[i, j] = scale (sum of the 2x2 block)               its adjoint: upsample2 with the same scale
//   upsample_blur rows, then columns: y[2i] = (x[i-1] + 3 x[i]) / 4, y[2i+1] = (3 x[i] + x[i+1]) / 4
//   its adjoint   x[i] = (y[2i-1] + 3 y[2i] + 3 y[2i+1] + y[2i+2]) / 4
// where an index outside of the image is the nearest one inside.
#pragma once

#include "common/types.h"

namespace tk {

// planes: batch times channels. height, width: of the smaller image.
struct ResampleShape {
  int64_t planes, height, width;
};

// torch.lerp's formula: exact at 0 and at 1.
template <class A>
TK_HD A mixed(A below, A image, A fade) {
  return fade < A(0.5) ? below + fade * (image - below) : image - (image - below) * (A(1) - fade);
}

template <class A>
TK_HD A nearer(A near, A far) {
  return A(0.75) * near + A(0.25) * far;
}

}  // namespace tk

extern "C" {
int tk_upsample2_cuda(tk::DType, tk::ResampleShape, double scale, const void* x, void* y, void* stream);
int tk_downsample2_cuda(tk::DType, tk::ResampleShape, double scale, const void* y, void* x, void* stream);
int tk_upsample_blur_cuda(tk::DType, tk::ResampleShape, const void* x, void* y, void* stream);
int tk_upsample_blur_adjoint_cuda(tk::DType, tk::ResampleShape, const void* y, void* x, void* stream);
int tk_fade_in_cuda(tk::DType, tk::ResampleShape, double fade, const void* below, const void* image, void* y,
                    void* stream);
int tk_fade_in_adjoint_cuda(tk::DType, tk::ResampleShape, double fade, const void* y, void* below, void* image,
                            void* stream);
}
