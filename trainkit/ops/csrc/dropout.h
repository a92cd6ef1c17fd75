// Dropout from a counter. The backward pass is the forward pass on the gradient.
#pragma once

#include "common/philox.h"

namespace tk {

struct DropoutArgs {
  const void* x;
  void* y;
  int64_t num_samples, sample_size;
  DropoutMask mask;
  DType dtype;
};

extern "C" int tk_dropout_cuda(const DropoutArgs* args, void* stream);

}  // namespace tk
