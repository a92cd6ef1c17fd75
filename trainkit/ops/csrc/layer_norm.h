// Dropout, residual sum, LayerNorm: summed = residual + x * factor, normed = (summed - mean) * rstd * weight + bias,
// for rows [rows, columns].
#pragma once

#include "common/philox.h"

namespace tk {

// Pointers a pass does not use are null. weight, bias, mean, rstd and their gradients hold Accum of the rows' type.
struct LayerNormArgs {
  int64_t num_rows, num_columns;
  int64_t rows_per_sample;
  DropoutMask mask;
  DType dtype;
  double eps;

  const void* x;
  const void* residual;
  const void* weight;
  const void* bias;
  void* normed;
  void* summed;
  void* mean;  // [rows]
  void* rstd;  // [rows]

  const void* grad;         // of normed
  const void* grad_summed;  // of summed by its other uses, or null
  void* dresidual;
  void* dx;  // null where it equals dresidual
  void* dweight;
  void* dbias;
  void* runs;  // CUDA: room for sums of runs of rows, [2, num_runs, columns] of float
  int64_t num_runs;
};

// Blocks of a CUDA backward pass, each of which takes every num_runs-th row and has sums of its own.
inline int64_t num_cuda_runs_of(int64_t num_rows) {
  return num_rows <= 8 ? 1 : num_rows >= 8 * 1024 ? 1024 : num_rows / 8;
}

extern "C" int tk_layer_norm_cuda(const LayerNormArgs* args, void* stream);
extern "C" int tk_layer_norm_backward_cuda(const LayerNormArgs* args, void* stream);

}  // namespace tk
