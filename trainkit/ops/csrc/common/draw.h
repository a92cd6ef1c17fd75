// What the .cpp of an op with dropout asks of its arguments. Sees torch.
#pragma once

#include "philox.h"
#include "tensor.h"

namespace tk {

// The mask of x [N, ...]: positions int64 [N] on x's device, or none for no dropout.
inline DropoutMask mask_of(const Tensor& x, const std::optional<Tensor>& positions, double p, int64_t key,
                           int64_t call) {
  if (!positions || p <= 0.0) return DropoutMask();
  check_contiguous(*positions, "positions");
  STD_TORCH_CHECK(positions->scalar_type() == ScalarType::Long, "trainkit: positions must be int64");
  STD_TORCH_CHECK(x.dim() > 0 && positions->numel() == x.size(0), "trainkit: positions must have one number a sample");
  STD_TORCH_CHECK(positions->is_cpu() == x.is_cpu(), "trainkit: positions must be on the input's device");
  STD_TORCH_CHECK(x.numel() / std::max<int64_t>(x.size(0), 1) <= kMaxSampleSize,
                  "trainkit: a sample of more than 2^34 elements has no dropout mask");
  return make_mask(data<int64_t>(*positions), p, key, call);
}

}  // namespace tk
