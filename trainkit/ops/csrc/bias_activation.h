// Bias, activation, dropout: y = f(x + bias) * factor, for rows of x [rows, columns].
// The kernels are templates over an activation (common/activations.h shows its three functions): those of a CPU in
// bias_activation_cpu.h, those of CUDA in bias_activation.cuh. A user's activation includes the same two files.
#pragma once

#include "common/activations.h"
#include "common/philox.h"

namespace tk {

// Pointers a pass does not use are null. `bias`, `grad_dbias` and the sums over rows hold Accum of x's type.
struct BiasActivationArgs {
  const void* x;
  const void* bias;
  int64_t num_rows, num_columns;
  int64_t rows_per_sample;
  DropoutMask mask;
  DType dtype;

  const void* grad;        // of y
  const void* grad_dx;     // of the first backward pass's dx
  const void* grad_dbias;  // of its dbias

  void* y;
  void* dgrad;   // second backward pass: the gradient of `grad`
  void* dx;
  void* dbias;   // [columns]
  void* runs;    // CUDA: room for sums of runs of rows, [num_runs, columns] of float
  int64_t num_runs;
};

enum class Pass : int32_t { forward = 0, backward = 1, second = 2 };

// Into how many runs a CUDA launch cuts the rows.
inline int64_t num_cuda_runs(int64_t num_rows, int64_t num_columns) {
  const int64_t across = (num_columns + 127) / 128, most = 2048 / (across < 2048 ? across : 2048);
  const int64_t runs = (num_rows + 31) / 32;
  return runs < most ? (runs > 1 ? runs : 1) : most;
}

using BiasActivationLauncher = int (*)(const BiasActivationArgs*, Pass, void* stream);

// The built-in activations, by their place in trainkit/ops/bias_activation.py's ACTIVATIONS.
extern "C" int tk_bias_activation_cuda(const BiasActivationArgs* args, int activation, Pass pass, void* stream);

}  // namespace tk
