// Every conversion of common/types.h, on both devices: `twice(x)` in x's dtype, `narrow(x, dtype of like)` from float32.
#include "common/tensor.h"
#include "vectors.h"

namespace {

using tk::Tensor;

Tensor twice(const Tensor& x) {
  tk::check_contiguous(x, "x");
  Tensor y = tk::unset_like(x);
  TK_DISPATCH(tk::dtype_of(x), T, {
    const T* in = tk::data<T>(x);
    T* out = tk::mutable_data<T>(y);
    tk::parallel_for(x.numel(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tk::store(out, i, 2 * tk::load(in, i));
    });
  });
  return y;
}

Tensor narrow(const Tensor& x, const Tensor& like) {
  Tensor y = tk::unset(x, tk::shape_of(x), like.scalar_type());
  const float* in = tk::data<float>(x);
  TK_DISPATCH(tk::dtype_of(like), T, {
    T* out = tk::mutable_data<T>(y);
    for (int64_t i = 0; i < x.numel(); ++i) tk::store(out, i, in[i]);
  });
  return y;
}

#ifdef TRAINKIT_CUDA
Tensor twice_cuda(const Tensor& x) {
  tk::check_contiguous(x, "x");
  Tensor y = tk::unset_like(x);
  tk::OnDevice device(x);
  tk::check_launch(
      tk_twice(x.const_data_ptr(), y.mutable_data_ptr(), x.numel(), tk::cuda_dtype_of(x), device.stream()), "twice");
  return y;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit_test, m) {
  m.def("twice(Tensor x) -> Tensor");
  m.def("narrow(Tensor x, Tensor like) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(trainkit_test, CPU, m) {
  m.impl("twice", TORCH_BOX(&twice));
  m.impl("narrow", TORCH_BOX(&narrow));
}
#ifdef TRAINKIT_CUDA
STABLE_TORCH_LIBRARY_IMPL(trainkit_test, CUDA, m) { m.impl("twice", TORCH_BOX(&twice_cuda)); }
#endif
