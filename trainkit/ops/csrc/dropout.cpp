#include "dropout.h"

#include "common/draw.h"

namespace tk {
namespace {

DropoutArgs arguments(const Tensor& x, const Tensor& y, const Tensor& positions, double p, int64_t key, int64_t call) {
  check_contiguous(x, "x");
  const DropoutMask mask = mask_of(x, positions, p, key, call);
  const int64_t num_samples = x.size(0);
  return {x.const_data_ptr(), y.mutable_data_ptr(), num_samples, x.numel() / std::max<int64_t>(num_samples, 1), mask,
          dtype_of(x)};
}

// Elements [begin, end) of all of x.
template <class T>
void drop_range(const DropoutArgs& args, int64_t begin, int64_t end) {
  using A = Accum<T>;
  A room[kMaskRoom];
  for (int64_t at = begin; at < end;) {
    const int64_t sample = at / args.sample_size, first = at % args.sample_size;
    const int64_t count = std::min({kMaskTile, args.sample_size - first, end - at});
    const A* factors = draw_factors(args.mask, args.mask.positions[sample], first, count, room);
    const T* __restrict x = static_cast<const T*>(args.x) + at;
    T* __restrict y = static_cast<T*>(args.y) + at;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(widen(x[i]) * factors[i]);
    at += count;
  }
}

Tensor dropout_cpu(const Tensor& x, double p, int64_t key, const Tensor& positions, int64_t call) {
  Tensor y = unset_like(x);
  const DropoutArgs args = arguments(x, y, positions, p, key, call);
  if (!args.mask.drops()) return torch::stable::copy_(y, x);
  // In whole tiles, so that threads share no block of the counter.
  const int64_t num_tiles = (x.numel() + kMaskTile - 1) / kMaskTile;
  TK_DISPATCH(args.dtype, T, {
    parallel_for(num_tiles, 16, [&](int64_t begin, int64_t end) {
      drop_range<T>(args, begin * kMaskTile, std::min(end * kMaskTile, x.numel()));
    });
  });
  return y;
}

#if defined(TRAINKIT_CUDA)
Tensor dropout_cuda(const Tensor& x, double p, int64_t key, const Tensor& positions, int64_t call) {
  cuda_dtype_of(x);
  const OnDevice device(x);
  Tensor y = unset_like(x);
  const DropoutArgs args = arguments(x, y, positions, p, key, call);
  if (!args.mask.drops()) return torch::stable::copy_(y, x);
  check_launch(tk_dropout_cuda(&args, device.stream()), "dropout");
  return y;
}
#endif

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def("dropout(Tensor x, float p, int key, Tensor positions, int call) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) { m.impl("dropout", TORCH_BOX(&tk::dropout_cpu)); }

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) { m.impl("dropout", TORCH_BOX(&tk::dropout_cuda)); }
#endif
